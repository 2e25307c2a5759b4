"""Tests of paired differences, and Holm's correction for many of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from nnunet_difftumor.evaluation.statistics.intervals import CONFIDENCE, LARGEST_RATE
from nnunet_difftumor.evaluation.statistics.scales import FloatArray


def sign_flip_p_value(
    differences: FloatArray, *, draws: int, rng: np.random.Generator, is_of_hits: bool = False
) -> FloatArray:
    """Two-sided permutation test: under no effect, the two arms of a patient could be swapped.

    A patient's tumours are swapped together. All sign patterns are tried if there are no more than `draws`.
    Patterns as extreme as what was seen count one half (mid-p): few patients differ in whether a tumour was
    found, and without it the test would call an effect in 0.3% of studies of 10 patients instead of 5%. How many
    differ is left to chance then, but not for amounts such as Dice, where 5 or 6 patients with mid-p give 6.3%. So
    their p-value is never less than five sixths of the one that counts such patterns whole: at most 6% of studies
    without an effect are called one, whatever the amounts.

    Args:
        differences: Difference of the two arms, summed in each patient. Shape (..., P).
        is_of_hits: The differences are of yes or no (tumours found, scans without a false alarm).

    Returns:
        p-value. Shape (...); 1 where no patient differs.
    """
    differences = np.asarray(differences, dtype=float)
    count = differences.shape[-1]
    is_exact = 2**count <= draws
    if is_exact:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(draws, count))
    observed = np.abs(differences.sum(axis=-1))[..., None]
    tolerance = 1e-9 * np.abs(differences).sum(axis=-1)[..., None]
    flipped = np.abs(differences @ signs.T)
    beyond = (flipped > observed + tolerance).sum(axis=-1)
    as_extreme = (flipped >= observed - tolerance).sum(axis=-1) - beyond
    seen = 0 if is_exact else 1  # the pattern that was seen is one of those that are tried
    patterns = len(signs) + seen
    half, whole = (beyond + (as_extreme + seen) / 2) / patterns, (beyond + as_extreme + seen) / patterns
    p_value = half if is_of_hits else np.maximum(half, whole * (1 - CONFIDENCE) / LARGEST_RATE)
    return np.where(np.any(differences, axis=-1), p_value, 1.0)


def wilcoxon_p_value(differences: FloatArray) -> FloatArray:
    """Two-sided Wilcoxon signed-rank test of patients' differences of shape (..., P), zeros ranked as by Pratt (1959).

    Returns:
        p-value. Shape (...); 1 where no patient differs.
    """
    has_any = np.any(differences, axis=-1)
    tested = np.where(has_any[..., None], differences, 1.0)
    _, p_value = tuple(stats.wilcoxon(tested, axis=-1, zero_method="pratt", method="approx"))
    return np.where(has_any, np.asarray(p_value), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of one family by Holm's step-down method (1979); NaN does not count and stays NaN."""
    values = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(values), np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()
