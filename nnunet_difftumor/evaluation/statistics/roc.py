"""The area under the ROC curve, its interval and its difference between arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunet_difftumor.evaluation.statistics.intervals import (
    NO_DIFFERENCE,
    Estimate,
    same_everywhere,
    student_critical_value,
)
from nnunet_difftumor.evaluation.statistics.scales import SHARE, SHARE_DIFFERENCE, FloatArray


@dataclass(frozen=True, eq=False)
class AreaUnderCurve:
    """Area under the ROC curve of patients' scores, and what each patient contributes to its error.

    Attributes:
        parts: Part of each patient in value - expectation, by scans with a tumour and healthy ones. Shape (2, P).
        positives, negatives: Number of patients with such scans.
    """

    value: float
    parts: FloatArray
    positives: int
    negatives: int

    @property
    def smaller(self) -> int:
        """Patients of the smaller group, which give the degrees of freedom."""
        return min(self.positives, self.negatives)

    @property
    def critical_value(self) -> float:
        """Student's t."""
        return float(student_critical_value(np.ones(self.smaller)))

    @property
    def variance(self) -> float:
        """Squared standard error."""
        units = np.array([self.positives, self.negatives, max(self.parts.shape[1], 2)])
        squares = [*(self.parts**2).sum(axis=1), 2 * self.parts.prod(axis=0).sum()]
        return float((units / (units - 1) * squares).sum())


def auc(positives: FloatArray, negatives: FloatArray) -> float:
    """Probability that a positive scores above a negative, ties counted one half; NaN without both. Shapes (N,)."""
    if not len(positives) or not len(negatives):
        return math.nan
    wins = stats.mannwhitneyu(positives, negatives, method="asymptotic").statistic
    return float(wins) / (len(positives) * len(negatives))


def clustered_auc(scores: FloatArray, is_positive: NDArray[np.bool_], patients: NDArray[np.integer]) -> Estimate:
    """Area under the curve with its interval over patients (see `area_under_curve` and `area_interval`).

    Returns:
        The area; without an interval where fewer than two patients have positives, or negatives.
    """
    area = area_under_curve(scores, is_positive, patients, int(patients.max(initial=-1)) + 1)
    if area is not None:
        return area_interval(area)
    value = auc(scores[is_positive], scores[~is_positive])
    return Estimate(value, math.nan, math.nan, "fewer than two patients")


def area_under_curve(
    scores: FloatArray, is_positive: NDArray[np.bool_], patients: NDArray[np.integer], count: int
) -> AreaUnderCurve | None:
    """Area under the curve with patients as clusters of scans (Obuchowski 1997; DeLong 1988 for one scan each).

    Args:
        is_positive: True for scans with a tumour. Shape (N,), as of their scores.
        patients: Number of each scan's patient, below `count`. Shape (N,).

    Returns:
        The area; None with fewer than two patients of either kind.
    """
    kinds = (is_positive, ~is_positive)
    sizes = [len(np.unique(patients[kind])) for kind in kinds]
    if min(sizes) < 2:
        return None
    ranks, value = stats.rankdata(scores), auc(scores[is_positive], scores[~is_positive])
    parts = []
    for kind, other in (kinds, kinds[::-1]):
        below = (ranks[kind] - stats.rankdata(scores[kind])) / other.sum()  # share of the other kind that is lower
        wins = below if kind is is_positive else 1.0 - below
        parts.append(np.bincount(patients[kind], weights=(wins - value) / kind.sum(), minlength=count))
    return AreaUnderCurve(value, np.array(parts), *sizes)


def mean_area(areas: Sequence[AreaUnderCurve]) -> AreaUnderCurve:
    """Mean of areas on the same scans, such as those of an arm's trainings."""
    value = float(np.mean([area.value for area in areas]))
    return replace(areas[0], value=value, parts=np.mean([area.parts for area in areas], axis=0))


def area_interval(area: AreaUnderCurve) -> Estimate:
    """The area with an interval over patients on the scale of shares."""
    variance, spread = area.variance, area.value * (1 - area.value)
    unit_variance = variance / spread if variance > 0 and spread > 0 else 1 / area.smaller
    low, high = SHARE.ends_around(np.asarray(area.value), np.asarray(unit_variance), np.asarray(area.critical_value))
    return Estimate(area.value, float(low), float(high), "clustered DeLong, Student's t")


def area_difference(area: AreaUnderCurve, baseline: AreaUnderCurve) -> tuple[Estimate, float]:
    """Paired difference of two areas on the same scans, with its p-value by Student's t.

    Returns:
        The difference with its interval, and the two-sided p-value; neither where the areas differ though no patient
        contributes to an error.
    """
    value = area.value - baseline.value
    variance = replace(area, parts=area.parts - baseline.parts).variance
    if variance <= 0:
        reason = same_everywhere(value)
        return Estimate(value, math.nan, math.nan, reason), 1.0 if reason == NO_DIFFERENCE else math.nan
    error = math.sqrt(variance)
    p_value = float(2 * stats.t.sf(abs(value) / error, area.smaller - 1))
    half = area.critical_value * error
    low, high = SHARE_DIFFERENCE.bounded(np.asarray([value - half, value + half]))
    return Estimate(value, float(low), float(high), "clustered DeLong, Student's t"), p_value
