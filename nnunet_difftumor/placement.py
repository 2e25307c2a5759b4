"""Choice of sizes and places for the tumours of one host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.appearance import AppearanceRule
from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.host import Host
from nnunet_difftumor.roi import support_radius_mm
from nnunet_difftumor.shape import TumorSpec, TumorSurface, draw_tumor_spec
from nnunet_difftumor.sizes import PAPER_SIZE_CLASSES, SizeClass, draw_size_class, fit_size_classes

Box = tuple[slice, slice, slice]

_INTERIOR_POINTS = 256


@dataclass(frozen=True, kw_only=True)
class TumorPlan:
    """What to draw for a host.

    Attributes:
        size_classes: Classes of radii in mm.
        appearances: What contrast and heterogeneity are drawn from.
        minimum_inside_share: Least share of a tumour's volume that must lie in replaceable voxels.
        tries: Centres that are tried for a tumour before a smaller one is drawn.
        shrinks: Times that a smaller radius is drawn, down to the smallest of all classes, before the tumour
            is given up.
    """

    size_classes: tuple[SizeClass, ...] = PAPER_SIZE_CLASSES
    appearances: AppearanceRule = field(default_factory=AppearanceRule)
    minimum_inside_share: float = 0.7
    tries: int = 20
    shrinks: int = 4


def draw_tumors(
    host: Host,
    plan: TumorPlan,
    rng: np.random.Generator,
    *,
    first_centre: Sequence[int] | None = None,
    region: Box | None = None,
    count: int | None = None,
) -> tuple[list[TumorSpec], Counter[str]]:
    """Draw tumours uniformly over the organ's voxels, apart from one another; always ends.

    Args:
        host: The scan.
        plan: Sizes, contrasts and rules.
        rng: Random generator.
        first_centre: Voxel index at which the first tumour is tried first, for example because a patch
            was centred there.
        region: Part of the host in which centres may lie; the whole host by default.
        count: Number of tumours; drawn from the size class by default.

    Returns:
        The drawn tumours, and how many were given up by reason ("no_room").

    Raises:
        EmptyOrganError: If the organ has no voxel in the region.
    """
    region = region or (slice(None), slice(None), slice(None))
    candidates = _organ_voxels(host, region)
    if len(candidates) == 0:
        raise EmptyOrganError("The organ mask has no voxel where a tumour may be placed; choose a scan that shows it.")
    size_class = draw_size_class(fit_size_classes(plan.size_classes, _largest_radius_mm(host)), rng)
    count = int(rng.integers(1, size_class.max_count + 1)) if count is None else count
    specs: list[TumorSpec] = []
    given_up: Counter[str] = Counter()
    for index in range(count):
        preferred = first_centre if index == 0 else None
        spec = _place_one(host, plan, size_class, specs, candidates, preferred, rng)
        if spec is None:
            given_up["no_room"] += 1
        else:
            specs.append(spec)
    return specs, given_up


def _largest_radius_mm(host: Host) -> float:
    """Largest radius that a host can show: 0.4 of its smallest extent."""
    extent_mm = np.multiply(host.image_hu.shape, host.spacing_mm)
    return 0.4 * float(extent_mm.min())


def _organ_voxels(host: Host, region: Box) -> NDArray[np.int64]:
    inside = host.organ_mask[region] & host.replaceable_mask[region]
    flat = np.flatnonzero(inside)
    corner = [part.start or 0 for part in region]
    return np.stack(np.unravel_index(flat, inside.shape), axis=1) + np.asarray(corner)


def _place_one(
    host: Host,
    plan: TumorPlan,
    size_class: SizeClass,
    placed: Sequence[TumorSpec],
    candidates: NDArray[np.int64],
    preferred: Sequence[int] | None,
    rng: np.random.Generator,
) -> TumorSpec | None:
    smallest_mm = min(size.radius_mm[0] for size in plan.size_classes)
    spec = draw_tumor_spec(size_class, (0.0, 0.0, 0.0), plan.appearances.draw(rng), rng)
    for _ in range(plan.shrinks + 1):
        surface = TumorSurface(spec)
        centres = candidates[rng.integers(len(candidates), size=plan.tries)]  # (tries, 3)
        if preferred is not None:
            centres = np.concatenate([np.asarray(preferred)[None, :], centres])
        centres_mm = (centres + rng.uniform(-0.5, 0.5, size=centres.shape)) * np.asarray(host.spacing_mm)
        fits = _inside_share(host, surface, centres_mm) >= plan.minimum_inside_share
        fits &= _is_apart(surface, centres_mm, placed)
        if fits.any():
            return spec.moved_to(centres_mm[int(np.argmax(fits))])
        if spec.radius_mm <= smallest_mm:
            return None
        spec = replace(spec, radius_mm=max(smallest_mm, float(rng.uniform(0.5, 0.8)) * spec.radius_mm))
    return None


def _inside_share(host: Host, surface: TumorSurface, centres_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the tumour's volume in replaceable voxels, for every centre. Shape (N,)."""
    points_mm = centres_mm[:, None, :] + surface.interior_offsets_mm(_INTERIOR_POINTS)[None]  # (N, P, 3)
    voxels = np.round(points_mm / np.asarray(host.spacing_mm)).astype(np.int64)
    shape = np.asarray(host.replaceable_mask.shape)
    within = np.all((voxels >= 0) & (voxels < shape), axis=-1)
    voxels = np.clip(voxels, 0, shape - 1)
    allowed = host.replaceable_mask[voxels[..., 0], voxels[..., 1], voxels[..., 2]] & within
    return allowed.mean(axis=1)


def _is_apart(surface: TumorSurface, centres_mm: NDArray[np.float64], placed: Sequence[TumorSpec]) -> NDArray[np.bool_]:
    """True for centres at which the tumour's support meets no other's. Shape (N,)."""
    apart = np.ones(len(centres_mm), dtype=bool)
    for spec in placed:
        distance_mm = np.linalg.norm(centres_mm - np.asarray(spec.centre_mm), axis=1)
        apart &= distance_mm > support_radius_mm(surface) + support_radius_mm(TumorSurface(spec))
    return apart
