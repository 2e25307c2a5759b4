"""Distributions of HU in which every patient weighs the same, and their Wasserstein distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_difftumor.evaluation.statistics.intervals import NOT_MEASURED, Estimate, mean_interval
from nnunet_difftumor.evaluation.statistics.scales import DIFFERENCE, FloatArray

_BIN_HU = 0.5


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
    """Measure the distribution of in-mask values in HU, limited to a window.

    Every array weighs the same within a patient; patients without one are left out.
    """
    low_hu, high_hu = window_hu
    edges = np.arange(low_hu, high_hu + _BIN_HU, _BIN_HU)
    rows = {
        name: np.mean([_cumulative(np.clip(values, low_hu, high_hu), edges) for values in arrays], axis=0)
        for name, arrays in by_patient.items()
        if len(arrays)
    }
    return HuDistribution(edges, np.array(list(rows.values())).reshape(len(rows), len(edges)), tuple(rows))


def wasserstein_hu(first: FloatArray, second: FloatArray) -> float:
    """Wasserstein distance in HU of two cumulative distributions on the bins of `HuDistribution`. Shapes (B,)."""
    return float(np.abs(first - second).sum() * _BIN_HU)


def distance_to_real(made: HuDistribution, real: HuDistribution) -> Estimate:
    """Wasserstein distance between two pooled distributions, in HU.

    It is the integral of sign(M - R) (M - R) over the pooled cumulative shares M and R, which are means over patients:
    with the sign held, each patient adds a part, and the interval is that of a mean of these parts.

    Returns:
        The distance; without an interval if either side is of one patient.
    """
    if not made.patients or not real.patients:
        return NOT_MEASURED
    patients = sorted({*made.patients, *real.patients})
    value, parts = _parts(made, real, patients)
    if min(len(made.patients), len(real.patients)) < 2:
        return replace(NOT_MEASURED, value=value, method="one patient")
    found = mean_interval(parts, np.arange(len(patients)), DIFFERENCE)
    return replace(found, value=value, low=np.maximum(found.low, 0.0))


def distance_difference(made: HuDistribution, other: HuDistribution, real: HuDistribution) -> Estimate:
    """How much farther from the real distribution one is than another, in HU, paired by patient.

    Each patient's part is the difference of those in the two distances (see `distance_to_real`).
    """
    if min(len(each.patients) for each in (made, other, real)) < 2:
        return NOT_MEASURED
    patients = sorted({*made.patients, *other.patients, *real.patients})
    (value, parts), (other_value, other_parts) = (_parts(each, real, patients) for each in (made, other))
    found = mean_interval(parts - other_parts, np.arange(len(patients)), DIFFERENCE)
    return replace(found, value=value - other_value)


def _parts(made: HuDistribution, real: HuDistribution, patients: Sequence[str]) -> tuple[float, FloatArray]:
    """A distance in HU, and each patient's part of it, whose mean it is. Shape (patients,)."""
    difference = made.cumulative.mean(axis=0) - real.cumulative.mean(axis=0)
    value = wasserstein_hu(difference, np.zeros_like(difference))
    parts = np.full(len(patients), value)
    for side, sign in ((made, 1.0), (real, -1.0)):
        own = sign * (side.cumulative - side.cumulative.mean(axis=0)) @ np.sign(difference) * _BIN_HU
        parts[[patients.index(name) for name in side.patients]] += own * len(patients) / len(side.patients)
    return value, parts


def split_half_distance(real: HuDistribution, halves: int, rng: np.random.Generator) -> Estimate:
    """Wasserstein distance between random halves of the patients: what two groups of real tumours differ by.

    Returns:
        Mean distance in HU, between the 2.5 and 97.5 percentile of the splits (no confidence interval); NaN with one
        patient.
    """
    count = len(real.patients)
    if count < 2:
        return NOT_MEASURED
    orders = (rng.permutation(count) for _ in range(halves))
    parts = (np.split(order, [count // 2]) for order in orders)
    distances = [wasserstein_hu(*(real.cumulative[part].mean(axis=0) for part in both)) for both in parts]
    low, high = np.percentile(distances, [2.5, 97.5])
    return Estimate(float(np.mean(distances)), float(low), float(high), "percentiles of the splits")


def _cumulative(values: FloatArray, edges: FloatArray) -> FloatArray:
    return np.searchsorted(np.sort(values), edges, side="right") / len(values)
