"""Normalised surface distance: the share of two surfaces that lies within a tolerance of the other.

Masks are (D, H, W), and spacings in mm are ordered alike.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

_CORNERS = tuple(itertools.product((0, 1), repeat=3))
_FULL = 2 ** len(_CORNERS) - 1
_ROUNDING_MM = 1e-6


def surface_agreement(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerances_mm: Sequence[float],
) -> tuple[float, ...]:
    """Normalised surface distance (surface Dice) of two masks; cropping both to what they hold changes nothing.

    Args:
        tolerances_mm: Distances in mm up to which surfaces agree.

    Returns:
        For each tolerance the area of both surfaces that lies within it of the other surface, over the area of both.
        0 if one mask is empty, NaN if both are.

    Source:
        Nikolov et al., "Clinically applicable segmentation of head and neck anatomy for radiotherapy", J Med
        Internet Res 2021 (arXiv 1809.04430): elements at the corners of voxels, weighted by the area that marching
        cubes gives them.
    """
    codes = [_corner_codes(mask) for mask in (reference, prediction)]
    elements = [(each != 0) & (each != _FULL) for each in codes]
    if not elements[0].any() or not elements[1].any():
        value = 0.0 if elements[0].any() or elements[1].any() else math.nan
        return (value,) * len(tolerances_mm)
    areas = element_areas_mm2(tuple(spacing_mm))
    places_mm = [np.argwhere(each) * np.asarray(spacing_mm) for each in elements]
    within, total = np.zeros(len(tolerances_mm)), 0.0
    for own, other in ((0, 1), (1, 0)):
        limit_mm = max(tolerances_mm) + 2 * _ROUNDING_MM
        distance_mm, _ = KDTree(places_mm[other]).query(places_mm[own], distance_upper_bound=limit_mm)  # else infinity
        area_mm2 = areas[codes[own][elements[own]]]
        total += float(area_mm2.sum())
        within += [float(area_mm2[distance_mm <= limit + _ROUNDING_MM].sum()) for limit in tolerances_mm]
    return tuple(float(value) for value in within / total)


def _corner_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Which of the eight voxels around each corner are in a mask, one bit each; 0 and 255 are no surface.

    The mask counts as empty beyond the array. Shape (D + 1, H + 1, W + 1).
    """
    codes = np.zeros([size + 1 for size in mask.shape], dtype=np.uint8)
    for bit, corner in enumerate(_CORNERS):
        part = tuple(slice(1 - step, 1 - step + size) for step, size in zip(corner, mask.shape, strict=True))
        codes[part] |= mask.view(np.uint8) << np.uint8(bit)
    return codes


@functools.lru_cache(maxsize=64)
def element_areas_mm2(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Area of the surface element of every neighbourhood in mm2, by code (see `_corner_codes`). Shape (256,)."""
    depth, height, width = spacing_mm
    scale = np.array([height * width, depth * width, depth * height])  # of a triangle's normal
    return np.array([np.linalg.norm(normals * scale, axis=1).sum() for normals in _triangle_normals()])


@functools.lru_cache(maxsize=1)
def _triangle_normals() -> tuple[NDArray[np.float64], ...]:
    """Normals, as long as the area, of the marching-cubes triangles of each neighbourhood at unit spacing.

    A neighbourhood and its complement are one surface seen from two sides: both get the triangles of the one with
    fewer voxels in the mask, so that the area does not depend on which side is called inside.
    """
    normals = []
    for code in range(_FULL + 1):
        corners = [code >> bit & 1 for bit in range(len(_CORNERS))]
        if sum(corners) > 4:
            corners = [1 - value for value in corners]
        if not any(corners):
            normals.append(np.zeros((0, 3)))
            continue
        block = np.array(corners, dtype=np.float32).reshape(2, 2, 2)
        points, triangles, _, _ = marching_cubes(block, 0.5, method="lorensen")
        first, second, third = np.moveaxis(points[triangles].astype(np.float64), 1, 0)
        normals.append(np.cross(second - first, third - first) / 2.0)
    return tuple(normals)
