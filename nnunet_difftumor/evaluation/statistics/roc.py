"""The area under the ROC curve, its interval and its difference between arms."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
        of_positives, of_negatives: Part of each patient in value - expectation, by kind of scan. Shapes (P,).
        positives, negatives: Number of patients with such scans.
    """

    value: float
    of_positives: FloatArray
    of_negatives: FloatArray
    positives: int
    negatives: int

    @property
    def critical_value(self) -> float:
        """Student's, with the degrees of freedom of the smaller group."""
        return float(student_critical_value(np.ones(min(self.positives, self.negatives))))


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
        scores: Score of each scan. Shape (N,).
        is_positive: True for scans with a tumour. Shape (N,).
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
    return AreaUnderCurve(value, parts[0], parts[1], *sizes)


def area_interval(area: AreaUnderCurve) -> Estimate:
    """The area with an interval over patients on the scale of shares."""
    variance = _area_variance(area.of_positives, area.of_negatives, area)
    spread = area.value * (1 - area.value)
    unit_variance = variance / spread if variance > 0 and spread > 0 else 1 / min(area.positives, area.negatives)
    low, high = SHARE.ends_around(np.asarray(area.value), np.asarray(unit_variance), np.asarray(area.critical_value))
    return Estimate(area.value, float(low), float(high), "clustered DeLong, Student's t")


def area_difference(area: AreaUnderCurve, baseline: AreaUnderCurve) -> tuple[Estimate, float]:
    """Paired difference of two areas on the same scans, with its p-value by Student's t.

    Returns:
        The difference with its interval, and the two-sided p-value; neither where the areas differ though no patient
        contributes to an error.
    """
    value = area.value - baseline.value
    variance = _area_variance(
        area.of_positives - baseline.of_positives, area.of_negatives - baseline.of_negatives, area
    )
    if variance <= 0:
        reason = same_everywhere(value)
        return Estimate(value, math.nan, math.nan, reason), 1.0 if reason == NO_DIFFERENCE else math.nan
    error = math.sqrt(variance)
    freedom = min(area.positives, area.negatives) - 1
    p_value = float(2 * stats.t.sf(abs(value) / error, freedom))
    half = area.critical_value * error
    low, high = SHARE_DIFFERENCE.bounded(np.asarray([value - half, value + half]))
    return Estimate(value, float(low), float(high), "clustered DeLong, Student's t"), p_value


def _area_variance(of_positives: FloatArray, of_negatives: FloatArray, area: AreaUnderCurve) -> float:
    positives, negatives = area.positives, area.negatives
    both = max(len(of_positives), 2)
    return float(
        positives / (positives - 1) * (of_positives**2).sum()
        + negatives / (negatives - 1) * (of_negatives**2).sum()
        + 2 * both / (both - 1) * (of_positives * of_negatives).sum()
    )
