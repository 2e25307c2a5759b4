"""Tumours of the phantom: masses with a soft rim and a coarse texture, in an organ or growing out of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.geometry import Plane, Points, SmoothField, find_window
from nnunet_difftumor.phantom.painting import paint_anatomy
from nnunet_difftumor.phantom.styles import OrganRule, TumorStyle
from nnunet_difftumor.tumor.appearance import Appearance, Range
from nnunet_difftumor.tumor.sizes import draw_size_class
from nnunet_difftumor.tumor.spec import Triple, TumorSpec, draw_tumor_spec
from nnunet_difftumor.tumor.surface import TumorSurface

_SEARCH_STEP_MM = 4.0
_PLACEMENT_TRIES = 200


class Lesion:
    """One tumour of a patient; its centre is (z, y, x) in the patient's frame."""

    def __init__(self, spec: TumorSpec, organ: OrganRule, style: TumorStyle, rng: np.random.Generator) -> None:
        """Draw texture, core and edge; the order of the lines is that of the random stream."""
        self.spec, self.organ = spec, organ
        self.surface = TumorSurface(spec)
        self.texture = SmoothField(style.texture_mm, rng)
        self.texture_hu = _within(style.texture_hu, rng)  # standard deviation
        # additional difference at the centre, as a necrotic core has
        self.core_hu = _within(style.core_hu, rng) if spec.radius_mm > style.core_from_mm else 0.0
        self.edge_mm = float(np.clip(_within(style.edge_share, rng) * spec.radius_mm, 1.0, 3.0))
        self.edge_offset_mm = style.edge_offset_mm  # of what is seen, against the outline that is drawn

    def paint_(
        self, hu: Plane, points: Points, distances_mm: Mapping[str, Plane], organ_hu: float, edge_mm: float
    ) -> Plane:
        """Paint the tumour onto a plane, inside its organ only unless it may grow out of it.

        Args:
            hu: What `paint_anatomy` returned for the points, as the distances; changed in place. Shape (H, W).
            organ_hu: Mean value of the tumour's organ in HU.

        Returns:
            Share of each voxel that a reader takes for tumour. Shape (H, W).
        """
        share = np.zeros_like(hu)
        limit_mm = distances_mm["free" if self.organ.exophytic_share else self.organ.name]
        allowed = np.clip(0.5 - limit_mm / edge_mm, 0.0, 1.0)
        near = self._distances_near(points)
        if near is not None:
            window, part, distance_mm = near
            ramp = np.clip(0.5 - distance_mm / self.edge_mm, 0.0, 1.0)
            weight = ramp * ramp * (3.0 - 2.0 * ramp) * allowed[window]
            core = np.clip(-distance_mm / self.spec.radius_mm, 0.0, 1.0)
            value_hu = organ_hu + (self.spec.contrast_hu or 0.0) + self.core_hu * core
            value_hu = value_hu + self.texture_hu * self.texture(part)
            hu[window] += weight * (value_hu - hu[window])
        if self.edge_offset_mm < 0:  # a window of its own, so that the image does not depend on the reader
            near = self._distances_near(points, -self.edge_offset_mm)
        if near is not None:
            window, _, distance_mm = near
            share[window] = np.clip(0.5 - (distance_mm + self.edge_offset_mm) / edge_mm, 0.0, 1.0) * allowed[window]
        return share

    def _distances_near(
        self, points: Points, farther_mm: float = 0.0
    ) -> tuple[tuple[slice, slice], Points, Plane] | None:
        """The window of a plane that the tumour reaches, its points (3, h, w) and their signed distances (h, w)."""
        reach_mm = (self.surface.half_extent_mm + self.edge_mm + farther_mm)[::-1]
        centre_mm = np.array(self.spec.centre_mm[::-1])
        window = find_window(points, centre_mm - reach_mm, centre_mm + reach_mm)
        if window is None:
            return None
        part = points[:, *window]  # as (x, y, z)
        offsets = np.stack(tuple(part[::-1]), axis=-1).reshape(-1, 3) - self.spec.centre_mm
        return window, part, self.surface.signed_distance(offsets).reshape(part.shape[1:]).astype(np.float32)


def draw_lesions(
    anatomy: Anatomy, organ: OrganRule, style: TumorStyle, count: int, z_range_mm: Range, rng: np.random.Generator
) -> list[Lesion]:
    """Draw tumours of an organ that do not touch each other.

    Args:
        count: Number of tumours asked for. The first always fits; a later one may be left out.
        z_range_mm: Lowest and highest plane of the scan in mm.
    """
    places_mm, depth_mm = _organ_places(anatomy, organ, z_range_mm)
    lesions: list[Lesion] = []
    size_classes = style.size_classes or organ.size_classes
    for index in range(count):
        size = draw_size_class(size_classes if index else size_classes[:1], rng)
        contrast_hu = _within(organ.contrast_hu[anatomy.phase], rng) * _within(style.contrast_share, rng)
        drawn = draw_tumor_spec(size, (0.0, 0.0, 0.0), Appearance(contrast_hu=contrast_hu), rng)
        suits = _suitable(drawn.radius_mm, organ, depth_mm, rng)
        centre_mm = _place(drawn.radius_mm, places_mm[suits], lesions, rng)
        if centre_mm is not None:
            lesions.append(Lesion(drawn.moved_to(centre_mm), organ, style, rng))
    return lesions


def _within(limits: Range, rng: np.random.Generator) -> float:
    low, high = limits
    return low if low == high else float(rng.uniform(low, high))


def _organ_places(anatomy: Anatomy, organ: OrganRule, z_range_mm: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) as (z, y, x) inside an organ, and their depth below its surface (N,), in mm."""
    axis = np.arange(-150.0, 150.0, _SEARCH_STEP_MM, dtype=np.float32)
    x_mm, y_mm = np.meshgrid(axis, axis, indexing="xy")
    places, depths = [], []
    for z_mm in np.arange(z_range_mm[0] + 5.0, z_range_mm[1] - 5.0, _SEARCH_STEP_MM):
        points = np.stack([x_mm, y_mm, np.full_like(x_mm, z_mm)])
        distance_mm = paint_anatomy(anatomy, points, edge_mm=2.0)[1][organ.name]
        rows, columns = np.nonzero(distance_mm < -2.0)
        places.append(np.stack([np.full(len(rows), z_mm), y_mm[rows, columns], x_mm[rows, columns]], axis=1))
        depths.append(-distance_mm[rows, columns])
    return np.concatenate(places), np.concatenate(depths)


def _suitable(radius_mm: float, organ: OrganRule, depth_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which places suit a tumour: 0.7 radii deep, or as deep as there is; at the surface if it grows out of it."""
    if organ.exophytic_share and rng.random() < organ.exophytic_share:
        return depth_mm <= max(0.35 * radius_mm, float(depth_mm.min()))
    return depth_mm >= min(0.7 * radius_mm, float(depth_mm.max()))


def _place(radius_mm: float, candidates: np.ndarray, lesions: list[Lesion], rng: np.random.Generator) -> Triple | None:
    """One of the candidate places, free of other tumours."""
    for _ in range(_PLACEMENT_TRIES):
        jitter = rng.uniform(-0.5, 0.5, size=3) * _SEARCH_STEP_MM
        centre = candidates[int(rng.integers(len(candidates)))] + jitter
        others = [lesion.spec for lesion in lesions]
        if all(np.linalg.norm(centre - each.centre_mm) - 1.3 * (radius_mm + each.radius_mm) > 6.0 for each in others):
            return (float(centre[0]), float(centre[1]), float(centre[2]))
    return None
