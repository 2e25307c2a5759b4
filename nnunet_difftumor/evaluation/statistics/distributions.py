"""Pooled statistics over patients, with intervals that resample patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

FloatArray = NDArray[np.floating]

_BIN_HU = 0.5


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval over patients; NaN where it cannot be said.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Return plain values; NaN becomes None."""
        return {name: or_none(getattr(self, name)) for name in ("value", "low", "high")}


NOT_MEASURED = Interval(math.nan, math.nan, math.nan)


def bootstrap(
    by_patient: Mapping[str, FloatArray],
    statistic: Callable[[FloatArray], float],
    draws: int,
    rng: np.random.Generator,
) -> Interval:
    """Percentile bootstrap that resamples patients with all that belongs to them.

    Args:
        by_patient: Observations of each patient. Shape (N_patient, ...), trailing axes alike.
        statistic: Takes the observations of the patients together, shape (N, ...).

    Returns:
        Value with the 2.5 and 97.5 percentile; the ends are NaN with fewer than two patients.
    """
    groups = [np.asarray(values) for values in by_patient.values() if len(values)]
    if not groups:
        return NOT_MEASURED
    value = statistic(np.concatenate(groups))
    if len(groups) < 2:
        return Interval(value, math.nan, math.nan)
    drawn = [
        statistic(np.concatenate([groups[index] for index in rng.integers(len(groups), size=len(groups))]))
        for _ in range(draws)
    ]
    return Interval(value, *_ends(np.asarray(drawn)))


@dataclass(frozen=True, eq=False)
class HuDistribution:
    """Distribution of HU in which every patient weighs the same.

    Attributes:
        edges_hu: Upper ends of the bins, 0.5 HU apart. Shape (B,).
        cumulative: Share of each patient's voxels up to each end. Shape (patients, B).
        patients: Identifiers, in the order of `cumulative`.
    """

    edges_hu: FloatArray
    cumulative: FloatArray
    patients: tuple[str, ...]


def measure_distribution(by_patient: Mapping[str, Sequence[FloatArray]], window_hu: Sequence[float]) -> HuDistribution:
    """Measure the distribution of in-mask values.

    Args:
        by_patient: Arrays of values of each patient, in HU; every array weighs the same within a patient.
        window_hu: Lowest and highest value, in HU; values are limited to it.
    """
    edges = np.arange(window_hu[0], window_hu[1] + _BIN_HU, _BIN_HU)
    rows, names = [], []
    for name, arrays in by_patient.items():
        shares = [_cumulative(np.clip(values, window_hu[0], window_hu[1]), edges) for values in arrays if len(values)]
        if shares:
            rows.append(np.mean(shares, axis=0))
            names.append(name)
    return HuDistribution(edges, np.array(rows).reshape(len(rows), len(edges)), tuple(names))


def wasserstein_hu(first: FloatArray, second: FloatArray) -> float:
    """Wasserstein distance of two cumulative distributions on the bins of `HuDistribution`.

    Args:
        first: Cumulative shares. Shape (B,).
        second: Cumulative shares. Shape (B,).

    Returns:
        Distance in HU.
    """
    return float(np.abs(first - second).sum() * _BIN_HU)


def distance_to_real(made: HuDistribution, real: HuDistribution, draws: int, rng: np.random.Generator) -> Interval:
    """Wasserstein distance between two pooled distributions; patients are resampled in both at once.

    Returns:
        Distance in HU.
    """
    if not made.patients or not real.patients:
        return NOT_MEASURED
    value = wasserstein_hu(made.cumulative.mean(axis=0), real.cumulative.mean(axis=0))
    patients = sorted(set(made.patients) | set(real.patients))
    if len(patients) < 2:
        return Interval(value, math.nan, math.nan)
    counts = rng.multinomial(len(patients), np.full(len(patients), 1.0 / len(patients)), size=draws)  # (K, P)
    pooled = []
    for side in (made, real):
        chosen = counts[:, [patients.index(name) for name in side.patients]].astype(np.float64)
        total = chosen.sum(axis=1, keepdims=True)
        pooled.append(np.where(total > 0, chosen @ side.cumulative / np.maximum(total, 1.0), np.nan))
    return Interval(value, *_ends(np.abs(pooled[0] - pooled[1]).sum(axis=1) * _BIN_HU))


def split_half_distance(real: HuDistribution, halves: int, rng: np.random.Generator) -> Interval:
    """Wasserstein distance between random halves of the patients: what two groups of real tumours differ by.

    Args:
        halves: Number of random splits.

    Returns:
        Mean distance in HU with the 2.5 and 97.5 percentile of the splits; NaN with one patient.
    """
    count = len(real.patients)
    if count < 2:
        return NOT_MEASURED
    distances = []
    for _ in range(halves):
        order = rng.permutation(count)
        first, second = order[: count // 2], order[count // 2 :]
        distances.append(wasserstein_hu(real.cumulative[first].mean(axis=0), real.cumulative[second].mean(axis=0)))
    return Interval(float(np.mean(distances)), *_ends(np.asarray(distances)))


def share_inside(values: FloatArray, reference: FloatArray) -> float:
    """Share of values between the 2.5 and 97.5 percentile of a reference, linearly interpolated.

    Args:
        values: Values. Shape (N,).
        reference: Reference values. Shape (M,).

    Returns:
        Share in [0, 1]; NaN if either is empty.
    """
    if len(values) == 0 or len(reference) == 0:
        return math.nan
    low, high = np.percentile(reference, [2.5, 97.5])
    return float(np.mean((values >= low) & (values <= high)))


def slope(pairs: FloatArray) -> float:
    """Slope of the least-squares line of achieved over requested values.

    Args:
        pairs: Requested and achieved values. Shape (N, 2).

    Returns:
        Slope; NaN if fewer than two requests differ.
    """
    requested = pairs[:, 0] - pairs[:, 0].mean()
    spread = float(requested @ requested)
    return float(requested @ pairs[:, 1] / spread) if spread > 0 else math.nan


def spearman(pairs: FloatArray) -> float:
    """Spearman's rank correlation of requested and achieved values.

    Args:
        pairs: Requested and achieved values. Shape (N, 2).

    Returns:
        Correlation in [-1, 1]; NaN if one side is constant.
    """
    ranks = np.stack([rankdata(pairs[:, 0]), rankdata(pairs[:, 1])])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    return float(ranks[0] @ ranks[1] / norms) if norms > 0 else math.nan


def median_error(pairs: FloatArray) -> float:
    """Median of the absolute difference of requested and achieved values. `pairs` has shape (N, 2)."""
    return float(np.median(np.abs(pairs[:, 1] - pairs[:, 0])))


def area_under_curve(scores: FloatArray, is_positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative; ties count one half.

    Args:
        scores: Scores. Shape (N,).
        is_positive: True for positives. Shape (N,).

    Returns:
        Area under the ROC curve in [0, 1]; NaN without both kinds.
    """
    positives = int(is_positive.sum())
    negatives = len(scores) - positives
    if positives == 0 or negatives == 0:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _cumulative(values: FloatArray, edges: FloatArray) -> FloatArray:
    return np.searchsorted(np.sort(values), edges, side="right") / len(values)


def _ends(values: FloatArray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def or_none(value: float) -> float | None:
    """Return the value for JSON: None in place of NaN and infinity."""
    return float(value) if math.isfinite(value) else None
