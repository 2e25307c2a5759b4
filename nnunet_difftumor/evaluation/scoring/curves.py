"""Curves over thresholds: free-response ROC, average precision, patient ROC, specificity on healthy scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from nnunet_difftumor.evaluation.statistics.intervals import Estimate

FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per case at which the sensitivity is reported."""

FloatArray = NDArray[np.float64]


def wilson_interval(successes: int, trials: int) -> Estimate:
    """Share with Wilson's 95% interval.

    Args:
        successes: How often it worked.
        trials: How often it was tried; independent.

    Returns:
        Share and interval; NaN without trials.
    """
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan, "empty")
    ends = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Estimate(successes / trials, float(ends.low), float(ends.high), "Wilson")


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Sensitivity against false positives when only predicted tumours from some score on are kept.

    Attributes:
        threshold: Scores in descending order, infinity first. Shape (K,).
        true_positives: Reference tumours whose pair is kept. Shape (K,).
        false_positives: Predicted tumours without a pair that are kept. Shape (K,).
        tumors: Number of reference tumours.
    """

    threshold: FloatArray
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    tumors: int
    cases: int

    @property
    def sensitivity(self) -> FloatArray:
        """Share of the reference tumours that are found. Shape (K,)."""
        return self.true_positives / self.tumors if self.tumors else np.full(len(self.threshold), math.nan)

    @property
    def false_positives_per_case(self) -> FloatArray:
        """False positives per case. Shape (K,)."""
        return self.false_positives / self.cases

    def sensitivity_at(self, rate: float) -> float:
        """Largest sensitivity with at most `rate` false positives per case."""
        return float(self.sensitivity[self.false_positives_per_case <= rate][-1])

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall steps: precision at each threshold times the recall it adds."""
        if not self.tumors:
            return math.nan
        kept = self.true_positives + self.false_positives
        precision = self.true_positives / np.maximum(kept, 1)
        return float((np.diff(self.sensitivity) * precision[1:]).sum())


def froc_curve(pair_scores: Sequence[float], false_scores: Sequence[float], tumors: int, cases: int) -> FrocCurve:
    """Trace the free-response curve.

    Pairs are not made anew at each threshold: a pair whose prediction falls below it is lost.

    Args:
        pair_scores: Score of the pair of each reference tumour that has one.
        false_scores: Score of each predicted tumour without a pair.
        tumors: Number of reference tumours.
    """
    pairs, wrong = np.sort(np.asarray(pair_scores, dtype=float)), np.sort(np.asarray(false_scores, dtype=float))
    threshold = np.concatenate([[math.inf], np.unique(np.concatenate([pairs, wrong]))[::-1]])
    return FrocCurve(
        threshold=threshold,
        true_positives=len(pairs) - np.searchsorted(pairs, threshold, side="left"),
        false_positives=len(wrong) - np.searchsorted(wrong, threshold, side="left"),
        tumors=tumors,
        cases=cases,
    )


@dataclass(frozen=True, eq=False)
class PatientCurve:
    """Sensitivity and specificity of scans that count as positive from some value on.

    Attributes:
        threshold: Values in descending order, infinity first. Shape (K,).
        sensitivity: Share of scans with a tumour that are positive; NaN without any. Shape (K,).
        specificity: Share of healthy scans that are negative; NaN without any. Shape (K,).
    """

    threshold: FloatArray
    sensitivity: FloatArray
    specificity: FloatArray


def patient_curve(with_tumor: Sequence[float], healthy: Sequence[float], lowest: float = -math.inf) -> PatientCurve:
    """Trace sensitivity and specificity over all values.

    Args:
        with_tumor: Value of each scan with a tumour.
        lowest: Values of `lowest` or less never make a scan positive.
    """
    sick, well = np.sort(np.asarray(with_tumor, dtype=float)), np.sort(np.asarray(healthy, dtype=float))
    values = np.unique(np.concatenate([sick, well]))
    threshold = np.concatenate([[math.inf], values[values > lowest][::-1]])
    return PatientCurve(threshold, 1.0 - _share_below(sick, threshold), _share_below(well, threshold))


def _share_below(values: FloatArray, threshold: FloatArray) -> FloatArray:
    if not len(values):
        return np.full(len(threshold), math.nan)
    return np.searchsorted(values, threshold, side="left") / len(values)
