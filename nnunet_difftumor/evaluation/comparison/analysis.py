"""From scores to figures: every arm, every pair of arms, in all patients and in groups of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from nnunet_difftumor.evaluation.comparison.inputs.metadata import bins_of
from nnunet_difftumor.evaluation.comparison.inputs.plan import Experiment
from nnunet_difftumor.evaluation.comparison.inputs.scores import Study, select
from nnunet_difftumor.evaluation.comparison.measures import (
    AUROC,
    EMPTY,
    HEALTHY_SCANS,
    MEASURES,
    NO_PROBABILITIES,
    SIZE_MEASURES,
    SUBGROUP_MEASURES,
    TOO_FEW,
    TUMOR_SCANS,
    TUMORS,
    Measure,
    measure_of,
)
from nnunet_difftumor.evaluation.statistics import intervals, paired_tests, roc
from nnunet_difftumor.evaluation.statistics.intervals import NOT_MEASURED, Estimate
from nnunet_difftumor.evaluation.statistics.roc import AreaUnderCurve
from nnunet_difftumor.evaluation.statistics.scales import FloatArray, Scale, pooled_mean

ALL, SIZE, HOSPITAL = "all", "size", "hospital"


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
class ArmFigure:
    """One measure of one arm in one group.

    Attributes:
        arm: The arm; the mean of its seeds.
        patients: Number of patients that count.
        items: Number of tumours or scans that count.
        estimate: Value and interval over patients; the method says why there is none.
        over_hospitals: The same with an interval over hospitals; None below 6.
    """

    label: str
    measure: str
    group: Group
    arm: str
    patients: int
    items: int
    estimate: Estimate
    over_hospitals: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class DifferenceFigure:
    """One measure of one arm minus that of the baseline, in one group.

    Attributes:
        baseline: The arm that it is compared with.
        patients: Number of patients that count.
        items: Number of tumours or scans that count.
        estimate: Difference and interval over patients.
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


@dataclass(frozen=True, kw_only=True)
class SeedFigure:
    """One measure of one training, in all patients."""

    label: str
    measure: str
    arm: str
    model: str
    seed: int
    value: float


@dataclass(frozen=True)
class Findings:
    """All figures.

    Attributes:
        seeds: Figures of the trainings of arms with several.
        groups: All groups, in the order of the tables.
    """

    arms: tuple[ArmFigure, ...]
    differences: tuple[DifferenceFigure, ...]
    seeds: tuple[SeedFigure, ...]
    groups: tuple[Group, ...]

    def arm(self, label: str, measure: str, group: Group, arm: str) -> ArmFigure | None:
        """Find the figure of an arm."""
        wanted = (label, measure, group, arm)
        return next((each for each in self.arms if (each.label, each.measure, each.group, each.arm) == wanted), None)

    def difference(self, label: str, measure: str, group: Group, arm: str) -> DifferenceFigure | None:
        """Find the difference of an arm to the baseline."""
        wanted = (label, measure, group, arm)
        return next(
            (each for each in self.differences if (each.label, each.measure, each.group, each.arm) == wanted), None
        )


def analyze(study: Study, experiment: Experiment) -> Findings:
    """Compute all figures.

    Args:
        experiment: What is compared, and how figures are computed.
    """
    groups = _groups(study, experiment)
    arms: list[ArmFigure] = []
    differences: list[DifferenceFigure] = []
    seeds: list[SeedFigure] = []
    for label in study.labels:
        for group in groups:
            for measure in measures_of(group.kind, experiment):
                kind = _Areas if measure is AUROC else _Means
                found = kind(study, experiment, label, measure, group)
                arms += found.arms()
                differences += found.differences()
                if group == EVERYONE:
                    seeds += found.seeds()
    return Findings(tuple(arms), tuple(_adjust(differences)), tuple(seeds), groups)


def _groups(study: Study, experiment: Experiment) -> tuple[Group, ...]:
    settings = experiment.statistics
    groups = [EVERYONE]
    groups += [Group(SIZE, name) for name, _, _ in bins_of(settings.size_bins_mm, "mm")]
    if len(experiment.hospitals) > 1:
        groups += [Group(HOSPITAL, hospital.name) for hospital in experiment.hospitals]
    for kind in study.group_kinds:
        groups += [Group(kind, name) for name in groups_of(study, experiment, kind)]
    return tuple(groups)


def groups_of(study: Study, experiment: Experiment, kind: str) -> tuple[str, ...]:
    """Names of the groups of a kind that the metadata know: ages by age, others by name."""
    first = [name for name, _, _ in bins_of(experiment.statistics.age_bins, "years")] if kind == "age" else []
    return (*first, *sorted(set(study.cases[kind]) - set(first)))


def measures_of(kind: str, experiment: Experiment) -> tuple[Measure, ...]:
    """Measures that are shown in groups of a kind; the primary one is among them wherever it can be.

    Returns:
        The measures, in the order of the tables.
    """
    if kind in (ALL, SIZE):
        return MEASURES if kind == ALL else SIZE_MEASURES
    primary = measure_of(experiment.primary)
    return SUBGROUP_MEASURES if primary in SUBGROUP_MEASURES else (primary, *SUBGROUP_MEASURES)


def _adjust(differences: Sequence[DifferenceFigure]) -> Iterator[DifferenceFigure]:
    """Holm over all arms, organs and size bins of a measure."""
    for measure in dict.fromkeys(each.measure for each in differences):
        family = [each for each in differences if each.measure == measure]
        adjusted = paired_tests.holm([each.p_value for each in family])
        yield from (replace(each, p_holm=value) for each, value in zip(family, adjusted, strict=True))


class _Question:
    """One measure of one label in one group: what both kinds of measure share."""

    def __init__(self, study: Study, experiment: Experiment, label: str, measure: Measure, group: Group) -> None:
        self.study, self.experiment = study, experiment
        self.label, self.measure, self.group = label, measure, group
        self.models = {model.name: number for number, model in enumerate(experiment.models)}

    def models_of(self, arm: str) -> list[int]:
        return [self.models[model.name] for model in self.experiment.models_of(arm)]

    def common(self, **more: Any) -> dict[str, Any]:
        return {"label": self.label, "measure": self.measure.key, "group": self.group, **more}

    def rng(self, *names: str) -> np.random.Generator:
        """Generator of one figure; it does not depend on which other figures there are."""
        words = "\0".join((self.label, self.measure.key, self.group.kind, self.group.name, *names))
        return np.random.default_rng([self.experiment.statistics.seed, zlib.crc32(words.encode())])

    def in_group(self, table: pd.DataFrame) -> pd.Series:
        """Say of every row whether it belongs to the label and the group."""
        keep: Any = table["label"] == self.label
        settings = self.experiment.statistics
        if self.group.kind == SIZE:
            ends = {name: (low, high) for name, low, high in bins_of(settings.size_bins_mm, "mm")}
            low, high = ends[self.group.name]
            diameter_mm = table[f"{settings.size_diameter}_diameter_mm"]
            return keep & (diameter_mm >= low) & (diameter_mm < high)
        return keep if self.group.kind == ALL else keep & (table[self.group.kind] == self.group.name)

    def seed_figures(self, values: Sequence[float]) -> list[SeedFigure]:
        return [
            SeedFigure(
                label=self.label,
                measure=self.measure.key,
                arm=arm,
                model=model.name,
                seed=model.seed,
                value=values[self.models[model.name]],
            )
            for arm in self.experiment.arms
            for model in self.experiment.models_of(arm)
            if model.seed is not None and len(self.experiment.models_of(arm)) > 1
        ]


class _Means(_Question):
    """A measure that is a ratio of sums over patients."""

    def __init__(self, study: Study, experiment: Experiment, label: str, measure: Measure, group: Group) -> None:
        super().__init__(study, experiment, label, measure, group)
        table = self._rows()
        patients, names = pd.factorize(table["patient"])
        columns = len(names)
        flat = np.array([self.models[name] for name in table["model"]], dtype=int) * columns + patients
        shape = (len(self.models), columns)
        sums = np.bincount(flat, weights=table[measure.column].astype(float), minlength=shape[0] * columns)
        counts = np.bincount(flat, minlength=shape[0] * columns).reshape(shape).astype(float)
        self.totals: FloatArray = np.asarray(sums, dtype=float).reshape(shape)  # (M, P)
        self.weights: FloatArray = (
            counts[0] if columns else np.zeros(0)
        )  # (P,): the same scans and tumours for every model
        self.items = int(self.weights.sum())
        if measure.weighs_patients_alike and columns:
            self.totals, self.weights = self.totals / self.weights, np.ones(columns)
        self.hospitals = table.drop_duplicates("patient")["hospital"].tolist()
        self.lack = self._lack()

    def _rows(self) -> pd.DataFrame:
        is_of_tumors = self.measure.of == TUMORS
        table = self.study.tumors if is_of_tumors else self.study.cases
        keep = self.in_group(table)
        if self.measure.of == TUMOR_SCANS:
            keep &= table["reference_tumors"] > 0
        elif self.measure.of == HEALTHY_SCANS:
            keep &= table["is_healthy"]
        return select(table, keep)

    def _lack(self) -> str:
        """Why there is no interval and no test; empty if there is."""
        settings = self.experiment.statistics
        patients = len(self.weights)
        if not patients:
            return EMPTY
        needs = [f"{settings.minimum_patients} patients"] if patients < settings.minimum_patients else []
        if self.measure.of == TUMORS and self.items < settings.minimum_tumors:
            needs.insert(0, f"{settings.minimum_tumors} tumours")
        if not needs:
            return ""
        tumors = f"{_count(self.items, 'tumour')} in " if self.measure.of == TUMORS else ""
        return f"{TOO_FEW}: {tumors}{_count(patients, 'patient')}; {' and '.join(needs)} needed"

    def arm_totals(self, arm: str) -> FloatArray:
        """Mean of the seeds. Shape (P,)."""
        return self.totals[self.models_of(arm)].mean(axis=0)

    def estimate(self, totals: FloatArray, scale: Scale, *names: str) -> tuple[Estimate, Estimate | None]:
        """Interval over patients, and over hospitals where there are enough."""
        if self.lack:
            value = float(pooled_mean(totals, self.weights)) if self.group == EVERYONE else math.nan
            return Estimate(value, math.nan, math.nan, self.lack), None
        draws = self.experiment.statistics.draws
        of_patients = intervals.patient_interval(totals, self.weights, scale, draws=draws, rng=self.rng(*names))
        if self.group.kind == HOSPITAL:
            return of_patients, None
        return of_patients, intervals.hospital_interval(
            totals, self.weights, self.hospitals, scale, draws=draws, rng=self.rng("hospitals", *names)
        )

    def arms(self) -> list[ArmFigure]:
        figures = []
        for arm in self.experiment.arms:
            estimate, over_hospitals = self.estimate(self.arm_totals(arm), self.measure.scale, arm)
            common = self.common(arm=arm, patients=len(self.weights), items=self.items)
            figures.append(ArmFigure(**common, estimate=estimate, over_hospitals=over_hospitals))
        return figures

    def differences(self) -> list[DifferenceFigure]:
        baseline = self.experiment.baseline
        figures = []
        for arm in self.experiment.arms[1:]:
            totals = self.arm_totals(arm) - self.arm_totals(baseline)
            estimate, over_hospitals = self.estimate(totals, self.measure.difference_scale, arm, baseline)
            p_value, test = self._test(totals, arm)
            figures.append(
                DifferenceFigure(
                    **self.common(arm=arm, baseline=baseline),
                    patients=len(self.weights),
                    items=self.items,
                    estimate=estimate,
                    over_hospitals=over_hospitals,
                    over_seeds=self._over_seeds(arm),
                    p_value=p_value,
                    test=test,
                )
            )
        return figures

    def _over_seeds(self, arm: str) -> Estimate | None:
        if self.lack:
            return None
        return intervals.seed_interval(
            self.totals[self.models_of(arm)],
            self.totals[self.models_of(self.experiment.baseline)],
            self.weights,
            self.measure.difference_scale,
        )

    def _test(self, totals: FloatArray, arm: str) -> tuple[float, str]:
        if self.lack or self.group.kind not in (ALL, SIZE):
            return math.nan, ""
        if self.measure.weighs_patients_alike and len(totals) >= intervals.SMALLEST_BOOTSTRAP:
            return float(paired_tests.wilcoxon_p_value(totals)), "Wilcoxon signed-rank"
        p_value = paired_tests.sign_flip_p_value(
            totals,
            draws=self.experiment.statistics.draws,
            rng=self.rng("test", arm),
            is_of_hits=self.measure.scale.is_of_hits,
        )
        return float(p_value), "permutation"

    def seeds(self) -> list[SeedFigure]:
        return self.seed_figures([float(pooled_mean(row, self.weights)) for row in self.totals])


class _Areas(_Question):
    """The area under the ROC curve."""

    def __init__(self, study: Study, experiment: Experiment, label: str, measure: Measure, group: Group) -> None:
        super().__init__(study, experiment, label, measure, group)
        table = select(study.cases, self.in_group(study.cases))
        table = select(table, (table["reference_tumors"] > 0) | table["is_healthy"])
        self.patients, names = pd.factorize(table["patient"])
        self.count = len(names)
        self.items = len(table) // len(self.models)
        self.areas: list[AreaUnderCurve | None] = []
        self.lack = "" if table["patient_score"].notna().to_numpy().all() else NO_PROBABILITIES
        for model in self.models if not self.lack else ():
            is_own = table["model"] == model
            own = select(table, is_own)
            is_positive = own["reference_tumors"].to_numpy() > 0
            scores = own["patient_score"].to_numpy()
            patients = self.patients[is_own.to_numpy()]
            self.areas.append(roc.area_under_curve(scores, is_positive, patients, self.count))
        if not self.lack:
            self.lack = self._lack()

    def _lack(self) -> str:
        if not self.areas or self.areas[0] is None:
            return EMPTY
        smaller = min(self.areas[0].positives, self.areas[0].negatives)
        needed = self.experiment.statistics.minimum_patients
        if smaller >= needed:
            return ""
        return f"{TOO_FEW}: {_count(smaller, 'patient')} with or without tumours; {needed} of both needed"

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

    def arms(self) -> list[ArmFigure]:
        return [
            ArmFigure(
                **self.common(arm=arm, patients=self.count, items=self.items),
                estimate=replace(NOT_MEASURED, method=self.lack) if self.lack else roc.area_interval(self._area(arm)),
            )
            for arm in self.experiment.arms
        ]

    def differences(self) -> list[DifferenceFigure]:
        figures = []
        for arm in self.experiment.arms[1:]:
            estimate, p_value, test = replace(NOT_MEASURED, method=self.lack), math.nan, ""
            if not self.lack:
                areas = self._area(arm), self._area(self.experiment.baseline)
                (estimate, p_value), test = roc.area_difference(*areas), "clustered DeLong"
            figures.append(
                DifferenceFigure(
                    **self.common(arm=arm, baseline=self.experiment.baseline),
                    patients=self.count,
                    items=self.items,
                    estimate=estimate,
                    p_value=p_value,
                    test=test,
                )
            )
        return figures

    def seeds(self) -> list[SeedFigure]:
        return [] if self.lack else self.seed_figures([area.value if area else math.nan for area in self.areas])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
