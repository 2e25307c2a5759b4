"""How deep voxels lie in their organ; what a scan's edge or padding cuts off counts as organ that goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

_FIRST_REACH_MM = 8.0


def organ_depth_mm(
    organ_mask: NDArray[np.bool_], valid_mask: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> NDArray[np.floating]:
    """Distance of every voxel, in mm, from the nearest one of real CT that is not organ; infinite where there is none.

    The masks have the shape (D, H, W); `valid_mask` is True in real CT, False in padding.
    """
    goes_on = organ_mask | ~valid_mask
    if goes_on.all():  # the transform would measure from a point beside the first voxel
        return np.full(organ_mask.shape, np.inf)
    return np.asarray(distance_transform_edt(goes_on, sampling=spacing_mm))


def lies_at_depth(
    labels: Any,
    voxel: Sequence[int] | NDArray[np.integer],
    organ_label: int,
    padding_label: int,
    spacing_mm: Sequence[float],
    depth_range_mm: tuple[float, float],
) -> bool:
    """Say whether one voxel of a case lies in its organ at a depth; only its surroundings are read.

    Args:
        labels: Labels that are read by slices, as nnU-Net stores them. Shape (1, D, H, W).
        depth_range_mm: Smallest and largest distance from the organ's surface in mm.
    """
    low_mm, high_mm = depth_range_mm
    farthest_mm = min(high_mm, float(np.linalg.norm(np.multiply(labels.shape[1:], spacing_mm))))
    reach_mm = min(_FIRST_REACH_MM, farthest_mm)
    values = (organ_label, padding_label)
    while (depth_mm := _nearest_other_mm(labels, voxel, values, spacing_mm, reach_mm)) > reach_mm < farthest_mm:
        reach_mm = min(2.0 * reach_mm, farthest_mm)
    return depth_mm > 0.0 and low_mm <= depth_mm <= high_mm


def _nearest_other_mm(
    labels: Any,
    voxel: Sequence[int] | NDArray[np.integer],
    values: tuple[int, ...],
    spacing_mm: Sequence[float],
    reach_mm: float,
) -> float:
    """Distance to the nearest voxel of other values, sure to be found if it is within reach; infinite without any."""
    spacing, centre = np.asarray(spacing_mm), np.asarray(voxel)
    reach = np.ceil(reach_mm / spacing).astype(int)
    first, last = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, labels.shape[1:])
    near = np.asarray(labels[(slice(0, 1), *map(slice, first.tolist(), last.tolist()))])[0]
    other = ~np.isin(near, values)
    if not other.any():
        return math.inf
    squares = [
        (np.arange(start, stop) - middle) ** 2 * step**2
        for start, stop, middle, step in zip(first, last, centre, spacing, strict=True)
    ]
    d, h, w = np.ix_(*squares)
    return math.sqrt(float((d + h + w)[other].min()))
