"""From scores to figures: every arm, every pair of arms, in all patients and in groups of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from nnunet_difftumor.evaluation.comparison import measures
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan
from nnunet_difftumor.evaluation.comparison.inputs.scores import StudyScores
from nnunet_difftumor.evaluation.comparison.measures import Measure, measure_of
from nnunet_difftumor.evaluation.comparison.text import counted
from nnunet_difftumor.evaluation.scoring.rules import bins_of
from nnunet_difftumor.evaluation.scoring.tables import Frame
from nnunet_difftumor.evaluation.statistics import intervals, paired_tests, roc
from nnunet_difftumor.evaluation.statistics.intervals import NOT_MEASURED, Estimate
from nnunet_difftumor.evaluation.statistics.roc import AreaUnderCurve
from nnunet_difftumor.evaluation.statistics.scales import FloatArray, Scale, pooled_mean

ALL, SIZE, HOSPITAL = "all", "size", "hospital"
SEED_COLUMNS = ["label", "measure", "arm", "model", "seed", "value"]


@dataclass(frozen=True)
class Group:
    """A group of patients or tumours.

    Attributes:
        kind: "all", "size", "hospital", "age", "sex", "phase" or "scanner".
    """

    kind: str
    name: str


EVERYONE = Group(ALL, "all patients")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measure of one arm, or of one arm minus the baseline, in one group.

    Attributes:
        arm: The arm; the mean of its seeds.
        baseline: The arm that it is compared with; empty for the figure of an arm itself.
        items: Number of tumours or scans that count.
        estimate: Value and interval over patients; the method says why there is none.
        over_hospitals: The same with an interval over hospitals; None below 6.
        over_seeds: The same with an interval over patients and seeds; None with fewer than 3 seeds in an arm.
        p_value: Two-sided; NaN where nothing is tested.
        test: Name of the test; empty where nothing is tested.
        p_holm: p-value adjusted over arms, organs and size bins.
    """

    label: str
    measure: str
    group: Group
    arm: str
    baseline: str
    patients: int
    items: int
    estimate: Estimate
    over_hospitals: Estimate | None = None
    over_seeds: Estimate | None = None
    p_value: float = math.nan
    test: str = ""
    p_holm: float = math.nan


@dataclass(frozen=True, eq=False)
class Findings:
    """All figures.

    Attributes:
        differences: Figures of arms minus the baseline.
        seeds: One row for each measure and training of arms with several, with the columns of seeds.csv.
        groups: All groups, in the order of the tables.
    """

    arms: tuple[Finding, ...]
    differences: tuple[Finding, ...]
    seeds: Frame
    groups: tuple[Group, ...]

    def arm(self, label: str, measure: str, group: Group, arm: str) -> Finding | None:
        """Find the figure of an arm."""
        return _find(self.arms, (label, measure, group, arm))

    def difference(self, label: str, measure: str, group: Group, arm: str) -> Finding | None:
        """Find the difference of an arm to the baseline."""
        return _find(self.differences, (label, measure, group, arm))


def _find(figures: Sequence[Finding], wanted: tuple[str, str, Group, str]) -> Finding | None:
    return next((each for each in figures if (each.label, each.measure, each.group, each.arm) == wanted), None)


def analyze(study: StudyScores, experiment: ComparisonPlan) -> Findings:
    """Compute all figures."""
    groups = _groups(study, experiment)
    figures: list[Finding] = []
    seeds: list[tuple[Any, ...]] = []
    for label in study.labels:
        for group in groups:
            for measure in measures_of(group.kind, experiment):
                question = (_Areas if measure is measures.AUROC else _Means)(study, experiment, label, measure, group)
                figures += _figures(question)
                if group == EVERYONE:
                    seeds += _seeds(question)
    return Findings(
        arms=tuple(each for each in figures if not each.baseline),
        differences=tuple(_adjust([each for each in figures if each.baseline])),
        seeds=pd.DataFrame(seeds, columns=SEED_COLUMNS),
        groups=groups,
    )


def _figures(question: _Means | _Areas) -> Iterator[Finding]:
    """All arms, and all but the baseline minus it."""
    baseline, *others = question.experiment.arms
    for arm, compared_with in (*((arm, "") for arm in (baseline, *others)), *((arm, baseline) for arm in others)):
        yield Finding(
            label=question.label,
            measure=question.measure.key,
            group=question.group,
            arm=arm,
            baseline=compared_with,
            patients=question.patients,
            items=question.items,
            **(question.difference(arm, baseline) if compared_with else question.of_arm(arm)),
        )


def _seeds(question: _Means | _Areas) -> Iterator[tuple[Any, ...]]:
    """Rows of seeds.csv, of arms with several trainings."""
    values = question.values_of_models()
    for arm in question.experiment.arms if values else ():
        models = question.experiment.models_of(arm)
        for model in models:
            if model.seed is not None and len(models) > 1:
                value = values[question.models[model.name]]
                yield question.label, question.measure.key, arm, model.name, model.seed, value


def _groups(study: StudyScores, experiment: ComparisonPlan) -> tuple[Group, ...]:
    settings = experiment.statistics
    groups = [EVERYONE]
    groups += [Group(SIZE, name) for name, _, _ in bins_of(settings.size_bins_mm, "mm")]
    if len(experiment.hospitals) > 1:
        groups += [Group(HOSPITAL, hospital.name) for hospital in experiment.hospitals]
    for kind in study.group_kinds:
        groups += [Group(kind, name) for name in groups_of(study, experiment, kind)]
    return tuple(groups)


def groups_of(study: StudyScores, experiment: ComparisonPlan, kind: str) -> tuple[str, ...]:
    """Names of the groups of a kind that the metadata know: ages by age, others by name."""
    first = [name for name, _, _ in bins_of(experiment.statistics.age_bins, "years")] if kind == "age" else []
    return (*first, *sorted(set(study.cases[kind]) - set(first)))


def measures_of(kind: str, experiment: ComparisonPlan) -> tuple[Measure, ...]:
    """Measures that are shown in groups of a kind, in their order; the primary one is among them where it can be."""
    if kind in (ALL, SIZE):
        return measures.MEASURES if kind == ALL else measures.SIZE_MEASURES
    primary, shown = measure_of(experiment.primary), measures.SUBGROUP_MEASURES
    return shown if primary in shown else (primary, *shown)


def _adjust(differences: Sequence[Finding]) -> Iterator[Finding]:
    """Holm over all arms, organs and size bins of a measure."""
    for measure in dict.fromkeys(each.measure for each in differences):
        family = [each for each in differences if each.measure == measure]
        adjusted = paired_tests.holm([each.p_value for each in family])
        yield from (replace(each, p_holm=value) for each, value in zip(family, adjusted, strict=True))


class _Question:
    """One measure of one label in one group: what both kinds of measure share.

    Both have `patients` and `items`, `lack` (why there is no interval and no test; empty if there is), estimates
    `of_arm` and of a `difference` by fields of `Finding`, and `values_of_models`, empty if nothing can be measured.
    """

    def __init__(
        self, study: StudyScores, experiment: ComparisonPlan, label: str, measure: Measure, group: Group
    ) -> None:
        self.study, self.experiment = study, experiment
        self.label, self.measure, self.group = label, measure, group
        self.models = {model.name: number for number, model in enumerate(experiment.models)}

    def models_of(self, arm: str) -> list[int]:
        return [self.models[model.name] for model in self.experiment.models_of(arm)]

    def rng(self, *names: str) -> np.random.Generator:
        """Generator of one figure; it does not depend on which other figures there are."""
        words = "\0".join((self.label, self.measure.key, self.group.kind, self.group.name, *names))
        return np.random.default_rng([self.experiment.statistics.seed, zlib.crc32(words.encode())])

    def in_group(self, table: Frame) -> Any:
        """Say of every row whether it belongs to the label and the group."""
        keep: Any = table["label"] == self.label
        if self.group.kind == SIZE:
            settings = self.experiment.statistics
            ends_mm = {name: ends for name, *ends in bins_of(settings.size_bins_mm, "mm")}[self.group.name]
            return keep & table[f"{settings.size_diameter}_diameter_mm"].between(*ends_mm, inclusive="left")
        return keep if self.group.kind == ALL else keep & (table[self.group.kind] == self.group.name)


class _Means(_Question):
    """A measure that is a ratio of sums over patients."""

    def __init__(
        self, study: StudyScores, experiment: ComparisonPlan, label: str, measure: Measure, group: Group
    ) -> None:
        super().__init__(study, experiment, label, measure, group)
        table = self._rows()
        of_patients, names = pd.factorize(table["patient"])
        self.patients = len(names)
        shape = (len(self.models), self.patients)
        flat = table["model"].map(self.models).to_numpy(dtype=int) * self.patients + of_patients
        sums = np.bincount(flat, weights=table[measure.column].astype(float), minlength=shape[0] * shape[1])
        counts = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
        self.totals: FloatArray = np.asarray(sums, dtype=float).reshape(shape)  # (M, P)
        self.weights: FloatArray = counts[0]  # (P,): the same scans and tumours for every model
        self.items = int(self.weights.sum())
        if measure.weighs_patients_alike:
            self.totals, self.weights = self.totals / self.weights, np.ones(self.patients)
        self.hospitals = table.drop_duplicates("patient")["hospital"].tolist()
        self.lack = self._lack()

    def _rows(self) -> Frame:
        table = self.study.tumors if self.measure.of == measures.TUMORS else self.study.cases
        keep = self.in_group(table)
        if self.measure.of == measures.TUMOR_SCANS:
            keep &= table["reference_tumors"] > 0
        elif self.measure.of == measures.HEALTHY_SCANS:
            keep &= table["is_healthy"]
        return table[keep]

    def _lack(self) -> str:
        settings = self.experiment.statistics
        if not self.patients:
            return measures.EMPTY
        needs = [f"{settings.minimum_patients} patients"] if self.patients < settings.minimum_patients else []
        if self.measure.of == measures.TUMORS and self.items < settings.minimum_tumors:
            needs.insert(0, f"{settings.minimum_tumors} tumours")
        if not needs:
            return ""
        tumors = f"{counted(self.items, 'tumour')} in " if self.measure.of == measures.TUMORS else ""
        return f"{measures.TOO_FEW}: {tumors}{counted(self.patients, 'patient')}; {' and '.join(needs)} needed"

    def _totals_of(self, arm: str) -> FloatArray:
        """Mean of the seeds. Shape (P,)."""
        return self.totals[self.models_of(arm)].mean(axis=0)

    def of_arm(self, arm: str) -> dict[str, Any]:
        return self._estimates(self._totals_of(arm), self.measure.scale, arm)

    def difference(self, arm: str, baseline: str) -> dict[str, Any]:
        totals = self._totals_of(arm) - self._totals_of(baseline)
        estimates = self._estimates(totals, self.measure.difference_scale, arm, baseline)
        if self.lack:
            return estimates
        of_arm, of_baseline = (self.totals[self.models_of(each)] for each in (arm, baseline))
        over_seeds = intervals.seed_interval(of_arm, of_baseline, self.weights, self.measure.difference_scale)
        return {**estimates, "over_seeds": over_seeds, **self._test(totals, arm)}

    def _estimates(self, totals: FloatArray, scale: Scale, *names: str) -> dict[str, Estimate | None]:
        """Interval over patients, and over hospitals where there are enough."""
        if self.lack:
            value = float(pooled_mean(totals, self.weights)) if self.group == EVERYONE else math.nan
            return {"estimate": Estimate(value, math.nan, math.nan, self.lack)}
        draws = self.experiment.statistics.draws
        estimate = intervals.patient_interval(totals, self.weights, scale, draws=draws, rng=self.rng(*names))
        if self.group.kind == HOSPITAL:
            return {"estimate": estimate}
        over_hospitals = intervals.hospital_interval(
            totals, self.weights, self.hospitals, scale, draws=draws, rng=self.rng("hospitals", *names)
        )
        return {"estimate": estimate, "over_hospitals": over_hospitals}

    def _test(self, totals: FloatArray, arm: str) -> dict[str, Any]:
        if self.group.kind not in (ALL, SIZE):
            return {}
        if self.measure.weighs_patients_alike and len(totals) >= intervals.SMALLEST_BOOTSTRAP:
            return {"p_value": float(paired_tests.wilcoxon_p_value(totals)), "test": "Wilcoxon signed-rank"}
        p_value = paired_tests.sign_flip_p_value(
            totals,
            draws=self.experiment.statistics.draws,
            rng=self.rng("test", arm),
            is_of_hits=self.measure.scale.is_of_hits,
        )
        return {"p_value": float(p_value), "test": "permutation"}

    def values_of_models(self) -> list[float]:
        return [float(pooled_mean(row, self.weights)) for row in self.totals]


class _Areas(_Question):
    """The area under the ROC curve."""

    def __init__(
        self, study: StudyScores, experiment: ComparisonPlan, label: str, measure: Measure, group: Group
    ) -> None:
        super().__init__(study, experiment, label, measure, group)
        table = study.cases[self.in_group(study.cases)]
        table = table[(table["reference_tumors"] > 0) | table["is_healthy"]]
        of_patients, names = pd.factorize(table["patient"])
        self.patients, self.items = len(names), len(table) // len(self.models)
        self.areas: list[AreaUnderCurve | None] = []
        self.lack = "" if table["patient_score"].notna().all() else measures.NO_PROBABILITIES
        if not self.lack:
            for model in self.models:
                is_own = (table["model"] == model).to_numpy()
                scores, tumors = (table[is_own][name].to_numpy() for name in ("patient_score", "reference_tumors"))
                self.areas.append(roc.area_under_curve(scores, tumors > 0, of_patients[is_own], self.patients))
            self.lack = self._lack()

    def _lack(self) -> str:
        if not self.areas or self.areas[0] is None:
            return measures.EMPTY
        smaller = min(self.areas[0].positives, self.areas[0].negatives)
        needed = self.experiment.statistics.minimum_patients
        if smaller >= needed:
            return ""
        return f"{measures.TOO_FEW}: {counted(smaller, 'patient')} with or without tumours; {needed} of both needed"

    def _area(self, arm: str) -> AreaUnderCurve:
        """Mean of the seeds' areas and contributions."""
        chosen = [area for number in self.models_of(arm) if (area := self.areas[number]) is not None]
        return AreaUnderCurve(
            float(np.mean([area.value for area in chosen])),
            np.mean([area.of_positives for area in chosen], axis=0),
            np.mean([area.of_negatives for area in chosen], axis=0),
            chosen[0].positives,
            chosen[0].negatives,
        )

    def of_arm(self, arm: str) -> dict[str, Any]:
        lacking = replace(NOT_MEASURED, method=self.lack)
        return {"estimate": lacking if self.lack else roc.area_interval(self._area(arm))}

    def difference(self, arm: str, baseline: str) -> dict[str, Any]:
        if self.lack:
            return self.of_arm(arm)
        estimate, p_value = roc.area_difference(self._area(arm), self._area(baseline))
        return {"estimate": estimate, "p_value": p_value, "test": "clustered DeLong"}

    def values_of_models(self) -> list[float]:
        return [] if self.lack else [area.value if area else math.nan for area in self.areas]
