"""Where readers of a data set draw the outline: the edges of its annotated tumours pooled, by size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.tumor.edge_profile import TumorEdge, tried_edges

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics

SIZES_FROM_MM = (0.0, 10.0, 20.0)
"""Smallest diameter of each range of sizes, in mm."""

_BORROWED_TUMORS = 4.0
_LEAST_SD_MM = np.array([0.1, 0.2])
_START = (np.array([0.0, 2.0]), np.array([2.0, 2.0]))
_STEPS, _STEPS_OF_SAMPLE = 60, 25
_SAMPLES = 100

Estimate = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean and standard deviation between tumours of (offset, width) in mm, (2,) each."""


def pool_edges(
    edges: Sequence[TumorEdge], patients: Sequence[str], rng: np.random.Generator
) -> tuple[EdgeStatistics, ...]:
    """Pool what was measured on tumours: mean and standard deviation between tumours, by size.

    Offset and width of the tumours are taken as normal, each known as well as its voxels tell (`TumorEdge.losses`):
    the deviation is that of the tumours without the error of measuring. Tumours that hardly differ from their host are
    left out. Each range of sizes borrows as much as four tumours would say from all sizes together.

    Args:
        patients: Whose tumour each is: the intervals are of patients drawn with replacement.

    Returns:
        One for each of `SIZES_FROM_MM`; none without a tumour that is clear.
    """
    from diffusion.generator.info import EdgeStatistics  # prediction imports this module too

    known = [(edge, patient) for edge, patient in zip(edges, patients, strict=True) if edge.is_clear]
    if not known:
        return ()
    edges, patients = zip(*known, strict=True)
    chances = np.exp(-np.array([edge.losses for edge in edges]))  # (T, E)
    sizes = np.searchsorted(SIZES_FROM_MM, [edge.diameter_mm for edge in edges], side="right") - 1
    _, owners = np.unique(patients, return_inverse=True)
    whole = _estimate(chances, np.ones(len(edges)), _START, steps=_STEPS)
    found = _by_size(chances, np.ones(len(edges)), sizes, whole, whole, _STEPS)
    samples = []
    for _ in range(_SAMPLES):
        drawn = np.bincount(rng.integers(0, owners.max() + 1, size=owners.max() + 1), minlength=owners.max() + 1)
        weights = drawn[owners].astype(np.float64)
        own = _estimate(chances, weights, whole, steps=_STEPS_OF_SAMPLE)
        samples.append([mean for mean, _ in _by_size(chances, weights, sizes, own, own, _STEPS_OF_SAMPLE)])
    low, high = np.quantile(np.array(samples), (0.025, 0.975), axis=0)  # (sizes, 2) each
    return tuple(
        EdgeStatistics(
            from_diameter_mm=from_mm,
            tumors=int((sizes == size).sum()),
            offset_mm=float(mean[0]),
            offset_sd_mm=float(sd[0]),
            offset_interval_mm=(float(low[size, 0]), float(high[size, 0])),
            width_mm=float(mean[1]),
            width_sd_mm=float(sd[1]),
            width_interval_mm=(float(low[size, 1]), float(high[size, 1])),
        )
        for size, (from_mm, (mean, sd)) in enumerate(zip(SIZES_FROM_MM, found, strict=True))
    )


def _by_size(
    chances: NDArray[np.float64],
    weights: NDArray[np.float64],
    sizes: NDArray[np.int64],
    start: Estimate,
    whole: Estimate,
    steps: int,
) -> list[Estimate]:
    own = (sizes == size for size in range(len(SIZES_FROM_MM)))
    return [_estimate(chances[each], weights[each], start, whole, steps=steps) for each in own]


def _estimate(
    chances: NDArray[np.float64],
    weights: NDArray[np.float64],
    start: Estimate,
    borrowed: Estimate | None = None,
    *,
    steps: int,
) -> Estimate:
    """Mean and deviation that make the measured voxels likeliest, by expectation and maximisation."""
    tried, (mean, sd) = tried_edges(), start
    count = _BORROWED_TUMORS if borrowed else 0.0
    other_mean, other_sd = borrowed or start
    total = float(weights.sum()) + count
    for _ in range(steps if total > 0 else 0):
        normal = np.exp(-0.5 * np.sum(((tried - mean) / sd) ** 2, axis=1))  # (E,)
        shares = normal * (chances.T @ (weights / (chances @ normal)))
        mean = (shares @ tried + count * other_mean) / total
        variance = shares @ (tried - mean) ** 2 + count * (other_sd**2 + (other_mean - mean) ** 2)
        sd = np.maximum(np.sqrt(variance / total), _LEAST_SD_MM)
    return mean, sd
