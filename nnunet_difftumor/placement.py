"""Choice of sizes and places for the tumours of one host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.appearance import Appearance, AppearanceRule, Range
from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.host import Host
from nnunet_difftumor.organ_depth import organ_depth_mm
from nnunet_difftumor.roi import support_radius_mm
from nnunet_difftumor.shape import TumorSpec, TumorSurface, draw_tumor_spec
from nnunet_difftumor.sizes import PAPER_SIZE_CLASSES, SizeClass, draw_size_class, fit_size_classes

Box = tuple[slice, slice, slice]

_INTERIOR_POINTS = 256


@dataclass(frozen=True, kw_only=True)
class Zone:
    """Where in its organ a tumour may lie.

    Attributes:
        surface_distance_mm: Smallest and largest distance of the centre from the organ's surface in mm. What the
            host's edge or its padding cuts off counts as organ that goes on.
        avoid_distance_mm: Distance that the tumour's surface keeps from the host's `avoid_mask`, in mm.
        outside_share: Share of the surface outside the organ, for tumours that may leave it: a range, or
            "kidney" for shares by size as in real kidney tumours.
    """

    surface_distance_mm: Range | None = None
    avoid_distance_mm: float = 0.0
    outside_share: Range | str | None = None

    def draw_outside_share(self, radius_mm: float, rng: np.random.Generator) -> float | None:
        """Draw the wanted share of a tumour's surface outside the organ, or None if it is left open."""
        if self.outside_share is None:
            return None
        if isinstance(self.outside_share, str):
            mean = np.interp(2.0 * radius_mm, *_KIDNEY_OUTSIDE_SHARES)
            return float(np.clip(rng.normal(mean, _KIDNEY_SHARE_SD), 0.0, 0.9))
        return float(rng.uniform(*self.outside_share))


_KIDNEY_OUTSIDE_SHARES = ((15.6, 30.1, 71.6), (0.34, 0.49, 0.74))
"""Median diameter in mm, and median share of the surface outside the kidney, of 72 tumours of KiTS19 in three bins."""

_KIDNEY_SHARE_SD = 0.15
INSIDE = Zone()


@dataclass(frozen=True, kw_only=True)
class TumorPlan:
    """What to draw for a host.

    Attributes:
        size_classes: Classes of radii in mm.
        appearances: What contrast and heterogeneity are drawn from.
        zone: Where in the organ.
        minimum_inside_share: Least share of a tumour's volume that must lie in replaceable voxels.
        tries: Centres that are tried for a tumour before a smaller one is drawn.
        shrinks: Times that a smaller radius is drawn before the tumour is given up.
        keeps_class: A smaller radius stays in the size class that was drawn, so that the classes land as often as
            they were asked for. Otherwise it goes down to the smallest of all classes.
        faint_share: Share of the tumours whose look is the fainter one of two draws.
    """

    size_classes: tuple[SizeClass, ...] = PAPER_SIZE_CLASSES
    appearances: AppearanceRule = field(default_factory=AppearanceRule)
    zone: Zone = INSIDE
    minimum_inside_share: float = 0.7
    tries: int = 20
    shrinks: int = 4
    keeps_class: bool = False
    faint_share: float = 0.0


@dataclass(frozen=True)
class DrawnSample:
    """What was drawn for one sample before its host was looked at.

    Attributes:
        size_class: The class that the radii come from.
        specs: The tumours, centred at 0.
    """

    size_class: SizeClass
    specs: tuple[TumorSpec, ...]


def draw_sample(
    plan: TumorPlan,
    largest_radius_mm: float,
    rng: np.random.Generator,
    *,
    size_class: SizeClass | None = None,
    count: int | None = None,
) -> DrawnSample:
    """Draw sizes, shapes and looks of the tumours of one sample; where they go is not drawn here.

    Args:
        plan: Sizes and looks.
        largest_radius_mm: Largest radius that a host can show, in mm.
        rng: Random generator.
        size_class: The class; drawn by default.
        count: Number of tumours; drawn from the size class by default.

    Returns:
        The tumours.
    """
    if size_class is None:
        size_class = draw_size_class(fit_size_classes(plan.size_classes, largest_radius_mm), rng)
    count = int(rng.integers(1, size_class.max_count + 1)) if count is None else count
    origin = (0.0, 0.0, 0.0)
    specs = tuple(draw_tumor_spec(size_class, origin, _draw_look(plan, rng), rng) for _ in range(count))
    return DrawnSample(size_class, specs)


def _draw_look(plan: TumorPlan, rng: np.random.Generator) -> Appearance:
    look = plan.appearances.draw(rng)
    if plan.faint_share > 0 and rng.random() < plan.faint_share:
        looks = (look, plan.appearances.draw(rng))
        return min(looks, key=lambda each: abs(each.contrast_hu or 0.0))
    return look


def place_tumors(
    host: Host,
    plan: TumorPlan,
    sample: DrawnSample,
    rng: np.random.Generator,
    *,
    first_centre: Sequence[int] | None = None,
    region: Box | None = None,
) -> tuple[list[TumorSpec], Counter[str]]:
    """Place tumours uniformly over the organ's voxels of their zone, apart from one another; always ends.

    Args:
        host: The scan.
        plan: Rules.
        sample: The drawn tumours.
        rng: Random generator.
        first_centre: Voxel index at which the first tumour is tried first, for example because a patch
            was centred there; left out if the zone has a distance from the surface and the voxel is not at it.
        region: Part of the host in which centres may lie; the whole host by default.

    Returns:
        The placed tumours, and how many were given up by reason ("no_room").

    Raises:
        EmptyOrganError: If the organ has no voxel in the region.
    """
    region = region or (slice(None), slice(None), slice(None))
    candidates = _organ_voxels(host, region, plan.zone)
    if len(candidates) == 0:
        raise EmptyOrganError("The organ mask has no voxel where a tumour may be placed; choose a scan that shows it.")
    if first_centre is not None and plan.zone.surface_distance_mm is not None:
        first_centre = first_centre if (candidates == np.asarray(first_centre)).all(axis=1).any() else None
    smallest_mm = min(size.radius_mm[0] for size in ((sample.size_class,) if plan.keeps_class else plan.size_classes))
    placed: list[TumorSpec] = []
    given_up: Counter[str] = Counter()
    for index, drawn in enumerate(sample.specs):
        preferred = first_centre if index == 0 else None
        spec = _place_one(host, plan, drawn, smallest_mm, placed, candidates, preferred, rng)
        if spec is None:
            given_up["no_room"] += 1
        else:
            placed.append(spec)
    return placed, given_up


def draw_tumors(
    host: Host,
    plan: TumorPlan,
    rng: np.random.Generator,
    *,
    first_centre: Sequence[int] | None = None,
    region: Box | None = None,
    count: int | None = None,
) -> tuple[list[TumorSpec], Counter[str]]:
    """Draw tumours and place them (see `draw_sample` and `place_tumors`)."""
    sample = draw_sample(plan, largest_radius_mm(host.image_hu.shape, host.spacing_mm), rng, count=count)
    return place_tumors(host, plan, sample, rng, first_centre=first_centre, region=region)


def largest_radius_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Largest radius that a grid can show: 0.4 of its smallest extent, in mm."""
    return 0.4 * float(np.multiply(shape, spacing_mm).min())


def _organ_voxels(host: Host, region: Box, zone: Zone) -> NDArray[np.int64]:
    allowed = host.organ_mask & host.replaceable_mask
    inside = allowed[region]
    if zone.surface_distance_mm is not None and inside.any():
        low_mm, high_mm = zone.surface_distance_mm
        depth_mm = organ_depth_mm(host.organ_mask, host.valid_mask, host.spacing_mm)[region]
        inside = inside & (depth_mm >= low_mm) & (depth_mm <= high_mm)
    flat = np.flatnonzero(inside)
    corner = [part.start or 0 for part in region]
    return np.stack(np.unravel_index(flat, inside.shape), axis=1) + np.asarray(corner)


def _place_one(
    host: Host,
    plan: TumorPlan,
    spec: TumorSpec,
    smallest_mm: float,
    placed: Sequence[TumorSpec],
    candidates: NDArray[np.int64],
    preferred: Sequence[int] | None,
    rng: np.random.Generator,
) -> TumorSpec | None:
    wanted_outside = plan.zone.draw_outside_share(spec.radius_mm, rng)
    tries = plan.tries if wanted_outside is None else 3 * plan.tries
    for _ in range(plan.shrinks + 1):
        surface = TumorSurface(spec)
        centres = candidates[rng.integers(len(candidates), size=tries)]  # (tries, 3)
        if preferred is not None:
            centres = np.concatenate([np.asarray(preferred)[None, :], centres])
        centres_mm = (centres + rng.uniform(-0.5, 0.5, size=centres.shape)) * np.asarray(host.spacing_mm)
        fits = _share_in(host.replaceable_mask, host, surface, centres_mm) >= plan.minimum_inside_share
        fits &= _is_apart(surface, centres_mm, placed)
        fits &= _keeps_away(host, plan.zone, surface, centres_mm)
        if fits.any():
            best = int(np.argmax(fits))
            if wanted_outside is not None:
                outside = 1.0 - _share_in(host.organ_mask, host, surface, centres_mm, on_surface=True)
                best = int(np.argmin(np.where(fits, np.abs(outside - wanted_outside), np.inf)))
            return spec.moved_to(centres_mm[best])
        if spec.radius_mm <= smallest_mm:
            return None
        spec = replace(spec, radius_mm=max(smallest_mm, float(rng.uniform(0.5, 0.8)) * spec.radius_mm))
    return None


def _keeps_away(host: Host, zone: Zone, surface: TumorSurface, centres_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True for centres at which the tumour keeps its distance from what it shall avoid. Shape (N,)."""
    if host.avoid_mask is None or not host.avoid_mask.any():
        return np.ones(len(centres_mm), dtype=bool)
    near = np.asarray(distance_transform_edt(~host.avoid_mask, sampling=host.spacing_mm)) < zone.avoid_distance_mm
    return _share_in(near | host.avoid_mask, host, surface, centres_mm, on_surface=None) == 0.0


def _share_in(
    mask: NDArray[np.bool_],
    host: Host,
    surface: TumorSurface,
    centres_mm: NDArray[np.float64],
    *,
    on_surface: bool | None = False,
) -> NDArray[np.float64]:
    """Share of a tumour's volume, surface, or both (None) that lies in a mask, for every centre. Shape (N,)."""
    inside = [] if on_surface else [surface.interior_offsets_mm(_INTERIOR_POINTS)]
    outline = [] if on_surface is False else [surface.surface_offsets_mm(_INTERIOR_POINTS)]
    points_mm = centres_mm[:, None, :] + np.concatenate([*inside, *outline])[None]  # (N, P, 3)
    voxels = np.round(points_mm / np.asarray(host.spacing_mm)).astype(np.int64)
    shape = np.asarray(mask.shape)
    within = np.all((voxels >= 0) & (voxels < shape), axis=-1)
    voxels = np.clip(voxels, 0, shape - 1)
    return (mask[voxels[..., 0], voxels[..., 1], voxels[..., 2]] & within).mean(axis=1)


def _is_apart(surface: TumorSurface, centres_mm: NDArray[np.float64], placed: Sequence[TumorSpec]) -> NDArray[np.bool_]:
    """True for centres at which the tumour's support meets no other's. Shape (N,)."""
    apart = np.ones(len(centres_mm), dtype=bool)
    for spec in placed:
        distance_mm = np.linalg.norm(centres_mm - np.asarray(spec.centre_mm), axis=1)
        apart &= distance_mm > support_radius_mm(surface) + support_radius_mm(TumorSurface(spec))
    return apart
