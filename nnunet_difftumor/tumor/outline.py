"""The outline of a label between its voxels: the signed distance to a surface that slices of any thickness cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from nnunet_difftumor.tumor.spec import Triple

_GRID_SHARE = 1.0 / 16.0
_GRID_MM = (0.5, 1.5)
_SMOOTHING_VOXELS = 0.6
_FLATNESS = np.geomspace(0.25, 4.0, 17)
_FLATNESS_LOG_SD = 0.7
_RADIUS_ERROR_SHARE = 0.1


@dataclass(frozen=True)
class OutlineDistance:
    """Signed distance in mm to the outline of a label, negative inside, on a cubic grid.

    `start_mm` is the centre of the grid's voxel (0, 0, 0), relative to that of the label's array.
    """

    values_mm: NDArray[np.float32]
    start_mm: Triple
    grid_mm: float

    def at(self, points_mm: NDArray[np.floating]) -> NDArray[np.float32]:
        """Interpolate at points (3, N), relative to the centre of the array's voxel (0, 0, 0). Shape (N,)."""
        places = (points_mm - np.array(self.start_mm)[:, None]) / self.grid_mm
        return _interpolate(self.values_mm, places)


def outline_distance(mask: NDArray[np.bool_], spacing_mm: Triple, reach_mm: float) -> OutlineDistance | None:
    """Reconstruct the surface of a label whose thickest axis is the first, and measure the distance to it.

    A slice shows as tumour what fills at least half of its thickness. Between slices, the distances to their contours
    are interpolated, and widened as a surface that is as flat as the whole label bulges there; beyond the last slice it
    closes before the next one. Without this, the outline of a small label in thick slices is off by millimetres.

    Args:
        mask: One label, of some voxels. Shape (D, H, W).
        reach_mm: How far from the label's voxels the grid goes.

    Returns:
        None if the label is too thin to hold a voxel of the grid.
    """
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    radius_mm = (3.0 * mask.sum() * float(np.prod(spacing_mm)) / (4.0 * np.pi)) ** (1.0 / 3.0)
    grid_mm = float(np.clip(_GRID_SHARE * radius_mm, *_GRID_MM))
    voxels = np.argwhere(mask)
    low_mm = voxels.min(axis=0) * spacing_mm - reach_mm
    high_mm = voxels.max(axis=0) * spacing_mm + reach_mm
    counts = np.ceil((high_mm - low_mm) / grid_mm).astype(int) + 1
    depth_mm, height_mm, width_mm = (low_mm[axis] + grid_mm * np.arange(counts[axis]) for axis in range(3))
    contours = _Contours(mask[slices], slices, spacing_mm)
    places = np.stack(np.meshgrid(height_mm / spacing_mm[1], width_mm / spacing_mm[2], indexing="ij"))
    flat = [_interpolate(each, places) for each in contours.distances_mm]
    in_plane_mm = np.stack([contours.at_height(z_mm, flat) for z_mm in depth_mm]).astype(np.float32)
    inside = in_plane_mm < 0
    if not inside.any():
        return None
    short_mm = np.minimum(np.abs(in_plane_mm), 0.5 * grid_mm)
    values_mm = np.where(inside, -_distance_to(~inside, short_mm, grid_mm), _distance_to(inside, short_mm, grid_mm))
    return OutlineDistance(values_mm, (float(low_mm[0]), float(low_mm[1]), float(low_mm[2])), grid_mm)


def _interpolate(values: NDArray[np.floating], places: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(map_coordinates(values, places, order=1, mode="nearest", output=np.float32), dtype=np.float32)


def _distance_to(part: NDArray[np.bool_], short_mm: NDArray[np.float32], grid_mm: float) -> NDArray[np.float32]:
    """Distance to the surface of a part, which lies as far before the nearest centre of its voxels as is given."""
    found: Any = distance_transform_edt(~part, sampling=grid_mm, return_indices=True)
    beyond_mm, nearest = found
    return (beyond_mm - short_mm[tuple(nearest)]).astype(np.float32)


class _Contours:
    """Contours of the slices that hold a label, and the spheroid that their areas fit best."""

    def __init__(self, masks: NDArray[np.bool_], slices: NDArray[np.int64], spacing_mm: Triple) -> None:
        self.thickness_mm = spacing_mm[0]
        self.heights_mm = slices * spacing_mm[0]  # (S,)
        half_mm = 0.25 * (spacing_mm[1] + spacing_mm[2])
        self.distances_mm = []  # signed, in plane, (H, W) each
        for each in masks:
            beyond, within = (
                np.asarray(distance_transform_edt(part, sampling=spacing_mm[1:])) for part in (~each, each)
            )
            distance_mm = np.where(each, half_mm - within, beyond - half_mm)
            self.distances_mm.append(gaussian_filter(distance_mm, _SMOOTHING_VOXELS))
        self.inner_mm = np.array([max(half_mm, -float(each.min())) for each in self.distances_mm])
        self.squares_mm2 = masks.sum(axis=(1, 2)) * spacing_mm[1] * spacing_mm[2] / np.pi  # radius of equal area
        self.middle_mm, self.flatness = self._fit()

    def _fit(self) -> tuple[float, float]:
        """Height of the middle, and how fast the squared radius falls with the squared height: 1 in a ball."""
        middles_mm = np.linspace(self.heights_mm[0], self.heights_mm[-1], 4 * len(self.heights_mm) + 1)
        if len(self.heights_mm) == 1:
            middles_mm = self.heights_mm[0] + self.thickness_mm * np.linspace(-0.5, 0.5, 5)
        middle, flatness = np.meshgrid(middles_mm, _FLATNESS, indexing="ij")
        rise = [flatness * self._reach_mm(z_mm, middle) ** 2 for z_mm in self.heights_mm]
        squares = np.mean([square + each for square, each in zip(self.squares_mm2, rise, strict=True)], axis=0)
        error = (_RADIUS_ERROR_SHARE * self.squares_mm2.max() * 2.0) ** 2
        cost = sum((squares - each - square) ** 2 for square, each in zip(self.squares_mm2, rise, strict=True)) / error
        for z_mm in (self.heights_mm[0] - self.thickness_mm, self.heights_mm[-1] + self.thickness_mm):
            cost = cost + np.maximum(squares - flatness * self._reach_mm(z_mm, middle) ** 2, 0.0) ** 2 / error
        cost = cost + (np.log(flatness) / _FLATNESS_LOG_SD) ** 2
        if len(self.heights_mm) > 1:
            cost = cost + ((middle - self.heights_mm.mean()) / self.thickness_mm) ** 2 * 0.1
        best = np.unravel_index(int(np.argmin(cost)), cost.shape)
        return float(middle[best]), float(flatness[best])

    def _reach_mm(self, z_mm: float, middle_mm: NDArray[np.floating]) -> NDArray[np.floating]:
        """How far from the middle a column must reach to fill half of the slice at a height."""
        return np.maximum(np.abs(z_mm - middle_mm), 0.25 * self.thickness_mm)

    def at_height(self, z_mm: float, flat: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
        """Signed distance in a plane at a height, in mm; only its sign is exact far from the outline."""
        heights, radii = self.heights_mm, np.sqrt(self.squares_mm2)
        if z_mm <= heights[0] or z_mm >= heights[-1]:
            last = 0 if z_mm <= heights[0] else -1
            return flat[last] + self._closing_mm(z_mm, last)
        upper = int(np.searchsorted(heights, z_mm, side="right"))
        gap_mm = heights[upper] - heights[upper - 1]
        share = (z_mm - heights[upper - 1]) / gap_mm
        bulge = self.flatness * share * (1.0 - share) * gap_mm**2
        square = (1.0 - share) * self.squares_mm2[upper - 1] + share * self.squares_mm2[upper] + bulge
        wider_mm = np.sqrt(square) - ((1.0 - share) * radii[upper - 1] + share * radii[upper])
        return (1.0 - share) * flat[upper - 1] + share * flat[upper] - wider_mm

    def _closing_mm(self, z_mm: float, last: int) -> float:
        """How far the contour of the last slice shrinks up to a height beyond it, in mm."""
        end_mm, square = float(self.heights_mm[last]), float(self.squares_mm2[last])
        reach_mm = float(self._reach_mm(end_mm, np.array(self.middle_mm)))
        fall = self.flatness
        next_mm = abs(end_mm - self.middle_mm) + self.thickness_mm
        if square - fall * (next_mm**2 - reach_mm**2) > 0:  # the next slice shows none
            fall = square / (next_mm**2 - reach_mm**2)
        left = square - fall * ((z_mm - self.middle_mm) ** 2 - reach_mm**2)
        radius_mm = np.sqrt(square)
        share = 1.0 - np.sqrt(max(left, 0.0)) / radius_mm if left > 0 else 2.0
        return float(share * self.inner_mm[last])
