"""All scores of an experiment in two long tables, one row a scan or a tumour for each model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_difftumor.errors import DatasetError, list_some
from nnunet_difftumor.evaluation.comparison.inputs.metadata import read_metadata
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan
from nnunet_difftumor.evaluation.scoring.tables import (
    CASES_FILE,
    SUMMARY_FILE,
    TUMORS_FILE,
    Frame,
    LabelScores,
    columns_of,
    read_scores,
)

_TUMOR_COLUMNS = (
    *("case", "label", "tumor", "detected", "touched", "volume_mm3"),
    *("equivalent_diameter_mm", "axial_diameter_mm", "iou", "dice", "score"),
)
_KEY = ["hospital", "case", "label"]


@dataclass(frozen=True, eq=False)
class StudyScores:
    """Scores of every model in every hospital.

    Attributes:
        cases: One row for each model, hospital, case and tumour label, with the columns of cases.csv, `patient`,
            and a column for each kind of group.
        tumors: One row for each model and reference tumour, with the columns of tumors.csv and the same others.
        group_kinds: Kinds of groups that the metadata know, e.g. age and sex.
        rules: What counted as a tumour and as found; empty if the score folders do not say.
        notes: What a reader of the report should know.
    """

    cases: Frame
    tumors: Frame
    labels: tuple[str, ...]
    group_kinds: tuple[str, ...]
    rules: Mapping[str, Any]
    notes: tuple[str, ...]


def load_study(experiment: ComparisonPlan, score_folders: Mapping[tuple[str, str], Path]) -> StudyScores:
    """Read the scores of all models.

    Args:
        score_folders: Output folder of `difftumor score` by names of model and hospital.

    Raises:
        DatasetError: If tables are incomplete, or models were not scored on the same scans and references.
    """
    cases, tumors, rules, left_out = [], [], {}, {}
    for model in experiment.models:
        for hospital in experiment.hospitals:
            folder = score_folders[model.name, hospital.name]
            summary = _read_summary(folder)
            for table, tables in zip(_read_tables(folder, experiment.labels), (cases, tumors), strict=True):
                tables.append(table.assign(model=model.name, hospital=hospital.name))
            rules[folder] = summary["rules"] if isinstance(summary.get("rules"), dict) else {}
            left_out.setdefault(hospital.name, set()).update(map(str, summary.get("not_predicted") or ()))
    all_cases, all_tumors = (pd.concat(tables, ignore_index=True) for tables in (cases, tumors))
    models = [model.name for model in experiment.models]
    _require_same(all_cases, models, _KEY, ["is_healthy", "reference_ml", "reference_tumors"])
    _require_same(all_tumors, models, [*_KEY, "tumor"], ["volume_mm3"])
    scans = list(dict.fromkeys(zip(all_cases["hospital"], all_cases["case"], strict=True)))
    metadata, notes = read_metadata(experiment.metadata, scans, experiment.statistics.age_bins)
    notes += [
        f"{name}: {len(each)} cases are not in this comparison, because scores were made with --only-predicted and "
        f"without a prediction of them: {list_some(sorted(each))}."
        for name, each in left_out.items()
        if each
    ]
    return StudyScores(
        cases=all_cases.join(metadata, on=["hospital", "case"]),
        tumors=all_tumors.join(metadata, on=["hospital", "case"]),
        labels=tuple(dict.fromkeys(all_cases["label"])),
        group_kinds=tuple(name for name in metadata.columns if name != "patient"),
        rules=_common_rules(rules),
        notes=tuple(notes),
    )


def _read_summary(folder: Path) -> Mapping[str, Any]:
    """Content of summary.json, unless it names cases that failed: in every model, they would be in no table."""
    path = folder / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. `difftumor score` writes it.") from error
    if not isinstance(summary, dict):
        return {}
    without_reference = summary.get("without_reference") or ()  # such predictions are no cases
    failed = [str(case) for case in summary.get("failed") or () if case not in without_reference]
    if failed:
        raise DatasetError(
            f"{folder}: {len(failed)} cases could not be scored: {', '.join(failed[:5])}; see errors.csv there. "
            "Correct them and score again: leaving cases out of a comparison would favour the model that fails on them."
        )
    return summary


def _read_tables(folder: Path, labels: Sequence[str] | None) -> tuple[Frame, Frame]:
    """cases.csv of all or some tumour labels, with `is_clean` (1 without a false positive, else 0), and tumors.csv."""
    paths = folder / CASES_FILE, folder / TUMORS_FILE
    cases, tumors = read_scores(paths[0], list(columns_of(LabelScores))), read_scores(paths[1], _TUMOR_COLUMNS)
    cases = cases[cases["reference_tumors"].notna()]  # organs have no tumours to count
    known = list(dict.fromkeys(cases["label"]))
    unknown = [label for label in labels or () if label not in known]
    if unknown or not known:
        raise DatasetError(
            f"{paths[0]} has no tumour label {', '.join(unknown) or 'at all'}; it has "
            f"{', '.join(known) or 'none'}. Correct labels in the experiment, or score again."
        )
    kept = known if labels is None else labels
    cases, tumors = (table[table["label"].isin(kept)].reset_index(drop=True) for table in (cases, tumors))
    _require_values(cases[cases["reference_ml"] > 0], ("dice", "nsd_1mm", "nsd_2mm"), paths[0])
    _require_values(cases[cases["reference_tumors"] > 0], ("panoptic_quality",), paths[0])
    _require_values(tumors, ("dice", "equivalent_diameter_mm", "axial_diameter_mm"), paths[1])
    return cases.assign(is_clean=(cases["false_positives"] == 0).astype(float)), tumors


def _require_values(table: Frame, columns: Sequence[str], path: Path) -> None:
    for name in columns:
        for case in table.loc[table[name].isna(), "case"]:
            raise DatasetError(f"{path}: {name} of {case} is empty, but it has a tumour. Score again.")


def _require_same(table: Frame, models: list[str], key: list[str], columns: list[str]) -> None:
    """Every model must have been scored on the same scans with the same references, or pairs mean nothing."""
    twice = table[table.duplicated(["model", *key])]
    if len(twice):
        row = twice.iloc[0]
        raise DatasetError(f"{row['model']} was scored twice on {'/'.join(row[key])}. Remove one of the rows.")
    by_key = table.set_index(key)
    baseline, *others = models
    first, *of_others = (by_key.loc[by_key["model"] == name, columns].astype(float) for name in models)
    for name, other in zip(others, of_others, strict=True):
        different = first.index.symmetric_difference(other.index)
        if len(different):
            raise DatasetError(
                f"{baseline} and {name} were not scored on the same scans and tumours: {len(different)} "
                f"differ, e.g. {'/'.join(different[0])}. Predict and score what is missing, with the same label maps."
            )
        is_same = np.isclose(first, other.loc[first.index], rtol=1e-4, atol=1e-6).all(axis=1)
        if not is_same.all():
            differing = "/".join(map(str, first.index[~is_same][0]))
            raise DatasetError(
                f"{baseline} and {name} were scored with other references of {differing}. Score both with "
                "the same label maps and rules."
            )


def _common_rules(rules: Mapping[Path, Mapping[str, Any]]) -> Mapping[str, Any]:
    first, *others = rules
    for folder in others:
        if rules[folder] != rules[first]:
            raise DatasetError(
                f"{first} and {folder} were scored by different rules ({dict(rules[first])} and "
                f"{dict(rules[folder])}). Score both by the same."
            )
    return rules[first]
