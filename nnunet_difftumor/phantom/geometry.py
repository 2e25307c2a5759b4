"""Signed distances in mm of the simple bodies that the phantom's anatomy is made of.

Positions are (x, y, z) in mm: x towards the patient's left, y towards the back, z towards the head. Points are those of
the voxels of one transverse plane, of shape (3, H, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.resample import Vector

Plane = NDArray[np.floating[Any]]
Points = NDArray[np.floating[Any]]
Triple = tuple[float, float, float]

FAR_MM = np.float32(1e3)


class SmoothField:
    """A random function of position with mean 0 and standard deviation 1: a sum of plane waves."""

    def __init__(self, wavelength_mm: tuple[float, float], rng: np.random.Generator, count: int = 6) -> None:
        """Draw a field with waves from the shortest to the longest length."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        waves = directions * (2.0 * math.pi / rng.uniform(*wavelength_mm, size=(count, 1)))
        self._waves = waves.astype(np.float32)  # (K, 3), in radians per mm, as (x, y, z)
        self._phases = rng.uniform(0.0, 2.0 * math.pi, size=count).astype(np.float32)  # (K,)

    def __call__(self, points: Points) -> Plane:
        """Value at the points. Shape (H, W)."""
        x, y, z = points
        total = np.zeros_like(x)
        for (along_x, along_y, along_z), phase in zip(self._waves, self._phases, strict=True):
            total += np.cos(along_x * x + along_y * y + along_z * z + phase)
        return total * np.float32(math.sqrt(2.0 / len(self._phases)))


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with given half lengths, turned about the long axis of the body: positive turns x towards y."""

    centre_mm: Triple
    semi_axes_mm: Triple
    turn_degrees: float = 0.0

    def distance(self, points: Points) -> Plane:
        """Distance to the surface in mm, exact to first order near it; negative inside. Shape (H, W)."""
        angle = math.radians(self.turn_degrees)
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        x, y, z = points - _column(self.centre_mm)
        a, b, c = (np.float32(axis) for axis in self.semi_axes_mm)
        u, v, w = (cos * x + sin * y) / a, (cos * y - sin * x) / b, z / c
        norm = np.sqrt(u * u + v * v + w * w)
        slope = np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2)
        return norm * (norm - 1.0) / np.maximum(slope, np.float32(1e-4))


@dataclass(frozen=True)
class Tube:
    """A tapering tube along a polyline, with a radius at each corner."""

    nodes_mm: tuple[Triple, ...]
    radii_mm: tuple[float, ...]

    def distance(self, points: Points) -> Plane:
        """Distance to the surface in mm, `FAR_MM` away from it; negative inside. Shape (H, W)."""
        result = np.full(points.shape[1:], FAR_MM)
        segments = zip(pairwise(np.asarray(self.nodes_mm)), pairwise(self.radii_mm), strict=True)
        for (start, stop), (first_mm, last_mm) in segments:
            radius_mm = max(first_mm, last_mm)
            low_mm, high_mm = np.minimum(start, stop) - radius_mm - 6.0, np.maximum(start, stop) + radius_mm + 6.0
            window = find_window(points, low_mm, high_mm)
            if window is None:
                continue
            axis = stop - start
            offset = points[:, *window] - _column(start)
            share = np.clip(sum(np.float32(axis[i] / (axis @ axis)) * offset[i] for i in range(3)), 0.0, 1.0)
            squared = sum((offset[i] - share * np.float32(axis[i])) ** 2 for i in range(3))
            radius = np.float32(first_mm) + share * np.float32(last_mm - first_mm)
            np.minimum(result[window], np.sqrt(squared) - radius, out=result[window])
        return result


def _column(position_mm: Vector) -> NDArray[np.float32]:
    return np.asarray(position_mm, dtype=np.float32)[:, None, None]


def find_window(points: Points, low_mm: Vector, high_mm: Vector) -> tuple[slice, slice] | None:
    """Find the rows and columns of a plane that may lie inside a box; None if the plane misses it.

    The coordinates may be warped by a few mm, so the search looks at the whole plane.
    """
    inside = np.ones(points.shape[1:], dtype=bool)
    for axis in (2, 0, 1):  # most bodies miss most planes
        inside &= (points[axis] >= low_mm[axis]) & (points[axis] <= high_mm[axis])
        if not inside.any():
            return None
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def smooth_minimum(first: Plane, second: Plane, blend_mm: float) -> Plane:
    """Minimum of two distances, rounded over `blend_mm`: the union of two bodies without a crease."""
    return (first + second - np.sqrt((first - second) ** 2 + np.float32(blend_mm**2))) * np.float32(0.5)


def smooth_maximum(first: Plane, second: Plane, blend_mm: float) -> Plane:
    """Maximum of two distances, rounded over `blend_mm`: the intersection of two bodies without an edge."""
    return -smooth_minimum(-first, -second, blend_mm)


def jittered(values: Vector, spread: float, rng: np.random.Generator) -> Triple:
    """Three numbers, each moved by a normal deviate of the given spread."""
    x, y, z = (float(value + rng.normal(0.0, spread)) for value in values)
    return (x, y, z)
