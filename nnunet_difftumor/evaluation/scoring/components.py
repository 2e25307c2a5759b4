"""Connected tumours of a mask: numbered, measured, specks set apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_difftumor.evaluation.scoring.rules import ScoringRules

SPECK = -1
"""Number of voxels that belong to components too small to count."""

NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a face, an edge or a corner are connected."""


@dataclass(frozen=True, eq=False)
class Components:
    """Connected components of a mask.

    Attributes:
        numbers: 1 to N in the components that count, -1 in specks, 0 elsewhere. Shape (D, H, W).
        voxels: Voxels of each component that counts. Shape (N,).
        is_mostly_ignored: True where half or more of a component lies under the ignore label. Shape (N,).
    """

    numbers: NDArray[np.int32]
    voxels: NDArray[np.int64]
    is_mostly_ignored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.voxels)


def find_components(
    mask: NDArray[np.bool_], voxel_mm3: float, rules: ScoringRules, is_ignored: NDArray[np.bool_] | None = None
) -> Components:
    """Find the components of a mask with 26 neighbours.

    Args:
        mask: A mask. Shape (D, H, W).
        voxel_mm3: Volume of a voxel in mm3.
        rules: What is too small.
        is_ignored: Voxels under the ignore label; they join parts, but belong to no component. Shape (D, H, W).

    Returns:
        The components, numbered in the order in which they are met.
    """
    numbers, count = label_components(mask)
    whole = np.bincount(numbers.ravel(), minlength=count + 1)
    if is_ignored is not None:
        numbers[is_ignored] = 0
    left = whole if is_ignored is None else np.bincount(numbers.ravel(), minlength=count + 1)
    does_count = (left >= rules.smallest_voxels) & (left * voxel_mm3 >= rules.smallest_mm3) & (left > 0)
    does_count[0] = False
    new_numbers = np.where(does_count, np.cumsum(does_count), SPECK).astype(np.int32)
    new_numbers[0] = 0
    return Components(new_numbers[numbers], left[does_count], 2 * left[does_count] <= whole[does_count])


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


def axial_diameter_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float], axial_axis: int) -> float:
    """Largest diameter of a mask within one axial slice, as a reader would measure it.

    A diameter runs between the middles of the outer faces of two voxels of the slice: a row of n voxels is n
    spacings long.

    Args:
        mask: One component. Shape (D, H, W).
        spacing_mm: Spacing in mm, (D, H, W).
        axial_axis: The axis that runs from slice to slice.

    Returns:
        The diameter in mm; 0 for an empty mask.
    """
    row_mm, column_mm = (spacing for axis, spacing in enumerate(spacing_mm) if axis != axial_axis)
    longest = 0.0
    for section in sorted(np.moveaxis(mask, axial_axis, 0), key=np.count_nonzero, reverse=True):
        rows = np.flatnonzero(section.any(axis=1))
        if not len(rows):
            break
        first = section[rows].argmax(axis=1)  # only the ends of each row can be farthest apart
        last = section.shape[1] - 1 - section[rows, ::-1].argmax(axis=1)
        height_mm = (rows[-1] - rows[0] + 1) * row_mm
        width_mm = (last.max() - first.min() + 1) * column_mm
        if math.hypot(height_mm, width_mm) <= longest:
            continue
        ends_row = np.concatenate([rows, rows]) * row_mm
        ends_column = np.concatenate([first, last]) * column_mm
        apart_row = np.abs(ends_row[:, None] - ends_row)
        apart_column = np.abs(ends_column[:, None] - ends_column)
        across_rows = np.hypot(apart_row + row_mm, apart_column)
        across_columns = np.hypot(apart_row, apart_column + column_mm)
        longest = max(longest, float(across_rows.max()), float(across_columns.max()))
    return longest
