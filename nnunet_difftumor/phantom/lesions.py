"""Tumours of the phantom: hypodense masses in the liver with a soft rim and a coarse texture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunet_difftumor.appearance import Appearance
from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.geometry import Plane, Points, SmoothField
from nnunet_difftumor.phantom.painting import liver_distance
from nnunet_difftumor.shape import TumorSpec, TumorSurface, draw_tumor_spec
from nnunet_difftumor.sizes import SizeClass, draw_size_class

PHANTOM_SIZE_CLASSES: tuple[SizeClass, ...] = (
    SizeClass(name="medium", radius_mm=(11.0, 20.0), probability=0.4),
    SizeClass(name="small", radius_mm=(6.0, 11.0), probability=0.35),
    SizeClass(name="tiny", radius_mm=(4.0, 6.0), probability=0.25),
)
"""Sizes of the tumours; the first tumour of a patient is always of the first class."""

CONTRAST_RANGE_HU = (-60.0, -30.0)

_SEARCH_STEP_MM = 4.0
_PLACEMENT_TRIES = 200


@dataclass(frozen=True)
class Lesion:
    """One tumour of a patient.

    Attributes:
        surface: Its surface; the centre is (z, y, x) in the patient's frame.
        texture: Field of its coarse texture.
        texture_hu: Standard deviation of the texture in HU.
        core_hu: Additional difference at the centre in HU, as a necrotic core has.
    """

    surface: TumorSurface
    texture: SmoothField
    texture_hu: float
    core_hu: float

    @property
    def spec(self) -> TumorSpec:
        """Size, shape, place and contrast."""
        return self.surface.spec

    def paint_(self, hu: Plane, points: Points, liver_mm: Plane, liver_hu: float, edge_mm: float) -> Plane:
        """Paint the tumour onto a plane, inside the liver only.

        Args:
            hu: Values, changed in place. Shape (H, W).
            points: Positions of the voxels in the patient's frame, in mm.
            liver_mm: Signed distance to the liver in mm. Shape (H, W).
            liver_hu: Mean value of the liver in HU.
            edge_mm: In-plane extent of a voxel in mm.

        Returns:
            Share of each voxel that is tumour. Shape (H, W).
        """
        share = np.zeros_like(hu)
        radius_mm = self.spec.radius_mm
        rim_mm = float(np.clip(0.25 * radius_mm, 1.0, 3.0))
        window = self._window(points, rim_mm)
        if window is None:
            return share
        part = Points(points.x_mm[window], points.y_mm[window], points.z_mm[window])
        offsets = np.stack([part.z_mm, part.y_mm, part.x_mm], axis=-1).reshape(-1, 3) - self.spec.centre_mm
        distance_mm = self.surface.signed_distance(offsets).reshape(part.x_mm.shape).astype(np.float32)
        in_liver = np.clip(0.5 - liver_mm[window] / edge_mm, 0.0, 1.0)
        ramp = np.clip(0.5 - distance_mm / rim_mm, 0.0, 1.0)
        weight = ramp * ramp * (3.0 - 2.0 * ramp) * in_liver
        core = np.clip(-distance_mm / radius_mm, 0.0, 1.0)
        value_hu = liver_hu + (self.spec.contrast_hu or 0.0) + self.core_hu * core
        value_hu = value_hu + self.texture_hu * self.texture(part)
        hu[window] += weight * (value_hu - hu[window])
        share[window] = np.clip(0.5 - distance_mm / edge_mm, 0.0, 1.0) * in_liver
        return share

    def _window(self, points: Points, rim_mm: float) -> tuple[slice, slice] | None:
        reach = self.surface.half_extent_mm + rim_mm
        z, y, x = self.spec.centre_mm
        if np.abs(points.z_mm[0, 0] - z) > reach[0]:
            return None
        rows = np.flatnonzero(np.abs(points.y_mm[:, 0] - y) <= reach[1])
        columns = np.flatnonzero(np.abs(points.x_mm[0, :] - x) <= reach[2])
        if len(rows) == 0 or len(columns) == 0:
            return None
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def draw_lesions(
    anatomy: Anatomy, count: int, z_range_mm: tuple[float, float], rng: np.random.Generator
) -> tuple[Lesion, ...]:
    """Draw tumours that lie in the liver and do not touch each other.

    Args:
        anatomy: The patient.
        count: Number of tumours asked for. The first always fits; a later one may be left out.
        z_range_mm: Lowest and highest plane of the scan in mm.
        rng: Random generator.

    Returns:
        The tumours.
    """
    places_mm, depth_mm = _liver_places(anatomy, z_range_mm)
    lesions: list[Lesion] = []
    for index in range(count):
        size = draw_size_class(PHANTOM_SIZE_CLASSES if index else PHANTOM_SIZE_CLASSES[:1], rng)
        appearance = Appearance(contrast_hu=float(rng.uniform(*CONTRAST_RANGE_HU)))
        drawn = draw_tumor_spec(size, (0.0, 0.0, 0.0), appearance, rng)
        centre_mm = _place(drawn.radius_mm, places_mm, depth_mm, lesions, rng)
        if centre_mm is None:
            continue
        lesions.append(
            Lesion(
                surface=TumorSurface(drawn.moved_to(centre_mm)),
                texture=SmoothField.draw((7.0, 22.0), rng),
                texture_hu=float(rng.uniform(5.0, 11.0)),
                core_hu=float(rng.uniform(-18.0, 0.0)) if drawn.radius_mm > 9.0 else 0.0,
            )
        )
    return tuple(lesions)


def _liver_places(anatomy: Anatomy, z_range_mm: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) as (z, y, x) inside the liver, and their depth below its surface (N,), in mm."""
    axis = np.arange(-150.0, 150.0, _SEARCH_STEP_MM, dtype=np.float32)
    x_mm, y_mm = np.meshgrid(axis, axis, indexing="xy")
    places, depths = [], []
    for z_mm in np.arange(z_range_mm[0] + 5.0, z_range_mm[1] - 5.0, _SEARCH_STEP_MM):
        points = Points(x_mm, y_mm, np.full_like(x_mm, z_mm))
        liver_mm = liver_distance(anatomy, points)
        rows, columns = np.nonzero(liver_mm < -2.0)
        places.append(np.stack([np.full(len(rows), z_mm), y_mm[rows, columns], x_mm[rows, columns]], axis=1))
        depths.append(-liver_mm[rows, columns])
    return np.concatenate(places), np.concatenate(depths)


def _place(
    radius_mm: float, places_mm: np.ndarray, depth_mm: np.ndarray, lesions: list[Lesion], rng: np.random.Generator
) -> tuple[float, float, float] | None:
    """A place at least 0.7 radii below the surface (the deepest place if there is none) and free of others."""
    candidates = places_mm[depth_mm >= min(0.7 * radius_mm, float(depth_mm.max()))]
    for _ in range(_PLACEMENT_TRIES):
        jitter = rng.uniform(-0.5, 0.5, size=3) * _SEARCH_STEP_MM
        centre = candidates[int(rng.integers(len(candidates)))] + jitter
        gaps = [
            np.linalg.norm(centre - lesion.spec.centre_mm) - 1.3 * (radius_mm + lesion.spec.radius_mm)
            for lesion in lesions
        ]
        if all(gap > 6.0 for gap in gaps):
            return (float(centre[0]), float(centre[1]), float(centre[2]))
    return None
