"""Implicit tumour shapes in mm: what is drawn for a tumour, and the surface that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.resample import Vector
from nnunet_difftumor.tumor.spec import WAVES, Triple, TumorSpec

_QUADRATURE_POINTS = 4096


class TumorSurface:
    """Star-shaped surface of a tumour around its centre.

    In the frame of the unit ball (y = A^-1 R^T x) the surface is |y| = exp(g(y / |y|)), where g is a sum
    of plane waves on the sphere. The semi-axes A are scaled so that the volume is exactly that of the
    sphere of `radius_mm`: V = |A| * mean(exp(3 g)) * 4 pi / 3.
    """

    def __init__(self, spec: TumorSpec) -> None:
        self.spec = spec
        shape = _shape_of(spec.seed, spec.roughness, spec.axis_ratios, spec.rotation, spec.radius_mm)
        self._waves, self._phases, self._amplitudes, self._rotation = shape[:4]
        self.semi_axes_mm = shape.semi_axes_mm
        self.half_extent_mm = shape.half_extent_mm  # (3,) along D, H, W

    @property
    def volume_mm3(self) -> float:
        """Volume in mm3, that of the sphere of `radius_mm`."""
        return 4.0 / 3.0 * math.pi * self.spec.radius_mm**3

    def signed_distance(self, offset_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Distance to the surface in mm, exact to first order near it; negative inside. Shape (N,).

        The positions, of shape (N, 3), are relative to the tumour's centre, array order.
        """
        body = (offset_mm @ self._rotation) / self.semi_axes_mm  # (N, 3)
        norm = np.linalg.norm(body, axis=1)
        direction = body / np.maximum(norm, 1e-9)[:, None]
        angles = direction @ self._waves.T + self._phases  # (N, K)
        slope = -(np.sin(angles) * self._amplitudes) @ self._waves  # gradient of g, (N, 3)
        shrink = np.exp(-(np.cos(angles) @ self._amplitudes))
        implicit = norm * shrink - 1.0
        tangential = slope - np.sum(slope * direction, axis=1, keepdims=True) * direction
        gradient = (direction - tangential) * shrink[:, None] / self.semi_axes_mm
        steepness = np.linalg.norm(gradient, axis=1)
        floor = 0.5 / float(self.semi_axes_mm.max())
        return implicit / np.maximum(steepness, floor)

    def signed_distance_on_grid(
        self, shape: Sequence[int], spacing_mm: Vector, start_mm: Vector
    ) -> NDArray[np.float32]:
        """Signed distance in mm at the voxel centres of a grid that starts at a place in the frame of `spec.centre_mm`.

        Shape (D, H, W), as `shape`.
        """
        axes = [
            start_mm[axis] + np.arange(shape[axis]) * spacing_mm[axis] - self.spec.centre_mm[axis] for axis in range(3)
        ]
        offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return self.signed_distance(offsets).reshape(tuple(shape)).astype(np.float32)

    def interior_offsets_mm(self, count: int) -> NDArray[np.float64]:
        """Points spread evenly over the tumour's volume, relative to its centre in mm. Shape (count, 3)."""
        direction = _fibonacci_sphere(count)
        log_radius = self._log_radius(direction)
        depth = _bit_reversed(count) ** (1.0 / 3.0)  # unrelated to the sphere's azimuths and heights
        body = (depth * np.exp(log_radius))[:, None] * direction
        return (body * self.semi_axes_mm) @ self._rotation.T

    def surface_offsets_mm(self, count: int) -> NDArray[np.float64]:
        """Points spread over the tumour's surface, relative to its centre in mm. Shape (count, 3)."""
        direction = _fibonacci_sphere(count)
        log_radius = self._log_radius(direction)
        return _on_surface(direction, log_radius, self.semi_axes_mm, self._rotation)

    def _log_radius(self, direction: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logarithm g of the radius at unit directions of shape (N, 3). Shape (N,)."""
        return np.cos(direction @ self._waves.T + self._phases) @ self._amplitudes


class _Shape(NamedTuple):
    """What a surface is made of, wherever it lies; shared by all that read it."""

    waves: NDArray[np.float64]  # (K, 3)
    phases: NDArray[np.float64]  # (K,)
    amplitudes: NDArray[np.float64]  # (K,)
    rotation: NDArray[np.float64]  # (3, 3)
    semi_axes_mm: NDArray[np.float64]  # (3,)
    half_extent_mm: NDArray[np.float64]  # (3,)


@lru_cache(maxsize=256)
def _shape_of(
    seed: int, roughness: float, axis_ratios: Triple, rotation: tuple[float, float, float, float], radius_mm: float
) -> _Shape:
    """Shape of a spec; a tumour is looked at many times at other places, and measuring it takes a millisecond."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = directions * rng.uniform(2.0, 5.0, size=(WAVES, 1))
    phases = rng.uniform(0.0, 2.0 * math.pi, size=WAVES)
    amplitudes = rng.normal(size=WAVES)
    amplitudes *= roughness * math.sqrt(2.0 / np.sum(amplitudes**2))
    matrix = _rotation_matrix(rotation)
    sphere = _fibonacci_sphere(_QUADRATURE_POINTS)
    log_radius = np.cos(sphere @ waves.T + phases) @ amplitudes
    shape_volume = float(np.prod(axis_ratios) * np.mean(np.exp(3.0 * log_radius)))
    semi_axes_mm = np.asarray(axis_ratios) * radius_mm / shape_volume ** (1.0 / 3.0)
    half_extent_mm = np.abs(_on_surface(sphere, log_radius, semi_axes_mm, matrix)).max(axis=0)
    shape = _Shape(waves, phases, amplitudes, matrix, semi_axes_mm, half_extent_mm)
    for values in shape:
        values.flags.writeable = False
    return shape


def _on_surface(
    direction: NDArray[np.floating],
    log_radius: NDArray[np.float64],
    semi_axes_mm: NDArray[np.float64],
    rotation: NDArray[np.float64],
) -> NDArray[np.float64]:
    return (np.exp(log_radius)[:, None] * direction * semi_axes_mm) @ rotation.T


def _rotation_matrix(quaternion: Sequence[float]) -> NDArray[np.float64]:
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _bit_reversed(count: int) -> NDArray[np.float64]:
    """Van der Corput's sequence in base 2: 1/2, 1/4, 3/4, 1/8, ... Shape (count,)."""
    number = np.arange(1, count + 1)
    value, weight = np.zeros(count), 0.5
    while number.any():
        value += weight * (number & 1)
        number >>= 1
        weight *= 0.5
    return value


@lru_cache(maxsize=4)
def _fibonacci_sphere(count: int) -> NDArray[np.float64]:
    index = np.arange(count) + 0.5
    height = 1.0 - 2.0 * index / count
    angle = math.pi * (1.0 + math.sqrt(5.0)) * index
    ring = np.sqrt(1.0 - height**2)
    directions = np.stack([np.cos(angle) * ring, np.sin(angle) * ring, height], axis=1)
    directions.flags.writeable = False  # shared by all callers
    return directions
