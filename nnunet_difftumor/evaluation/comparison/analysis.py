"""From scores to figures: every arm, every pair of arms, in all patients and in groups of them."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from nnunet_difftumor.evaluation.comparison import measures
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan, StatisticsSettings
from nnunet_difftumor.evaluation.comparison.inputs.scores import StudyScores
from nnunet_difftumor.evaluation.comparison.measures import Measure, measure_of
from nnunet_difftumor.evaluation.comparison.text import counted
from nnunet_difftumor.evaluation.scoring.rules import bins_of
from nnunet_difftumor.evaluation.scoring.tables import Frame
from nnunet_difftumor.evaluation.statistics import intervals, paired_tests, roc
from nnunet_difftumor.evaluation.statistics.intervals import NOT_MEASURED, Estimate
from nnunet_difftumor.evaluation.statistics.roc import AreaUnderCurve
from nnunet_difftumor.evaluation.statistics.scales import FloatArray, pooled_mean

ALL, SIZE, HOSPITAL = "all", "size", "hospital"


@dataclass(frozen=True)
class Group:
    """A group of patients or tumours; its kind is "all", "size", "hospital", "age", "sex", "phase" or "scanner"."""

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
    measure: Measure
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

    @property
    def name(self) -> str:
        """The arm, or "arm minus baseline"."""
        return f"{self.arm} minus {self.baseline}" if self.baseline else self.arm


@dataclass(frozen=True, eq=False)
class Findings:
    """All figures.

    Attributes:
        arms: Figures of arms, by label, group, measure and arm.
        differences: Figures of arms minus the baseline, by measure, label, group and arm.
        seeds: One row for each measure and training of arms with several, with the columns of seeds.csv.
    """

    arms: tuple[Finding, ...]
    differences: tuple[Finding, ...]
    seeds: Frame

    def shown(self, label: str, measure: Measure) -> list[Finding]:
        """Figures of a measure in all groups: differences, or those of the only arm."""
        return [each for each in self.differences or self.arms if (each.label, each.measure) == (label, measure)]


def analyze(study: StudyScores, experiment: ComparisonPlan) -> Findings:
    """Compute all figures."""
    figures: list[Finding] = []
    seeds: list[tuple[Any, ...]] = []
    for label, group in itertools.product(study.labels, _groups(study, experiment)):
        for measure in measures_of(group.kind, experiment):
            question = (_Areas if measure is measures.AUROC else _Means)(study, experiment, label, measure, group)
            figures += _figures(question)
            if group == EVERYONE:
                seeds += _seeds(question)
    return Findings(
        arms=tuple(each for each in figures if not each.baseline),
        differences=tuple(_adjust([each for each in figures if each.baseline])),
        seeds=pd.DataFrame(seeds, columns=["label", "measure", "arm", "model", "seed", "value"]),
    )


def _figures(question: _Means | _Areas) -> Iterator[Finding]:
    """All arms, and all but the baseline minus it."""
    baseline, *others = question.experiment.arms
    for arm, compared_with in (*((arm, "") for arm in (baseline, *others)), *((arm, baseline) for arm in others)):
        yield Finding(
            label=question.label,
            measure=question.measure,
            group=question.group,
            arm=arm,
            baseline=compared_with,
            patients=question.patients,
            items=question.items,
            **question.figure(arm, compared_with),
        )


def _seeds(question: _Means | _Areas) -> Iterator[tuple[Any, ...]]:
    """Rows of seeds.csv, of arms with several trainings."""
    values = question.values_of_models()
    for arm in question.experiment.arms:
        models = question.experiment.models_of(arm)
        if values and len(models) > 1:
            for model in models:
                value = values[question.models[model.name]]
                yield question.label, question.measure.key, arm, model.name, model.seed, value


def _groups(study: StudyScores, experiment: ComparisonPlan) -> tuple[Group, ...]:
    names = {SIZE: [name for name, _, _ in bins_of(experiment.statistics.size_bins_mm, "mm")]}
    if len(experiment.hospitals) > 1:
        names[HOSPITAL] = [hospital.name for hospital in experiment.hospitals]
    names |= {kind: groups_of(study, experiment, kind) for kind in study.group_kinds}
    return (EVERYONE, *(Group(kind, name) for kind, own in names.items() for name in own))


def groups_of(study: StudyScores, experiment: ComparisonPlan, kind: str) -> list[str]:
    """Names of the groups of a kind that the metadata know: ages by age, others by name."""
    first = [name for name, _, _ in bins_of(experiment.statistics.age_bins, "years")] if kind == "age" else []
    return [*first, *sorted(set(study.cases[kind]) - set(first))]


def measures_of(kind: str, experiment: ComparisonPlan) -> tuple[Measure, ...]:
    """Measures that are shown in groups of a kind, in their order; the primary one is among them where it can be."""
    if kind in (ALL, SIZE):
        return measures.MEASURES if kind == ALL else measures.SIZE_MEASURES
    primary, shown = measure_of(experiment.primary), measures.SUBGROUP_MEASURES
    return shown if primary in shown else (primary, *shown)


def is_of_size(tumors: Frame, name: str, settings: StatisticsSettings) -> Any:
    """Say of every tumour whether its diameter is in a size bin."""
    ends_mm = {name: ends for name, *ends in bins_of(settings.size_bins_mm, "mm")}[name]
    return tumors[f"{settings.size_diameter}_diameter_mm"].between(*ends_mm, inclusive="left")


def _adjust(differences: Sequence[Finding]) -> Iterator[Finding]:
    """Holm over all arms, organs and size bins of a measure."""
    for measure in dict.fromkeys(each.measure for each in differences):
        family = [each for each in differences if each.measure == measure]
        adjusted = paired_tests.holm([each.p_value for each in family])
        yield from (replace(each, p_holm=value) for each, value in zip(family, adjusted, strict=True))


@dataclass(eq=False)
class _Question:
    """One measure of one label in one group: what both kinds of measure share.

    Both have `patients` and `items`, `lack` (why there is no interval and no test; empty if there is), the `figure` of
    an arm or of its difference to a baseline by fields of `Finding`, and `values_of_models`, empty if nothing can be
    measured.
    """

    study: StudyScores
    experiment: ComparisonPlan
    label: str
    measure: Measure
    group: Group

    def __post_init__(self) -> None:
        self.models = {model.name: number for number, model in enumerate(self.experiment.models)}

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
            return keep & is_of_size(table, self.group.name, self.experiment.statistics)
        return keep if self.group.kind == ALL else keep & (table[self.group.kind] == self.group.name)


class _Means(_Question):
    """A measure that is a ratio of sums over patients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        table = self._rows()
        of_patients, names = pd.factorize(table["patient"])
        self.patients = len(names)
        flat = table["model"].map(self.models).to_numpy(dtype=int) * self.patients + of_patients
        cells = len(self.models) * self.patients
        sums = np.bincount(flat, weights=table[self.measure.column].astype(float), minlength=cells)
        self.totals: FloatArray = np.asarray(sums, dtype=float).reshape(len(self.models), -1)  # (M, P)
        self.weights = np.bincount(of_patients) / len(self.models)  # (P,): the same scans and tumours for every model
        self.items = int(self.weights.sum())
        if self.measure.weighs_patients_alike:
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
        counts = [(self.patients, "patient", settings.minimum_patients)]
        if self.measure.of == measures.TUMORS:
            counts.insert(0, (self.items, "tumour", settings.minimum_tumors))
        needs = [f"{least} {noun}s" for count, noun, least in counts if count < least]
        found = " in ".join(counted(count, noun) for count, noun, _ in counts)
        return f"{measures.TOO_FEW}: {found}; {' and '.join(needs)} needed" if needs else ""

    def figure(self, arm: str, baseline: str) -> dict[str, Any]:
        arms = [name for name in (arm, baseline) if name]
        of_arms = [self.totals[self.models_of(name)] for name in arms]  # of each (S, P)
        totals, *of_baseline = (of_seeds.mean(axis=0) for of_seeds in of_arms)
        totals = totals - sum(of_baseline)
        if self.lack:
            value = float(pooled_mean(totals, self.weights)) if self.group == EVERYONE else math.nan
            return {"estimate": Estimate(value, math.nan, math.nan, self.lack)}
        data, draws = (totals, self.weights), self.experiment.statistics.draws
        scale = self.measure.difference_scale if baseline else self.measure.scale
        found: dict[str, Any] = {"estimate": intervals.patient_interval(*data, scale, draws=draws, rng=self.rng(*arms))}
        if self.group.kind != HOSPITAL:
            rng = self.rng("hospitals", *arms)
            found["over_hospitals"] = intervals.hospital_interval(*data, self.hospitals, scale, draws=draws, rng=rng)
        if baseline:
            found["over_seeds"] = intervals.seed_interval(of_arms[0], of_arms[1], self.weights, scale)
            found |= self._test(totals, arm)
        return found

    def _test(self, totals: FloatArray, arm: str) -> dict[str, Any]:
        if self.group.kind not in (ALL, SIZE):
            return {}
        if self.measure.weighs_patients_alike and len(totals) >= intervals.SMALLEST_BOOTSTRAP:
            return {"p_value": float(paired_tests.wilcoxon_p_value(totals)), "test": "Wilcoxon signed-rank"}
        draws, is_of_hits = self.experiment.statistics.draws, self.measure.scale.is_of_hits
        rng = self.rng("test", arm)
        p_value = paired_tests.sign_flip_p_value(totals, draws=draws, rng=rng, is_of_hits=is_of_hits)
        return {"p_value": float(p_value), "test": "permutation"}

    def values_of_models(self) -> list[float]:
        return [float(pooled_mean(row, self.weights)) for row in self.totals]


class _Areas(_Question):
    """The area under the ROC curve."""

    def __post_init__(self) -> None:
        super().__post_init__()
        table = self.study.cases[self.in_group(self.study.cases)]
        table = table[(table["reference_tumors"] > 0) | table["is_healthy"]]
        of_patients, names = pd.factorize(table["patient"])
        self.patients, self.items = len(names), len(table) // len(self.models)
        self.areas: list[AreaUnderCurve] = []
        if not table["patient_score"].notna().all():
            self.lack = measures.NO_PROBABILITIES
            return
        for model in self.models:
            is_own = (table["model"] == model).to_numpy()
            scores, is_ill = table["patient_score"].to_numpy(), (table["reference_tumors"] > 0).to_numpy()
            area = roc.area_under_curve(scores[is_own], is_ill[is_own], of_patients[is_own], self.patients)
            self.areas += [area] if area is not None else []  # all or none: the scans are the same for every model
        self.lack = self._lack()

    def _lack(self) -> str:
        if not self.areas:
            return measures.EMPTY
        smaller, needed = self.areas[0].smaller, self.experiment.statistics.minimum_patients
        if smaller >= needed:
            return ""
        return f"{measures.TOO_FEW}: {counted(smaller, 'patient')} with or without tumours; {needed} of both needed"

    def figure(self, arm: str, baseline: str) -> dict[str, Any]:
        if self.lack:
            return {"estimate": replace(NOT_MEASURED, method=self.lack)}
        area, *of_baseline = (
            roc.mean_area([self.areas[number] for number in self.models_of(name)]) for name in (arm, baseline) if name
        )
        if not of_baseline:
            return {"estimate": roc.area_interval(area)}
        estimate, p_value = roc.area_difference(area, *of_baseline)
        return {"estimate": estimate, "p_value": p_value, "test": "clustered DeLong"}

    def values_of_models(self) -> list[float]:
        return [] if self.lack else [area.value for area in self.areas]
