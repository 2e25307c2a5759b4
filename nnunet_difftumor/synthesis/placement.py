"""Choice of sizes and places for the tumours of one scan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import as_box, inside, widened
from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.synthesis.anatomy.organ_depth import organ_depth_mm
from nnunet_difftumor.synthesis.anatomy.vessels import find_vessels
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule, Range
from nnunet_difftumor.tumor.edge import draw_edge
from nnunet_difftumor.tumor.region import support_radius_mm
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES, SizeClass, draw_size_class, fit_size_classes
from nnunet_difftumor.tumor.spec import Triple, TumorSpec, draw_tumor_spec
from nnunet_difftumor.tumor.surface import TumorSurface

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics

_INTERIOR_POINTS = 256
_NEAR_ENOUGH = 0.05  # share of the surface: a place this near to the wanted share outside the organ is as good as any
_FAULTLESS = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Zone:
    """Where in its organ a tumour may lie.

    Attributes:
        surface_distance_mm: Smallest and largest distance of the centre from the organ's surface (see `organ_depth`).
        avoid_distance_mm: Distance that the tumour's surface keeps from what it shall avoid, in mm.
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


@dataclass(frozen=True)
class Surroundings:
    """A box of a scan around a place that is looked at. All masks have the shape of the box.

    Attributes:
        start: Voxel of the scan at the box's corner. (D, H, W).
        replaceable: True where a voxel may become tumour.
        keep_off: Masks that a tumour's surface keeps a distance from, and those distances in mm.
    """

    start: NDArray[np.int64]
    spacing_mm: Triple
    organ: NDArray[np.bool_]
    replaceable: NDArray[np.bool_]
    keep_off: Sequence[tuple[NDArray[np.bool_], float]] = ()

    def share_in(self, mask: NDArray[np.bool_], points_mm: NDArray[np.float64]) -> float:
        """Share of points of the scan, shape (P, 3), in a mask of the box; what is outside the box is not in it."""
        return float(mask[tuple(self._voxels(points_mm).T)].sum()) / len(points_mm)

    def is_near(self, mask: NDArray[np.bool_], points_mm: NDArray[np.float64], distance_mm: float) -> bool:
        """Say whether a mask of the box has a voxel within a distance of a point's voxel (points as in `share_in`)."""
        if not mask.any():
            return False
        # only the surroundings of the points are looked at: the box may be a whole scan
        reach = np.minimum(distance_mm // np.asarray(self.spacing_mm) + 1, mask.shape).astype(np.int64)
        squares = [(np.arange(-n, n + 1) * mm) ** 2 for n, mm in zip(reach.tolist(), self.spacing_mm, strict=True)]
        d, h, w = np.ix_(*squares)
        ball = np.sqrt(d + h + w) <= distance_mm
        for voxel in np.unique(self._voxels(points_mm), axis=0):
            near = widened(as_box(voxel, voxel + 1), reach, mask.shape)
            if (mask[near] & ball[inside(near, as_box(voxel - reach, voxel))]).any():
                return True
        return False

    def _voxels(self, points_mm: NDArray[np.float64]) -> NDArray[np.int64]:
        """Voxels of the box that points of the scan lie in; those outside the box are left out. Shape (N, 3)."""
        voxels = np.round(points_mm / np.asarray(self.spacing_mm)).astype(np.int64) - self.start  # (P, 3)
        return voxels[np.all((voxels >= 0) & (voxels < self.organ.shape), axis=1)]


class Ground(ABC):
    """Where tumours are placed: a scan in memory, or a case that is read where it is looked at.

    Attributes:
        reach_mm: How far beyond a tumour's surface its surroundings must show the scan, in mm.
    """

    spacing_mm: Triple
    reach_mm: float

    @abstractmethod
    def draw_voxel(self, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """Draw a voxel of the organ, all that lie in the zone alike; None if no such voxel was found in some tries.

        Raises:
            EmptyOrganError: If there is none.
        """

    @abstractmethod
    def around(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Surroundings:
        """Look at a box, clipped to the scan."""

    def vessels(self, near: Surroundings) -> NDArray[np.bool_] | None:
        """Find large vessels that no label shows, of the shape of the box; None if they are not looked for."""
        return None


class HostGround(Ground):
    """A scan in memory, with the large vessels that its image shows."""

    def __init__(self, host: Host, zone: Zone) -> None:
        """Find the places of a zone.

        Raises:
            EmptyOrganError: If no voxel of the organ lies in the zone.
        """
        self._host, self.spacing_mm, self.reach_mm = host, host.spacing_mm, zone.avoid_distance_mm
        places = host.organ_mask & host.replaceable_mask
        if zone.surface_distance_mm is not None and places.any():
            low_mm, high_mm = zone.surface_distance_mm
            depth_mm = organ_depth_mm(host.organ_mask, host.valid_mask, host.spacing_mm)
            places &= (depth_mm >= low_mm) & (depth_mm <= high_mm)
        self._places = np.flatnonzero(places)  # (N,)
        if len(self._places) == 0:
            raise EmptyOrganError(
                "The organ mask has no voxel where a tumour may be placed; choose a scan that shows it."
            )

    def draw_voxel(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw a voxel of the organ in the zone."""
        place = self._places[int(rng.integers(len(self._places)))]
        return np.array(np.unravel_index(place, self._host.organ_mask.shape))

    def around(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Surroundings:
        """Look at a box, clipped to the scan."""
        host = self._host
        start, stop = np.maximum(start, 0), np.minimum(stop, host.image_hu.shape)
        box = as_box(start, stop)
        avoid = () if host.avoid_mask is None else ((host.avoid_mask[box], self.reach_mm),)
        return Surroundings(start, self.spacing_mm, host.organ_mask[box], host.replaceable_mask[box], avoid)

    def vessels(self, near: Surroundings) -> NDArray[np.bool_]:
        """Find large vessels of a box in the scan's image."""
        return self._vessels[as_box(near.start, near.start + near.organ.shape)]

    @cached_property
    def _vessels(self) -> NDArray[np.bool_]:
        host = self._host
        return find_vessels(host.image_hu, host.organ_mask & host.valid_mask, host.spacing_mm)


@dataclass(frozen=True, kw_only=True)
class TumorPlan:
    """What to draw for a scan.

    Attributes:
        edges: What the visible edges are drawn from (see `draw_edge`).
        scan_seed: Seed of what the scan's tumours share in their looks; None takes that of the first tumour.
        counts: Numbers of tumours that scans have, drawn from alike; the class is then drawn for each tumour. None:
            the tumours of a scan are of one class, as many as it allows.
        minimum_inside_share: Least share of a tumour's volume that must lie in replaceable voxels.
        tries: Centres that are tried for a tumour before a smaller one is drawn, or the place that cuts least of large
            vessels is taken.
        shrinks: Times that a smaller radius is drawn before the tumour is given up.
        keeps_class: A smaller radius stays in the size class that was drawn, so that the classes land as often as
            they were asked for. Otherwise it goes down to the smallest of all classes.
    """

    size_classes: tuple[SizeClass, ...] = PAPER_SIZE_CLASSES
    counts: tuple[int, ...] | None = None
    appearances: AppearanceRule = field(default_factory=AppearanceRule)
    edges: tuple[EdgeStatistics, ...] = ()
    scan_seed: int | None = None
    zone: Zone = INSIDE
    minimum_inside_share: float = 0.7
    tries: int = 20
    shrinks: int = 4
    keeps_class: bool = False


@dataclass(frozen=True)
class DrawnSize:
    """Size and shape of one tumour, centred at 0, that has neither a place nor a look."""

    spec: TumorSpec
    size_class: SizeClass


def draw_sizes(
    plan: TumorPlan, largest_radius_mm: float, rng: np.random.Generator, *, count: int | None = None
) -> tuple[DrawnSize, ...]:
    """Draw sizes and shapes of a scan's tumours, none larger than it can show, and, by default, their number."""
    classes = fit_size_classes(plan.size_classes, largest_radius_mm)
    if count is None and plan.counts is not None:
        chosen = [draw_size_class(classes, rng) for _ in range(plan.counts[int(rng.integers(len(plan.counts)))])]
    else:
        size_class = draw_size_class(classes, rng)
        chosen = [size_class] * (int(rng.integers(1, size_class.max_count + 1)) if count is None else count)
    origin = (0.0, 0.0, 0.0)
    specs = [draw_tumor_spec(each, origin, Appearance(), rng) for each in chosen]
    scan_seed = specs[0].seed if plan.scan_seed is None else plan.scan_seed
    specs = [with_edge(replace(spec, scan_seed=scan_seed), plan.edges) for spec in specs]
    return tuple(map(DrawnSize, specs, chosen))


def with_edge(spec: TumorSpec, edges: Sequence[EdgeStatistics]) -> TumorSpec:
    """Give a tumour an edge that its own seed decides: size and place do not depend on it."""
    edge = draw_edge(edges, spec.radius_mm, np.random.default_rng(spec.seed))
    return replace(spec, edge_offset_mm=edge.offset_mm, edge_width_mm=edge.width_mm)


def with_look(
    spec: TumorSpec, appearances: AppearanceRule, attempt: int = 0, *, host_hu: float | None = None
) -> TumorSpec:
    """Give a tumour a look that its own seed decides, so that size and place do not depend on what looks there are.

    One that could not be seen with the look of an attempt gets another one with the next.

    Args:
        host_hu: Level of the organ around it in HU; None if it is not known.
    """
    rng = np.random.default_rng(np.random.SeedSequence([spec.seed, attempt]))
    look = appearances.draw(rng, scan_seed=spec.scan_seed, host_hu=host_hu, radius_mm=spec.radius_mm)
    return replace(spec, contrast_hu=look.contrast_hu, heterogeneity_hu=look.heterogeneity_hu)


def place_tumors(
    ground: Ground, plan: TumorPlan, drawn: Sequence[DrawnSize], rng: np.random.Generator
) -> tuple[list[TumorSpec], list[TumorSpec]]:
    """Place tumours uniformly over the organ's voxels of their zone, apart from one another; always ends.

    Returns:
        The placed tumours, and those that were given up because no place has room for them.

    Raises:
        EmptyOrganError: If the organ has no voxel.
    """
    smallest_mm = min(size.radius_mm[0] for size in plan.size_classes)
    placed: list[TumorSpec] = []
    given_up: list[TumorSpec] = []
    for each in drawn:
        least_mm = each.size_class.radius_mm[0] if plan.keeps_class else smallest_mm
        spec = _place_one(ground, plan, each.spec, least_mm, [TumorSurface(other) for other in placed], rng)
        (given_up if spec is None else placed).append(spec or each.spec)
    return placed, given_up


def draw_tumors(
    host: Host, plan: TumorPlan, rng: np.random.Generator, *, count: int | None = None
) -> tuple[list[TumorSpec], list[TumorSpec]]:
    """Draw tumours for a scan in memory, looks included, and place them (see `draw_sizes` and `place_tumors`)."""
    drawn = draw_sizes(plan, largest_radius_mm(host.image_hu.shape, host.spacing_mm), rng, count=count)
    placed, given_up = place_tumors(HostGround(host, plan.zone), plan, drawn, rng)
    looks = [with_look(spec, plan.appearances, host_hu=host.level_hu(spec.centre_mm)) for spec in placed]
    return looks, given_up


def largest_radius_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Largest radius that a grid can show: 0.4 of its smallest extent, in mm."""
    return 0.4 * float(np.multiply(shape, spacing_mm).min())


def _place_one(
    ground: Ground,
    plan: TumorPlan,
    spec: TumorSpec,
    smallest_mm: float,
    others: Sequence[TumorSurface],
    rng: np.random.Generator,
) -> TumorSpec | None:
    """Find a place for one tumour beside others."""
    wanted_outside = plan.zone.draw_outside_share(spec.radius_mm, rng)
    tries = plan.tries if wanted_outside is None else 3 * plan.tries
    for _ in range(plan.shrinks + 1):
        best: tuple[tuple[float, float], TumorSpec] | None = None
        for _ in range(tries):
            surface = _somewhere(ground, spec, rng)
            if surface is None or not _is_apart(surface, others):
                continue
            near = _look_around(ground, surface)
            if not _fits(near, surface, plan.minimum_inside_share):
                continue
            fault = _fault(ground, near, surface, wanted_outside)
            if best is None or fault < best[0]:
                best = (fault, surface.spec)
            if fault == _FAULTLESS:
                break
        if best is not None:
            return best[1]
        if spec.radius_mm <= smallest_mm:
            return None
        spec = replace(spec, radius_mm=max(smallest_mm, float(rng.uniform(0.5, 0.8)) * spec.radius_mm))
    return None


def _somewhere(ground: Ground, spec: TumorSpec, rng: np.random.Generator) -> TumorSurface | None:
    voxel, offset = ground.draw_voxel(rng), rng.uniform(-0.5, 0.5, size=3)
    return None if voxel is None else TumorSurface(spec.moved_to((voxel + offset) * np.asarray(ground.spacing_mm)))


def _look_around(ground: Ground, surface: TumorSurface) -> Surroundings:
    spacing, centre_mm = np.asarray(ground.spacing_mm), np.asarray(surface.spec.centre_mm)
    reach_mm = support_radius_mm(surface) + ground.reach_mm
    start = np.floor((centre_mm - reach_mm) / spacing).astype(np.int64)
    return ground.around(start, np.ceil((centre_mm + reach_mm) / spacing).astype(np.int64) + 1)


def _fits(near: Surroundings, surface: TumorSurface, minimum_inside_share: float) -> bool:
    """True if a tumour is centred in the organ, enough of it may become tumour, and it keeps off what it shall."""
    centre_mm = np.asarray(surface.spec.centre_mm)
    if near.share_in(near.organ, centre_mm[None]) == 0.0:
        return False
    inside_mm = centre_mm + surface.interior_offsets_mm(_INTERIOR_POINTS)
    if near.share_in(near.replaceable, inside_mm) < minimum_inside_share:
        return False
    everywhere_mm = np.concatenate([inside_mm, _outline_mm(surface)])
    return not any(near.is_near(mask, everywhere_mm, distance_mm) for mask, distance_mm in near.keep_off)


def _fault(
    ground: Ground, near: Surroundings, surface: TumorSurface, wanted_outside: float | None
) -> tuple[float, float]:
    """How far a fitting place is from the best: in its share outside the organ, and in the share that vessels take."""
    outline_mm = _outline_mm(surface)
    gap = 0.0
    if wanted_outside is not None:
        gap = max(0.0, abs(1.0 - near.share_in(near.organ, outline_mm) - wanted_outside) - _NEAR_ENOUGH)
    vessels = ground.vessels(near)
    if vessels is None or not vessels.any():
        return gap, 0.0
    inside_mm = np.asarray(surface.spec.centre_mm) + surface.interior_offsets_mm(_INTERIOR_POINTS)
    return gap, near.share_in(vessels, np.concatenate([inside_mm, outline_mm]))


def _outline_mm(surface: TumorSurface) -> NDArray[np.float64]:
    return np.asarray(surface.spec.centre_mm) + surface.surface_offsets_mm(_INTERIOR_POINTS)


def _is_apart(surface: TumorSurface, others: Sequence[TumorSurface]) -> bool:
    """True if the ball that holds the tumour's support meets no other's."""
    return all(
        float(np.linalg.norm(np.subtract(surface.spec.centre_mm, other.spec.centre_mm)))
        > support_radius_mm(surface) + support_radius_mm(other)
        for other in others
    )
