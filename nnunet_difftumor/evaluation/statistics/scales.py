"""What a measure is made of: shares, counts and their differences, with their ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class Scale:
    """How the variance of a mean depends on the mean, and what is added against too narrow intervals.

    Attributes:
        ends: Ends of the scale at which a part of a patient is added before the interval is drawn, so that an
            arm that found everything in few patients does not get an interval of no width (Agresti and Coull, 1998;
            for differences Bonett and Price, 2012).
        end_weight: How much of a patient with one tumour, at each end.
        is_of_hits: What is averaged is yes or no, whose variance is known from the mean as in Wilson's interval;
            otherwise it is estimated, at the cost of one degree of freedom.
        largest: Differences are between -largest and largest; an interval ends there.
    """

    name: str
    ends: tuple[float, ...] = ()
    end_weight: float = 0.0
    is_of_hits: bool = False
    largest: float = math.inf

    def lacks_spread(self, totals: FloatArray, weights: FloatArray) -> bool:
        """Whether all units differ by the same amount, which says nothing about how much others would."""
        is_of_amounts = self.name == "difference" and not self.is_of_hits
        return is_of_amounts and np.allclose(totals, pooled_mean(totals, weights) * weights, rtol=0, atol=1e-12)

    def variance(self, mean: FloatArray) -> FloatArray:
        """Variance of one patient as a function of the mean, up to a factor."""
        if self.name == "share":
            return np.clip(mean * (1.0 - mean), 0.0, None)
        return np.clip(mean, 0.0, None) if self.name == "count" else np.ones_like(mean)

    def ends_around(
        self, mean: FloatArray, unit_variance: FloatArray, critical: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Solve (mean - m)^2 = critical^2 * unit_variance * variance(m) for the two ends m."""
        square = critical**2 * unit_variance
        if self.name == "share":
            centre = (mean + square / 2) / (1 + square)
            half = np.sqrt(square * np.clip(mean * (1 - mean), 0, None) + square**2 / 4) / (1 + square)
            return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)
        if self.name == "count":
            half = np.sqrt(square * mean + square**2 / 4)
            return np.clip(mean + square / 2 - half, 0.0, None), mean + square / 2 + half
        return self.bounded(mean - np.sqrt(square)), self.bounded(mean + np.sqrt(square))

    def bounded(self, difference: FloatArray) -> FloatArray:
        """Move a difference that no data could have to the end of the scale."""
        return np.clip(difference, -self.largest, self.largest)


SHARE = Scale("share", ends=(0.0, 1.0), end_weight=0.125)
"""Means of values in [0, 1]: Dice, surface Dice."""

HIT_SHARE = Scale("share", ends=(0.0, 1.0), end_weight=0.125, is_of_hits=True)
"""Shares of yes or no: sensitivity, specificity."""

COUNT = Scale("count")
"""Means of counts: false positives."""

DIFFERENCE = Scale("difference")
"""Differences of means."""

SHARE_DIFFERENCE = Scale("difference", largest=1.0)
"""Differences of means of values in [0, 1]."""

HIT_DIFFERENCE = Scale("difference", ends=(-1.0, 1.0), end_weight=0.25, is_of_hits=True, largest=1.0)
"""Differences of shares of yes or no: an eighth of a patient at either end in either arm."""


def pooled_mean(totals: FloatArray, weights: FloatArray) -> FloatArray:
    """Ratio of the two sums. Shapes (..., P) and (..., P); NaN without patients."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals, dtype=float).sum(axis=-1) / np.asarray(weights, dtype=float).sum(axis=-1)
