"""The facts of a run, for the report's words and for summary.json."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from nnunet_difftumor import __version__
from nnunet_difftumor.evaluation.comparison.analysis import Findings, groups_of, is_of_size
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan, Model
from nnunet_difftumor.evaluation.comparison.inputs.scores import StudyScores
from nnunet_difftumor.evaluation.comparison.inputs.trained_models import dataset_of
from nnunet_difftumor.evaluation.comparison.measures import AUROC, is_lack, measure_of
from nnunet_difftumor.evaluation.scoring.rules import bins_of
from nnunet_difftumor.evaluation.scoring.tables import Frame
from nnunet_difftumor.evaluation.statistics import intervals

_RULES = {"match_iou", "smallest_voxels", "smallest_mm3"}
_PACKAGES = ("nnunetv2", "scipy", "numpy", "pandas")


def collect_facts(study: StudyScores, experiment: ComparisonPlan, findings: Findings) -> dict[str, Any]:
    """Collect what was compared and how, as JSON values."""
    primary, model = measure_of(experiment.primary), experiment.models[0].name
    cases, tumors = (table[table["model"] == model] for table in (study.cases, study.tumors))  # of all models the same
    scans = cases.drop_duplicates(["hospital", "case"])
    return {
        "title": experiment.title,
        "baseline": experiment.baseline,
        "primary": primary.key,
        "primary_title": primary.title,
        "primary_meaning": primary.meaning,
        "arms": [{"name": arm, "models": [*map(_model_facts, experiment.models_of(arm))]} for arm in experiment.arms],
        "hospitals": [
            {"name": each.name, **_counts(*(table[table["hospital"] == each.name] for table in (scans, tumors)))}
            for each in experiment.hospitals
        ],
        **_counts(scans, tumors),
        "cohort": _cohort(study, experiment, scans, tumors),
        "labels": list(study.labels),
        "group_kinds": list(study.group_kinds),
        "rules": dict(study.rules),
        "rules_are_known": study.rules.keys() >= _RULES,
        "prediction": experiment.prediction.model_dump(),
        "predicted_here": any(model.trained is not None for model in experiment.models),
        "settings": experiment.statistics.model_dump(),
        **_ways_of_figures(findings),
        "smallest_bootstrap": intervals.SMALLEST_BOOTSTRAP,
        "smallest_hospitals": intervals.SMALLEST_HOSPITALS,
        "smallest_seeds": intervals.SMALLEST_SEEDS,
        "versions": {"nnunet-difftumor": __version__, **{name: version(name) for name in _PACKAGES}},
    }


def _ways_of_figures(findings: Findings) -> dict[str, Any]:
    methods = {each.estimate.method for each in (*findings.arms, *findings.differences)}
    tests: dict[str, list[str]] = {}
    for test, title in dict.fromkeys((each.test, each.measure.title) for each in findings.differences if each.test):
        tests.setdefault(test, []).append(title)
    return {
        "tests": tests,
        "was_resampled": any("bootstrap-t over patients" in method for method in methods),
        "was_student": any("Student's t over patients" in method for method in methods),
        "hospitals_resampled": any(each.over_hospitals for each in findings.arms),
        "seeds_used": any(each.over_seeds for each in findings.differences),
        "has_auroc": any(each.measure == AUROC and not is_lack(each.estimate.method) for each in findings.arms),
        "has_seeds": len(findings.seeds) > 0,
    }


def _model_facts(model: Model) -> dict[str, Any]:
    if model.trained is not None:
        folds = ", ".join(map(str, model.folds))
        source = f"{model.trained.name} of {dataset_of(model.trained)}, folds {folds}, {model.checkpoint}"
    else:
        source = "predictions as given" if model.predictions else "scores as given"
    seed = "" if model.seed is None else f"seed {model.seed}: "
    return {"name": model.name, "seed": model.seed, "source": f"{seed}{source}"}


def _counts(scans: Frame, tumors: Frame) -> dict[str, int]:
    healthy = int(scans["is_healthy"].sum())
    return {"patients": scans["patient"].nunique(), "scans": len(scans), "tumors": len(tumors), "healthy": healthy}


def _cohort(study: StudyScores, experiment: ComparisonPlan, scans: Frame, tumors: Frame) -> list[dict[str, Any]]:
    """Who was measured: one row a fact, with a number for every hospital and one for all."""
    rows = {"patients": scans.drop_duplicates("patient")}
    for kind in study.group_kinds:
        for group in groups_of(study, experiment, kind):
            rows[f"patients, {kind}: {group}"] = scans[scans[kind] == group].drop_duplicates("patient")
    rows |= {"scans": scans, "healthy scans": scans[scans["is_healthy"]]}
    for label in study.labels:
        own = tumors[tumors["label"] == label]
        tumors_of = "tumours" if len(study.labels) == 1 else f"tumours, {label}"
        rows[tumors_of] = own
        for name, _, _ in bins_of(experiment.statistics.size_bins_mm, "mm"):
            rows[f"{tumors_of}, {name}"] = own[is_of_size(own, name, experiment.statistics)]
    names = [each.name for each in experiment.hospitals]
    counts = {name: own["hospital"].value_counts().reindex(names, fill_value=0).tolist() for name, own in rows.items()}
    return [{"name": name, "hospitals": each, "all": sum(each)} for name, each in counts.items()]
