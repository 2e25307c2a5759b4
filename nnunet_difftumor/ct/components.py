"""What one tumour of a mask is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SMALLEST_COMPONENT_VOXELS = 8


def find_tumors(tumor_mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> tuple[TumorComponent, ...]:
    """Find the connected tumours of a mask (26 neighbours); those under 8 voxels are left out.

    Args:
        tumor_mask: True in tumours. Shape (D, H, W).
        spacing_mm: Spacing in mm, (D, H, W).
    """
    whole = ndimage.find_objects(tumor_mask.astype(np.uint8))
    if not whole:
        return ()
    offset = [part.start for part in whole[0]]
    numbered, _ = ndimage.label(tumor_mask[whole[0]], structure=np.ones((3, 3, 3)))  # pyright: ignore
    counts = np.bincount(numbered.ravel())
    components = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        if counts[number] < SMALLEST_COMPONENT_VOXELS:
            continue
        volume_mm3 = float(counts[number] * np.prod(spacing_mm))
        d, h, w = ((part.start + first, part.stop + first) for part, first in zip(box, offset, strict=True))
        radius_mm = float((3.0 * volume_mm3 / (4.0 * np.pi)) ** (1.0 / 3.0))
        components.append(TumorComponent((d[0], h[0], w[0]), (d[1], h[1], w[1]), volume_mm3, radius_mm))
    return tuple(components)


@dataclass(frozen=True)
class TumorComponent:
    """One connected tumour of a case.

    Attributes:
        start: First voxel of its bounding box, (D, H, W).
        stop: One past its last voxel, (D, H, W).
        volume_mm3: Volume in cubic millimetres.
        radius_mm: Radius of the sphere of equal volume, in mm.
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


NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a face, an edge or a corner are connected."""


def label_components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the 26-connected components of a mask, all of them.

    Args:
        mask: A mask. Shape (D, H, W).

    Returns:
        Number of each voxel's component, 0 outside, and how many there are.
    """
    numbers = np.zeros(mask.shape, dtype=np.int32)
    count: Any = ndimage.label(mask, structure=NEIGHBOURS_26, output=numbers)
    return numbers, int(count)


def equivalent_diameter_mm(volume_mm3: float) -> float:
    """Diameter in mm of the sphere of a volume in mm3."""
    return 2.0 * (3.0 * volume_mm3 / (4.0 * math.pi)) ** (1.0 / 3.0)
