"""Places of evaluated tumours: real tumours that are replaced, and tumour-free tissue for transplants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.evaluation.realism.settings import DISTANCE_TO_TUMOR_MM
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.drawing import DrawnTumor, MaskSurface, draw_on_grid, rim_width_mm
from nnunet_difftumor.tumor.region import RegionOfInterest, RoiRule, choose_roi
from nnunet_difftumor.tumor.rim import signed_distance_mm
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.spec import TumorSpec, draw_tumor_spec
from nnunet_difftumor.tumor.surface import TumorSurface

Box = tuple[slice, slice, slice]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

IN_PLACE, TRANSPLANT = "in place", "transplant"
_MARGIN_MM = 12.0
_TRIES = 600
_CUBE_POINTS = 512
_WANTED_SHARE, _LEAST_SHARE = 0.99, 0.9


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tumour is made; every method works on the same places.

    Attributes:
        setting: "in place" or "transplant".
        name: Name within the scan.
        spec: What is requested.
        box: Part of the scan that the arrays below cover.
        label: True inside the tumour, clipped to what may be replaced. Shape of the box.
        drawn: The same before clipping. Shape of the box.
        weight: Share of synthetic tissue. Shape of the box.
        distance_mm: Signed distance to the label's surface in mm. Shape of the box.
        roi: Region in which tissue is generated.
        roi_mask: The tumour's mask on the region. Shape (S, S, S).
        inside_share: Share of the drawn label that could be placed.
        drawn_mm3: Volume of the drawn label before clipping, in mm3.
    """

    scan: EvaluationScan
    setting: str
    name: str
    spec: TumorSpec
    box: Box
    label: BoolArray
    drawn: BoolArray
    weight: FloatArray
    distance_mm: FloatArray
    roi: RegionOfInterest
    roi_mask: BoolArray
    inside_share: float
    drawn_mm3: float

    @property
    def host_hu(self) -> FloatArray:
        """The scan in the box, in HU. Shape of the box."""
        return self.scan.image_hu[self.box]

    @property
    def organ(self) -> BoolArray:
        """The organ in the box, tumours left out. Shape of the box."""
        return self.scan.organ[self.box]

    @property
    def requested_mm3(self) -> float:
        """Volume that was asked for, in mm3."""
        return 4.0 / 3.0 * np.pi * self.spec.radius_mm**3

    def asking(self, look: Appearance, seed: int) -> Place:
        """Return the same place with another requested look and seed; the shape stays."""
        contrast, heterogeneity = look.contrast_hu, look.heterogeneity_hu
        spec = replace(self.spec, contrast_hu=contrast, heterogeneity_hu=heterogeneity, seed=seed)
        return replace(self, spec=spec)


def place_of_target(scan: EvaluationScan, rule: RoiRule) -> Place:
    """The place of a scan's largest tumour.

    Args:
        rule: Regions that the generator can work on.

    Returns:
        The place; inside the label the weight is 1, since what lies there is the real tumour and no host. The
        soft rim is kept to the organ, as in any synthesis: it never covers fat or bone beside the tumour.
    """
    allowed = scan.organ | scan.target
    surface = MaskSurface(scan.target, scan.spacing_mm, seed=0)
    place = _on_scan(scan, IN_PLACE, "largest tumour", surface, surface.draw(), allowed, rule)
    assert place is not None  # a mask of the scan lies in the scan
    return replace(place, weight=np.where(place.label, np.float32(1.0), place.weight))


def find_places(
    scan: EvaluationScan,
    radii_mm: Sequence[float],
    count: int,
    looks: AppearanceRule,
    rule: RoiRule,
    rng: np.random.Generator,
) -> tuple[list[Place], Counter[str]]:
    """Draw tumours into tumour-free tissue of the organ.

    Centres are tried until 99% of the tumour lies in organ that is at least 5 mm (and the soft rim) away
    from every tumour; if none of 600 does, the best one of at least 90% is taken, else the tumour is counted.

    Args:
        radii_mm: Radii in mm.
        looks: What the requested looks are drawn from.
        rule: Regions that the generator can work on.

    Returns:
        The places, and how many tumours had none by radius ("20 mm").
    """
    far_mm = scan.distance_to_tumors_mm()
    places: list[Place] = []
    failed: Counter[str] = Counter()
    for radius_mm in radii_mm:
        free = scan.organ & (far_mm > DISTANCE_TO_TUMOR_MM + rim_width_mm(radius_mm))
        for index in range(count):
            size = SizeClass(name=f"{radius_mm:g} mm", radius_mm=(radius_mm, radius_mm), probability=1.0)
            spec = draw_tumor_spec(size, (0.0, 0.0, 0.0), looks.draw(rng), rng)
            moved = _move_into(free, spec, scan.spacing_mm, rng)
            place = None
            if moved is not None:
                surface = TumorSurface(moved)
                drawn = draw_on_grid(surface, scan.spacing_mm)
                place = _on_scan(scan, TRANSPLANT, f"{radius_mm:g} mm, {index}", surface, drawn, free, rule)
            if place is None or place.inside_share < _LEAST_SHARE:
                failed[f"{radius_mm:g} mm"] += 1
            else:
                places.append(place)
    return places, failed


def _move_into(
    free: BoolArray, spec: TumorSpec, spacing_mm: Sequence[float], rng: np.random.Generator
) -> TumorSpec | None:
    """The tumour at a place with enough free tissue, or None."""
    depth_mm = np.asarray(distance_transform_edt(np.pad(free, 1), sampling=spacing_mm))[1:-1, 1:-1, 1:-1]
    candidates = np.argwhere(depth_mm >= 0.5 * spec.radius_mm)
    if len(candidates) == 0:
        return None
    surface = TumorSurface(spec)
    centres = candidates[rng.integers(len(candidates), size=_TRIES)]
    centres_mm = (centres + rng.uniform(-0.5, 0.5, size=centres.shape)) * np.asarray(spacing_mm)
    points_mm = centres_mm[:, None, :] + _interior_offsets_mm(surface)[None]
    voxels = np.round(points_mm / np.asarray(spacing_mm)).astype(np.int64)
    within = np.all((voxels >= 0) & (voxels < free.shape), axis=-1)
    voxels = np.clip(voxels, 0, np.asarray(free.shape) - 1)
    share = (free[voxels[..., 0], voxels[..., 1], voxels[..., 2]] & within).mean(axis=1)
    best = int(np.argmax(share >= _WANTED_SHARE)) if (share >= _WANTED_SHARE).any() else int(np.argmax(share))
    return spec.moved_to(centres_mm[best]) if share[best] >= _LEAST_SHARE else None


def _interior_offsets_mm(surface: TumorSurface) -> NDArray[np.float64]:
    """Points spread evenly over a tumour's volume, relative to its centre, in mm. Shape (N, 3)."""
    steps = np.array([0.8191725133961645, 0.6710436067037893, 0.5497004779019703])  # powers of one irrational number
    cube = 2.0 * ((np.arange(1, _CUBE_POINTS + 1)[:, None] * steps) % 1.0) - 1.0
    points_mm = cube * surface.half_extent_mm
    return points_mm[surface.signed_distance(points_mm) <= 0.0]


def _on_scan(
    scan: EvaluationScan,
    setting: str,
    name: str,
    surface: TumorSurface | MaskSurface,
    drawn: DrawnTumor,
    allowed: BoolArray,
    rule: RoiRule,
) -> Place | None:
    """Clip a drawing to the scan and to what may be replaced; None if nothing of the label is left."""
    shape = np.asarray(scan.image_hu.shape)
    margin = np.ceil(_MARGIN_MM / np.asarray(scan.spacing_mm)).astype(int)
    start = np.asarray(drawn.start)
    low = np.maximum(start - margin, 0)
    high = np.minimum(start + np.asarray(drawn.label.shape) + margin, shape)
    if (high <= low).any():
        return None
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    unclipped = _moved(drawn.label, start, low, high)
    weight = _moved(drawn.weight, start, low, high)
    label = unclipped & allowed[box]
    if not label.any():
        return None
    roi = choose_roi(surface, scan.spacing_mm, rule)
    return Place(
        scan=scan,
        setting=setting,
        name=name,
        spec=surface.spec,
        box=box,
        label=label,
        drawn=unclipped,
        weight=np.where(allowed[box], weight, np.float32(0.0)),
        distance_mm=signed_distance_mm(label, scan.spacing_mm),
        roi=roi,
        roi_mask=roi.draw_mask(surface),
        inside_share=float(label.sum() / drawn.label.sum()),
        drawn_mm3=int(drawn.label.sum()) * float(np.prod(scan.spacing_mm)),
    )


def _moved(array: NDArray, start: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray:
    """Copy of an array that begins at `start` into the box from `low` to `high`, zero elsewhere."""
    result = np.zeros(tuple(high - low), dtype=array.dtype)
    first, last = np.maximum(start, low), np.minimum(start + np.asarray(array.shape), high)
    if (last > first).all():
        target = tuple(slice(a, b) for a, b in zip(first - low, last - low, strict=True))
        source = tuple(slice(a, b) for a, b in zip(first - start, last - start, strict=True))
        result[target] = array[source]
    return result
