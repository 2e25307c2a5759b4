"""What one tumour of a mask is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_difftumor.ct.boxes import box_of

NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a face, an edge or a corner are connected."""

SMALLEST_COMPONENT_VOXELS = 8
"""A generator learns from tumours of so many voxels: less shows no tissue."""
SMALLEST_REAL_MM3 = 14.0
"""Sizes of real tumours are taken from so much volume on: smaller specks are no tumours, as in the scoring rules."""
SMALLEST_PRINT_VOXELS = 30
"""Prints are taken of so many voxels: the moments of less are noise."""


@dataclass(frozen=True)
class TumorComponent:
    """One connected tumour of a case.

    Attributes:
        start: First voxel of its bounding box, (D, H, W).
        stop: One past its last voxel.
        radius_mm: Radius of the sphere of equal volume.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    volume_mm3: float
    radius_mm: float

    def centre_mm(self, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
        """Centre of the bounding box relative to voxel (0, 0, 0), in mm. Shape (3,)."""
        return (np.array(self.start) + np.array(self.stop) - 1.0) / 2.0 * np.asarray(spacing_mm)

    def half_extent_mm(self, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
        """Half the bounding box's sides in mm. Shape (3,)."""
        return (np.array(self.stop) - np.array(self.start)) / 2.0 * np.asarray(spacing_mm)


def find_tumors(
    tumor_mask: NDArray[np.bool_], spacing_mm: Sequence[float], smallest_voxels: int = SMALLEST_COMPONENT_VOXELS
) -> tuple[TumorComponent, ...]:
    """Find the 26-connected tumours of a mask (D, H, W, as its spacing); those of fewer voxels are left out."""
    corner, numbers, _ = number_within_box(tumor_mask)
    counts = np.bincount(numbers.ravel())
    components = []
    for count, box in zip(counts[1:], ndimage.find_objects(numbers), strict=True):
        if count < smallest_voxels:
            continue
        volume_mm3 = float(count * np.prod(spacing_mm))
        d, h, w = ((part.start + first, part.stop + first) for part, first in zip(box, corner, strict=True))
        start, stop = (d[0], h[0], w[0]), (d[1], h[1], w[1])
        components.append(TumorComponent(start, stop, volume_mm3, equivalent_radius_mm(volume_mm3)))
    return tuple(components)


def number_within_box(mask: NDArray[np.bool_]) -> tuple[tuple[int, ...], NDArray[np.int32], int]:
    """First voxel of the bounding box of a mask (D, H, W), far smaller than a CT, and `label_components` within it.

    The box of an empty mask is one voxel.
    """
    box = box_of(mask)
    return (tuple(part.start for part in box), *label_components(mask[box]))


def label_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number of the 26-connected component of each voxel of a mask (D, H, W), 0 outside, and how many there are."""
    numbers = np.zeros(mask.shape, dtype=np.int32)
    count: Any = ndimage.label(mask, structure=NEIGHBOURS_26, output=numbers)
    return numbers, int(count)


def equivalent_radius_mm(volume_mm3: float) -> float:
    """Radius in mm of the sphere of a volume in mm3."""
    return (3.0 * volume_mm3 / (4.0 * math.pi)) ** (1.0 / 3.0)


def equivalent_diameter_mm(volume_mm3: float) -> float:
    """Diameter in mm of the sphere of a volume in mm3."""
    return 2.0 * equivalent_radius_mm(volume_mm3)
