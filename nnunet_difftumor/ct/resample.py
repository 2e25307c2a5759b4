"""Separable resampling between CT grids whose axes are parallel.

A grid is given by its spacing and by the position of its first voxel centre, both in mm along (D, H, W).
Every function works axis by axis with a small matrix, so that a region of interest costs three products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.grid import require_bounded

AIR_HU = -1000.0
_ROUNDING_SHARE = 1e-6
"""Positions this share of a distance beyond its end still count as inside: rounding puts them there."""

FloatArray = NDArray[np.float32]
Vector = Sequence[float] | NDArray[np.floating[Any]]


def interpolation_matrix(
    source_size: int,
    source_spacing_mm: float,
    target_size: int,
    target_spacing_mm: float,
    target_start_mm: float,
    *,
    continues_mm: float = 0.0,
) -> FloatArray:
    """Weights that take samples of one axis to another grid, anti-aliased where the target is coarser.

    The kernel is a triangle whose half-width is the larger of the two spacings: linear interpolation
    when the target is finer, a low-pass filter of the target's width when it is coarser.

    Args:
        source_size: Number of source samples; sample i lies at i * source_spacing_mm.
        target_start_mm: Position of target sample 0 in the source's frame.
        continues_mm: Positions up to so far beyond the ends' centres take the end value where their kernel
            reaches beyond it; `math.inf` for all.

    Returns:
        Weights of shape (target_size, source_size). A row sums to less than 1 where its kernel reaches beyond an end
        and the values do not continue; the missing share belongs to the fill value.
    """
    half_width_mm = max(source_spacing_mm, target_spacing_mm)
    targets_mm = target_start_mm + np.arange(target_size) * target_spacing_mm  # (T,)
    reach = math.ceil(half_width_mm / source_spacing_mm) + 1
    nearest = np.round(targets_mm / source_spacing_mm).astype(np.int64)
    indices = nearest[:, None] + np.arange(-reach, reach + 1)[None, :]  # (T, K)
    distance_mm = np.abs(indices * source_spacing_mm - targets_mm[:, None])
    weights = np.clip(1.0 - distance_mm / half_width_mm, 0.0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    beyond_mm = np.maximum(-targets_mm, targets_mm - (source_size - 1) * source_spacing_mm)  # (T,)
    goes_on = (beyond_mm <= continues_mm * (1.0 + _ROUNDING_SHARE))[:, None] & (continues_mm > 0)
    indices = np.where(goes_on, np.clip(indices, 0, source_size - 1), indices)
    return _scatter_rows(indices, weights, source_size)


def resample(
    volume: NDArray[np.generic],
    source_spacing_mm: Vector,
    target_shape: Sequence[int] | NDArray[np.integer[Any]],
    target_spacing_mm: Vector,
    target_start_mm: Vector,
    *,
    fill_value: float | None = AIR_HU,
    whole_voxels: bool = False,
) -> FloatArray:
    """Sample a volume on a parallel grid; what lies outside the volume is `fill_value`, or goes on as at its edge.

    Args:
        volume: Shape (D, H, W); so are shapes and spacings ordered.
        target_start_mm: Position of the result's voxel (0, 0, 0) relative to the volume's.
        fill_value: Value outside the volume; None continues the values at the volume's faces.
        whole_voxels: The volume ends half a voxel beyond the centres of its outer voxels, and holds their values up
            to there. Otherwise the fill value enters from their centres on.
    """
    require_bounded(target_shape, f"A volume with voxels of {np.asarray(source_spacing_mm).tolist()} mm, resampled,")
    matrices, window = [], []
    for axis in zip(volume.shape, source_spacing_mm, target_shape, target_spacing_mm, target_start_mm, strict=True):
        continues_mm = math.inf if fill_value is None else 0.5 * axis[1] * whole_voxels
        matrix = interpolation_matrix(*axis, continues_mm=continues_mm)
        columns = np.flatnonzero(matrix.any(axis=0))
        window.append(slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1))
        matrices.append(matrix[:, window[-1]])
    offset = np.float32(0.0 if fill_value is None else fill_value)
    return _apply_matrices(volume[tuple(window)].astype(np.float32) - offset, matrices) + offset


def average_onto(
    volume: FloatArray,
    source_spacing_mm: Vector,
    target_shape: Sequence[int] | NDArray[np.integer[Any]],
    target_spacing_mm: Vector,
    target_start_mm: Vector,
) -> FloatArray:
    """Average a volume over the voxels of a parallel grid, as a thick slice does to a thin structure.

    Values go on beyond the volume's faces. Arguments and result are those of `resample`.
    """
    axes = zip(volume.shape, source_spacing_mm, target_shape, target_spacing_mm, target_start_mm, strict=True)
    return _apply_matrices(volume, [_averaging_matrix(*axis) for axis in axes])


def _averaging_matrix(
    source_size: int, source_spacing_mm: float, target_size: int, target_spacing_mm: float, target_start_mm: float
) -> FloatArray:
    """Weights (see `interpolation_matrix`) that average the linear interpolant over the extent of every target voxel.

    Positions beyond the ends take the end value, so every row sums to 1.
    """
    parts = max(1, math.ceil(2.0 * target_spacing_mm / source_spacing_mm))
    offsets_mm = ((np.arange(parts) + 0.5) / parts - 0.5) * target_spacing_mm
    targets_mm = target_start_mm + np.arange(target_size) * target_spacing_mm
    positions = (targets_mm[:, None] + offsets_mm[None, :]) / source_spacing_mm  # (T, P)
    positions = np.clip(positions, 0.0, source_size - 1.0)
    lower = np.minimum(np.floor(positions).astype(np.int64), max(source_size - 2, 0))
    fraction = positions - lower
    indices = np.concatenate([lower, lower + 1], axis=1)
    weights = np.concatenate([1.0 - fraction, fraction], axis=1) / parts
    return _scatter_rows(indices, weights, source_size)


def _apply_matrices(volume: FloatArray, matrices: Sequence[FloatArray]) -> FloatArray:
    """Multiply each axis of a volume (D, H, W) by its matrix, of shape (new size, size)."""
    depth, height, width = volume.shape
    product = volume.reshape(depth * height, width) @ matrices[2].T
    product = product.reshape(depth, height, -1)
    product = np.matmul(matrices[1], product)  # (D, new H, new W)
    flat = matrices[0] @ product.reshape(depth, -1)
    return np.ascontiguousarray(flat.reshape(matrices[0].shape[0], *product.shape[1:]), dtype=np.float32)


def _scatter_rows(indices: NDArray[np.int64], weights: NDArray[np.float64], size: int) -> FloatArray:
    matrix = np.zeros((indices.shape[0], size), dtype=np.float64)
    rows = np.broadcast_to(np.arange(indices.shape[0])[:, None], indices.shape)
    inside = (indices >= 0) & (indices < size)
    np.add.at(matrix, (rows[inside], indices[inside]), weights[inside])
    return matrix.astype(np.float32)
