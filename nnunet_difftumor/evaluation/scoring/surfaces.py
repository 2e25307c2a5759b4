"""Normalised surface distance: the share of two surfaces that lies within a tolerance of the other."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

_CORNERS = tuple(itertools.product((0, 1), repeat=3))
_FULL = 2 ** len(_CORNERS) - 1
_ROUNDING_MM = 1e-6


@dataclass(frozen=True, eq=False)
class Surface:
    """The surface of a mask in elements that lie where eight voxels meet.

    Attributes:
        codes: Which of the eight voxels around each corner are in the mask, one bit each; 0 and 255 are no surface.
            One longer than the mask on each axis: the mask counts as empty beyond the array.
    """

    codes: NDArray[np.uint8]

    @classmethod
    def of_mask(cls, mask: NDArray[np.bool_]) -> Surface:
        """Find the surface of a mask of shape (D, H, W)."""
        codes = np.zeros([size + 1 for size in mask.shape], dtype=np.uint8)
        bits = mask.view(np.uint8)
        for bit, corner in enumerate(_CORNERS):
            part = tuple(slice(1 - step, 1 - step + size) for step, size in zip(corner, mask.shape, strict=True))
            codes[part] |= bits << np.uint8(bit)
        return cls(codes)

    @property
    def is_element(self) -> NDArray[np.bool_]:
        """True at the corners that hold an element."""
        return (self.codes != 0) & (self.codes != _FULL)


def surface_agreement(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerances_mm: Sequence[float],
) -> tuple[float, ...]:
    """Normalised surface distance (surface Dice) of two masks.

    Args:
        reference: A mask. Shape (D, H, W).
        prediction: A mask of the same shape; cropping both to what they hold changes nothing.
        spacing_mm: Spacing in mm, (D, H, W).
        tolerances_mm: Distances in mm up to which surfaces agree.

    Returns:
        For each tolerance the area of both surfaces that lies within it of the other surface, over the area of both.
        0 if one mask is empty, NaN if both are.

    Source:
        Nikolov et al., "Clinically applicable segmentation of head and neck anatomy for radiotherapy", J Med
        Internet Res 2021 (arXiv 1809.04430): elements at the corners of voxels, weighted by the area that marching
        cubes gives them.
    """
    surfaces = (Surface.of_mask(reference), Surface.of_mask(prediction))
    areas = element_areas_mm2(tuple(spacing_mm))
    elements = [surface.is_element for surface in surfaces]
    if not elements[0].any() or not elements[1].any():
        value = 0.0 if elements[0].any() or elements[1].any() else math.nan
        return (value,) * len(tolerances_mm)
    within, total = np.zeros(len(tolerances_mm)), 0.0
    for own, other in ((0, 1), (1, 0)):
        distance_mm = _distances_mm(elements[own], elements[other], spacing_mm, max(tolerances_mm))
        area_mm2 = areas[surfaces[own].codes[elements[own]]]
        total += float(area_mm2.sum())
        within += [float(area_mm2[distance_mm <= limit + _ROUNDING_MM].sum()) for limit in tolerances_mm]
    return tuple(float(value) for value in within / total)


def _distances_mm(
    own: NDArray[np.bool_], other: NDArray[np.bool_], spacing_mm: Sequence[float], limit_mm: float
) -> NDArray[np.float64]:
    """Distance of each element of one surface to the nearest of the other; infinite beyond the limit.

    Offsets are tried from near to far, each for the elements that have found nothing yet: most have after a few.
    """
    reach = [min(int((limit_mm + _ROUNDING_MM) / step), size) for step, size in zip(spacing_mm, own.shape, strict=True)]
    padded = np.pad(other, [(size, size) for size in reach])
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    places = (np.argwhere(own) + reach) @ strides  # (N,) in the padded array
    offsets = np.stack(np.meshgrid(*[np.arange(-size, size + 1) for size in reach], indexing="ij"), axis=-1)
    offsets = offsets.reshape(-1, 3)
    lengths_mm = np.linalg.norm(offsets * np.asarray(spacing_mm), axis=1)
    order = np.argsort(lengths_mm, kind="stable")
    order = order[lengths_mm[order] <= limit_mm + _ROUNDING_MM]
    is_other = padded.ravel()
    distance_mm = np.full(len(places), math.inf)
    waiting = np.arange(len(places))
    for step, length_mm in zip(offsets[order] @ strides, lengths_mm[order], strict=True):
        found = is_other[places[waiting] + step]
        distance_mm[waiting[found]] = length_mm
        waiting = waiting[~found]
        if not len(waiting):
            break
    return distance_mm


@functools.lru_cache(maxsize=64)
def element_areas_mm2(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Area of the surface element of every neighbourhood.

    Args:
        spacing_mm: Spacing in mm, (D, H, W).

    Returns:
        Area in mm2 by code (see `Surface.codes`). Shape (256,).
    """
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
