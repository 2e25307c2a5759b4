"""Tumour prints: how they are taken from a mask and its CT, and when two of them mean the same tumour.

Every number is invariant to position, axis flips and rotation. Its error after resampling grows with
(voxel / radius)^1.5, about the inverse root of the number of voxels, and so does what two prints may differ by.
Small tumours have wide tolerances, so many different ones agree; the CT around them then has to tell them apart,
and without it they are not compared (docs/explanation/leak-guard.md has the measured rates).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.generator.provenance import SOFT_TISSUE_HU, SurroundingsPrint, TumorPrint
from nnunet_difftumor.ct.components import SMALLEST_PRINT_VOXELS, equivalent_radius_mm, number_within_box
from nnunet_difftumor.ct.grid import GridGeometry
from nnunet_difftumor.ct.reading import CTVolume, place_labels
from nnunet_difftumor.errors import GeometryMismatchError

PRINT_VERSION = 1
"""To be raised when prints of the same files change; kept prints are taken anew then."""

_MOST_PARTS = 3
RAREST_CHANCE = 1e-5
"""Two prints mean the same tumour only if two different tumours agree as well in fewer pairs than this."""

_LENGTH_ERROR = (0.6, 0.8, 0.95, 1.05)
"""Relative error of radius and three axes after resampling, over (voxel / radius)^1.5."""
_LENGTH_FLOOR = 0.01
_LENGTH_SPREAD = (0.3, 0.1, 0.07, 0.1)
"""Standard deviation among tumours of the logarithms of the radius, and of the axes for a given radius."""

_THIRDS = attrgetter("skewness", "asymmetry")
_THIRDS_ERROR = (1.2, 1.6)
"""The same error of skewness and asymmetry, for each unit of 1 + their value."""
_THIRDS_FLOOR = 0.03
_THIRDS_SPREAD = (0.1, 0.2)

_AROUND = attrgetter("mean_hu", "slope_hu", "quadrupole_hu")
_SURROUNDINGS: dict[float, tuple[tuple[float, float], ...]] = {
    10.0: ((6.0, 15.0), (2.0, 2.0), (0.5, 0.5)),
    20.0: ((5.0, 13.0), (1.8, 2.5), (0.5, 0.7)),
    40.0: ((4.0, 14.0), (1.0, 4.0), (0.4, 1.3)),
}
"""By radius in mm, of mean, slope and quadrupole: error after resampling and spread among tumours, in HU."""


def take_tumor_prints(
    tumor_mask: NDArray[np.bool_], spacing_mm: Sequence[float], image_hu: NDArray[np.float32] | None = None
) -> tuple[TumorPrint, ...]:
    """Take the print of a tumour mask (D, H, W), and of up to three connected parts, largest first, if it has several.

    What has fewer than 30 voxels is left out, and so are the surroundings without the CT on the same grid.
    """
    corner, numbers, count = number_within_box(tumor_mask)
    inside = np.flatnonzero(numbers)
    voxels, owners = np.stack(np.unravel_index(inside, numbers.shape), axis=1) + corner, numbers.ravel()[inside]
    wanted = [voxels]
    if count > 1:
        largest = np.argsort(-np.bincount(owners)[1:], kind="stable")[:_MOST_PARTS]
        wanted += [voxels[owners == number + 1] for number in largest]
    return tuple(
        _take_print(part, np.asarray(spacing_mm, dtype=np.float64), image_hu)
        for part in wanted
        if len(part) >= SMALLEST_PRINT_VOXELS
    )


def print_mask(mask: NDArray[Any], geometry: GridGeometry, path: Path, ct: CTVolume | None) -> tuple[TumorPrint, ...]:
    """Take the prints of a label file's tumour mask; without their surroundings if there is no CT, or elsewhere."""
    if ct is not None:
        with suppress(GeometryMismatchError):  # a CT elsewhere says nothing about the tumour's surroundings
            placed: NDArray[Any] = place_labels(mask, geometry, path, ct)
            return take_tumor_prints(placed, ct.spacing_mm, ct.image_hu)
    return take_tumor_prints(mask, geometry.spacing_mm)


def mean_same_tumor(first: Sequence[TumorPrint], second: Sequence[TumorPrint]) -> bool:
    """Say whether any print of one case agrees with any of another, and by chance that would be too rare."""
    return any(
        _agree(one, other) and _chance_to_agree(one, other) <= RAREST_CHANCE for one in first for other in second
    )


class PrintTable:
    """The shapes of many cases' prints as arrays, so that a print is compared with all of them at once."""

    def __init__(self, cases: Sequence[Sequence[TumorPrint]]) -> None:
        self._cases = cases
        self._owners = np.repeat(np.arange(len(cases)), [len(prints) for prints in cases])
        self._shapes = np.array([_shape_of(each) for prints in cases for each in prints]).reshape(-1, 7)

    def holds_same_tumor(self, prints: Sequence[TumorPrint]) -> bool:
        """Say whether the prints of one case mean the same tumour as those of any other (see `mean_same_tumor`)."""
        owners = set[int]()
        for coarseness, *shape in map(_shape_of, prints):
            coarser = np.maximum(self._shapes[:, :1], coarseness)
            larger = np.maximum(self._shapes[:, 5:], shape[4:])
            lengths = np.multiply(_LENGTH_ERROR, coarser) + _LENGTH_FLOOR
            thirds = (1.0 + larger) * _THIRDS_ERROR * coarser + _THIRDS_FLOOR
            tolerances = np.concatenate([lengths, thirds], axis=1) + 1e-9  # logarithms are rounded otherwise here
            agree = np.all(np.abs(self._shapes[:, 1:] - shape) <= tolerances, axis=1)
            owners.update(self._owners[agree].tolist())
        return any(mean_same_tumor(prints, self._cases[owner]) for owner in sorted(owners))


def _shape_of(each: TumorPrint) -> tuple[float, ...]:
    """Coarseness, the logarithms of radius and axes in mm, skewness and asymmetry."""
    radius_mm = equivalent_radius_mm(each.volume_mm3)
    return ((each.voxel_mm / radius_mm) ** 1.5, *map(math.log, (radius_mm, *each.axes_mm)), *_THIRDS(each))


def can_be_told(prints: Sequence[TumorPrint]) -> bool:
    """Say whether a case's tumours are large enough, or their surroundings known, to be recognised at all."""
    return any(_chance_to_agree(each, each) <= RAREST_CHANCE for each in prints)


def _agree(first: TumorPrint, second: TumorPrint) -> bool:
    """Whether every number that both prints have differs by no more than resampling changes it."""
    return all(difference <= tolerance for difference, tolerance, _ in _comparisons(first, second))


def _chance_to_agree(first: TumorPrint, second: TumorPrint) -> float:
    """Estimate how often two different tumours that are known as exactly as these agree.

    Two independent normal numbers of standard deviation s differ by less than t with probability about
    t / (sqrt(pi) s) where t is small. The numbers of a print are taken as independent.
    """
    return math.prod(
        min(1.0, tolerance / (math.sqrt(math.pi) * spread)) for _, tolerance, spread in _comparisons(first, second)
    )


def _comparisons(first: TumorPrint, second: TumorPrint) -> Iterator[tuple[float, float, float]]:
    """Difference, tolerance and spread among tumours of each number that both prints have."""
    coarseness = max((each.voxel_mm / equivalent_radius_mm(each.volume_mm3)) ** 1.5 for each in (first, second))
    lengths_mm = [(equivalent_radius_mm(each.volume_mm3), *each.axes_mm) for each in (first, second)]
    for one_mm, other_mm, error, spread in zip(*lengths_mm, _LENGTH_ERROR, _LENGTH_SPREAD, strict=True):
        yield abs(math.log(one_mm / other_mm)), error * coarseness + _LENGTH_FLOOR, spread
    thirds = zip(_THIRDS(first), _THIRDS(second), _THIRDS_ERROR, _THIRDS_SPREAD, strict=True)
    for one, other, error, spread in thirds:
        yield abs(one - other), (1.0 + max(one, other)) * error * coarseness + _THIRDS_FLOOR, spread
    around = {each.radius_mm: each for each in second.surroundings}
    for near in first.surroundings:
        if near.radius_mm in around and near.radius_mm in _SURROUNDINGS:
            pairs = zip(_AROUND(near), _AROUND(around[near.radius_mm]), _SURROUNDINGS[near.radius_mm], strict=True)
            for one_hu, other_hu, (error_hu, spread_hu) in pairs:
                yield abs(one_hu - other_hu), error_hu, spread_hu


def _take_print(
    voxels: NDArray[np.int64], spacing_mm: NDArray[np.float64], image_hu: NDArray[np.float32] | None
) -> TumorPrint:
    """Print of the voxels with the given indices. Shape (N, 3)."""
    positions = voxels * spacing_mm
    centroid_mm = positions.mean(axis=0)
    offsets = positions - centroid_mm
    # a voxel is a box: its own second moment belongs to the body's
    second = offsets.T @ offsets / len(offsets) + np.diag(spacing_mm**2 / 12.0)
    axes_mm = np.sqrt(np.linalg.eigvalsh(second))[::-1]
    scale = math.sqrt(float(np.trace(second)) / 3.0) ** 3
    third = np.stack([(offsets * offsets[:, [axis]]).T @ offsets for axis in range(3)]) / len(offsets) / scale
    largest, middle, smallest = (round(float(axis_mm), 1) or 0.1 for axis_mm in axes_mm)
    return TumorPrint(
        voxel_mm=float(f"{math.sqrt(float(np.mean(spacing_mm**2))):.2g}"),
        volume_mm3=float(f"{len(voxels) * float(np.prod(spacing_mm)):.3g}"),
        axes_mm=(largest, middle, smallest),
        skewness=round(float(np.linalg.norm(np.einsum("ijj->i", third))), 2),
        asymmetry=round(float(np.linalg.norm(third)), 2),
        surroundings=() if image_hu is None else tuple(_take_surroundings(image_hu, spacing_mm, centroid_mm)),
    )


def _take_surroundings(
    image_hu: NDArray[np.float32], spacing_mm: NDArray[np.float64], centroid_mm: NDArray[np.float64]
) -> Iterator[SurroundingsPrint]:
    for radius_mm in _SURROUNDINGS:
        start = np.floor((centroid_mm - radius_mm) / spacing_mm).astype(int)
        stop = np.ceil((centroid_mm + radius_mm) / spacing_mm).astype(int) + 1
        if (start < 0).any() or (stop > image_hu.shape).any():
            continue
        values_hu = np.clip(image_hu[tuple(map(slice, start, stop))], *SOFT_TISSUE_HU).astype(np.float64)
        axes = [
            (np.arange(low, high) * step - centre) / radius_mm
            for low, high, step, centre in zip(start, stop, spacing_mm, centroid_mm, strict=True)
        ]
        offsets = np.meshgrid(*axes, indexing="ij", sparse=True)  # in units of the radius
        weights = np.clip(1.0 - sum(offset**2 for offset in offsets), 0.0, None) ** 2
        weights /= weights.sum()
        mean_hu = float((weights * values_hu).sum())
        deviation_hu = weights * (values_hu - mean_hu)
        slope_hu = math.hypot(*(float((deviation_hu * offset).sum()) for offset in offsets))
        tensor_hu = np.array([[float((deviation_hu * a * b).sum()) for a in offsets] for b in offsets])
        tensor_hu -= np.eye(3) * np.trace(tensor_hu) / 3.0
        yield SurroundingsPrint(
            radius_mm=radius_mm,
            mean_hu=float(round(mean_hu)),
            slope_hu=round(slope_hu, 1),
            quadrupole_hu=round(float(np.linalg.norm(tensor_hu)), 2),
        )
