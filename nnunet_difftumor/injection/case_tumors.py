"""The synthetic tumours of a whole case: drawn before nnU-Net chooses a crop, which then treats them as annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import as_box, inside, widened
from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.injection.records import CaseTumors
from nnunet_difftumor.injection.rules import PADDING_LABEL, REAL_TUMOR_RIM_MM, InjectionRules
from nnunet_difftumor.synthesis.anatomy.organ_depth import lies_at_depth
from nnunet_difftumor.synthesis.anatomy.vessels import find_vessels
from nnunet_difftumor.synthesis.placement import (
    Ground,
    Surroundings,
    TumorPlan,
    draw_sizes,
    largest_radius_mm,
    place_tumors,
)
from nnunet_difftumor.tumor.spec import Triple, TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

_KEPT_FROM_REAL_MM = REAL_TUMOR_RIM_MM + 3.0
_ZONE_TRIES = 20
_LARGEST_LOOK_MM, _LOOK_MARGIN_MM = 80.0, 10.0
_MOST_LOCATIONS = 2000  # voxels of a case's synthetic tumours among which nnU-Net chooses one to look at
_STOCK_LOCATIONS = 10_000  # nnU-Net keeps this many voxels of a class; fewer are all there are


class CaseGround(Ground):
    """A preprocessed case; of labels and image only the surroundings of places that are tried are read."""

    def __init__(
        self, labels: Any, organ_voxels: NDArray[np.integer], rules: InjectionRules, image: Any = None
    ) -> None:
        """Look at a case.

        Args:
            labels: Labels that are read by slices, as nnU-Net stores them. Shape (1, D, H, W).
            organ_voxels: Voxels drawn uniformly from the organ's label, or from a region that holds it. Shape (N, 3).
            image: Normalised image that is read by slices; None: vessels are not looked for. Shape (C, D, H, W).
        """
        self._labels, self._image = labels, image
        self._organ_voxels = organ_voxels
        self._rules = rules
        self.spacing_mm = rules.spacing_mm
        self.reach_mm = max(rules.zone.avoid_distance_mm, _KEPT_FROM_REAL_MM)

    def draw_voxel(self, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """Draw a voxel of the organ in the zone, or None if some draws find none."""
        if len(self._organ_voxels) == 0:
            raise EmptyOrganError("The case has no voxel of the organ.")
        rules, zone_mm = self._rules, self._rules.zone.surface_distance_mm
        for _ in range(_ZONE_TRIES):
            voxel = np.asarray(self._organ_voxels[int(rng.integers(len(self._organ_voxels)))], dtype=np.int64)
            if zone_mm is None or lies_at_depth(
                self._labels, voxel, rules.organ_label, PADDING_LABEL, rules.spacing_mm, zone_mm
            ):
                return voxel
        return None

    def around(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> Surroundings:
        """Look at a box, clipped to the case."""
        rules = self._rules
        start, stop = np.maximum(start, 0), np.minimum(stop, self._labels.shape[1:])
        labels = np.asarray(self._labels[(0, *as_box(start, stop))])
        keep_off = []
        if rules.avoid_labels:
            keep_off.append((np.isin(labels, rules.avoid_labels), rules.zone.avoid_distance_mm))
        if rules.real_tumor_labels:
            keep_off.append((np.isin(labels, rules.real_tumor_labels), _KEPT_FROM_REAL_MM))
        return Surroundings(start, self.spacing_mm, labels == rules.organ_label, rules.replaceable(labels), keep_off)

    def vessels(self, near: Surroundings) -> NDArray[np.bool_] | None:
        """Find large vessels of a box in the case's image; not for the largest tumours, which cut some anywhere."""
        shape, spacing = near.organ.shape, np.asarray(self.spacing_mm)
        if self._image is None or np.multiply(shape, spacing).max() > _LARGEST_LOOK_MM:
            return None
        box = as_box(near.start, near.start + shape)
        wide = widened(box, np.ceil(_LOOK_MARGIN_MM / spacing).astype(int), self._labels.shape[1:])
        image_hu = self._rules.intensities.to_hu(np.asarray(self._image[(0, *wide)]))
        organ = np.asarray(self._labels[(0, *wide)]) == self._rules.organ_label
        return find_vessels(image_hu, organ, self.spacing_mm)[inside(box, wide)]


def draw_case_tumors(
    labels: Any,
    organ_voxels: NDArray[np.integer],
    rules: InjectionRules,
    rng: np.random.Generator,
    *,
    image: Any = None,
    is_misplaced: bool = False,
) -> CaseTumors:
    """Draw the tumours of a case: how many, their sizes and shapes, and their places, uniform over the organ.

    They depend on the random stream, the case and the rules, and not on what makes their tissue. Of the places, those
    that cut no large vessel are taken while there are some.

    Args:
        labels: Labels that are read by slices. Shape (1, D, H, W).
        organ_voxels: Voxels drawn uniformly from the organ. Shape (N, 3).
        image: Image that is read by slices, for its vessels, or None. Shape (C, D, H, W).
        is_misplaced: The tumours are labelled at other random places of the organ, as a negative control.

    Returns:
        The tumours, without looks.
    """
    size_rng, place_rng, label_rng = rng.spawn(3)
    plan = TumorPlan(
        size_classes=rules.size_classes,
        edges=rules.edges,
        counts=rules.tumor_counts,
        zone=rules.zone,
        keeps_class=True,
    )
    ground = CaseGround(labels, organ_voxels, rules, image)
    drawn = draw_sizes(plan, largest_radius_mm(labels.shape[1:], rules.spacing_mm), size_rng)
    placed, given_up = place_tumors(ground, plan, drawn, place_rng)
    labelled = placed
    if is_misplaced:
        again = tuple(each for each in drawn if each.spec not in given_up)
        labelled, _ = place_tumors(ground, plan, again, label_rng)
    return CaseTumors(tuple(placed), tuple(labelled), tuple(given_up))


def locations_with_tumors(
    class_locations: Mapping[Any, Any],
    tumors: Sequence[TumorSpec],
    labels: Any,
    rules: InjectionRules,
    counted: dict[Any, int],
) -> dict[Any, Any]:
    """nnU-Net's locations of each class, as if the synthetic tumours of a case were annotated.

    Args:
        class_locations: Voxels (0, d, h, w) that nnU-Net drew of each class or region when it preprocessed the case.
        tumors: The tumours, in mm from the case's voxel (0, 0, 0).
        labels: Labels that are read by slices. Shape (1, D, H, W).
        counted: Voxels of this case's real tumours by class or region, as far as they were counted; learns new ones,
            since counting reads all labels.

    Returns:
        Locations: those of the tumour's classes grow by the synthetic tumours, in proportion to volume where a case
        has real ones too; those of the organ lose them.
    """
    new = _tumor_voxels(tumors, labels, rules)
    changed = dict(class_locations)
    if not any(rules.tumor_label in values_of(key) for key in changed):
        changed[rules.tumor_label] = []
    for key in changed:
        values = values_of(key)
        holds_tumor = rules.tumor_label in values
        if PADDING_LABEL in values or holds_tumor == (rules.organ_label in values):
            continue  # where the case was annotated; or what grows as much as it shrinks
        known = np.asarray(changed[key], dtype=np.int64).reshape(-1, 4)
        if holds_tumor:
            if len(known) >= _STOCK_LOCATIONS and key not in counted:
                counted[key] = int(np.isin(np.asarray(labels[0]), values).sum())
            told = new
            if len(known) and len(new):  # as many of the new as the synthetic volume is to the real one
                synthetic = sum(TumorSurface(spec).volume_mm3 for spec in tumors) / float(np.prod(rules.spacing_mm))
                wanted = max(1, round(len(known) * synthetic / counted.get(key, len(known))))
                told = new[np.linspace(0, len(new) - 1, wanted).round().astype(int)]
            changed[key] = np.concatenate([known, told])
        else:
            changed[key] = known[~_inside_any(known[:, 1:], tumors, rules.spacing_mm)]
    return changed


def values_of(label_or_region: Any) -> tuple[int, ...]:
    """Label values of a class or of a region."""
    return tuple(label_or_region) if isinstance(label_or_region, (tuple, list)) else (int(label_or_region),)


def _tumor_voxels(tumors: Sequence[TumorSpec], labels: Any, rules: InjectionRules) -> NDArray[np.int64]:
    """Voxels (0, d, h, w) spread evenly over the tumours' volumes, as far as they may become tumour. Shape (N, 4)."""
    spacing = np.asarray(rules.spacing_mm, np.float64)
    voxel_mm3 = float(np.prod(spacing))
    surfaces = [TumorSurface(spec) for spec in tumors]
    share = min(1.0, _MOST_LOCATIONS * voxel_mm3 / max(sum(surface.volume_mm3 for surface in surfaces), 1e-9))
    found = []
    for spec, surface in zip(tumors, surfaces, strict=True):
        count, centre_mm = max(1, round(share * surface.volume_mm3 / voxel_mm3)), np.asarray(spec.centre_mm)
        voxels = np.round((centre_mm + surface.interior_offsets_mm(count)) / spacing).astype(np.int64)
        inside = np.all((voxels >= 0) & (voxels < labels.shape[1:]), axis=1)
        voxels = voxels[inside & (surface.signed_distance(voxels * spacing - centre_mm) <= 0.0)]
        if len(voxels):
            low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
            near = np.asarray(labels[(0, *as_box(low, high))])
            found.append(voxels[rules.replaceable(near)[tuple((voxels - low).T)]])
    joined = np.concatenate([np.zeros((0, 3), np.int64), *found])
    return np.concatenate([np.zeros((len(joined), 1), np.int64), joined], axis=1)


def _inside_any(voxels: NDArray[np.int64], tumors: Sequence[TumorSpec], spacing_mm: Triple) -> NDArray[np.bool_]:
    """True for voxels inside one of the tumours. Shape (N,)."""
    inside = np.zeros(len(voxels), dtype=bool)
    for spec in tumors:
        surface = TumorSurface(spec)
        offsets_mm = voxels * np.asarray(spacing_mm, np.float64) - np.asarray(spec.centre_mm)
        near = np.flatnonzero(np.all(np.abs(offsets_mm) <= surface.half_extent_mm, axis=1))
        inside[near] |= surface.signed_distance(offsets_mm[near]) <= 0.0
    return inside
