"""Boxes of voxels: three slices into an array (D, H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[slice, slice, slice]


def as_box(starts: ArrayLike, stops: ArrayLike) -> Box:
    """Box from its first voxel to one past its last, (D, H, W)."""
    depth, height, width = (
        slice(int(start), int(stop)) for start, stop in zip(np.asarray(starts), np.asarray(stops), strict=True)
    )
    return depth, height, width


def box_of(*maps: NDArray[Any] | None) -> Box:
    """Smallest box of all that is not 0 in any of some maps (D, H, W); one voxel without any."""
    given = [each for each in maps if each is not None]
    rows = np.any([each.any(axis=0) for each in given], axis=0)  # (H, W)
    planes = np.any([each.any(axis=(1, 2)) for each in given], axis=0)
    lines = [
        np.flatnonzero(each) if planes.any() else [0] for each in (planes, *(np.any(rows, axis=n) for n in (1, 0)))
    ]
    return as_box([line[0] for line in lines], [line[-1] + 1 for line in lines])


def ends_of(box: Sequence[slice]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First voxel of a box and one past its last, (D, H, W)."""
    return np.array([part.start for part in box]), np.array([part.stop for part in box])


def inside(box: Sequence[slice], outer: Sequence[slice]) -> Box:
    """The same voxels, counted from the first voxel of a box that holds them."""
    starts, stops = ends_of(box)
    first, _ = ends_of(outer)
    return as_box(starts - first, stops - first)


def widened(box: Sequence[slice], margin: ArrayLike, shape: ArrayLike) -> Box:
    """Box with a margin of voxels on all sides, (D, H, W) or one number, as far as an array of that shape goes."""
    starts, stops = ends_of(box)
    return as_box(np.maximum(np.subtract(starts, margin), 0), np.minimum(np.add(stops, margin), shape))


def box_around(label: NDArray[np.bool_], spacing_mm: Sequence[float], margin_mm: float = 35.0) -> Box:
    """Box around a label (D, H, W) of at least one voxel, with a margin in mm, cut at the volume's borders."""
    return widened(box_of(label), np.ceil(margin_mm / np.asarray(spacing_mm)).astype(int), label.shape)
