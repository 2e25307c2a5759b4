"""Synthesis of tumours on a CT: draw, generate in a region of interest, blend, and keep what can be seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import Box, as_box, ends_of, inside, widened
from nnunet_difftumor.ct.resample import average_onto, resample
from nnunet_difftumor.synthesis.anatomy.border import OrganBorder, find_border
from nnunet_difftumor.synthesis.anatomy.capsule import turned_along_capsule
from nnunet_difftumor.synthesis.blending import HostNoise, at_level, composite
from nnunet_difftumor.synthesis.host import Host, is_clipped_to
from nnunet_difftumor.synthesis.prepared import ENOUGH_VOXELS, PreparedTumor
from nnunet_difftumor.synthesis.results import (
    CUT_OFF,
    INVISIBLE,
    OUT_OF_VIEW,
    FloatArray,
    SynthesisResult,
    SynthesizedTumor,
    TumorRecord,
)
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.interface import TissueGenerator, UnchangedTissue
from nnunet_difftumor.synthesis.visibility import look_at
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.drawing import DrawnTumor, MaskSurface, draw_on_grid
from nnunet_difftumor.tumor.region import RegionOfInterest, choose_roi
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

_SURROUNDINGS_MM = 6.0  # the rim and the organ's border
_FAT_HU = np.float32(-100.0)


@dataclass(eq=False)
class TumorSynthesizer:
    """Puts drawn tumours into hosts with a tissue generator.

    Attributes:
        max_attempts: How often a tumour that cannot be seen is generated before it is dropped, at least 1.
        minimum_inside_share: Least share of what a host shows of a drawn label that may become tumour.
        has_residual: The host's noise is added to the tissue; False shows what the tissue is without it.
    """

    tissue: TissueGenerator
    _: KW_ONLY
    max_attempts: int = 2
    minimum_inside_share: float = 0.5
    has_residual: bool = True

    @classmethod
    def from_folder(cls, folder: Path, *, steps: int = 4, device: str = "cpu") -> TumorSynthesizer:
        """Load a generator folder, to blend its tissue as this class does (see `published.make_synthesizer`)."""
        return cls(DiffusionTissue.from_folder(folder, steps=steps, device=device))

    def synthesize(self, host: Host, tumors: Sequence[TumorSpec | MaskSurface]) -> SynthesisResult:
        """Generate tumours, drawn or surfaces of masks to use as they are, on a host, which is not changed.

        A tumour's tissue has its requested contrast, and its edge lies where its spec says. One that cannot be seen, or
        is bright where dark was requested, is generated again with the same size and requested contrast, and dropped
        after `max_attempts`.

        Returns:
            The visible tumours, and the others by reason: "outside_organ", "out_of_view", "overlap", "invisible",
            "cut_off".
        """
        pending, rejected = self.prepared(host, tumors)
        finished: list[SynthesizedTumor] = []
        reasons: list[str] = []
        for attempt in range(self.max_attempts):
            left_out, reasons = [], []
            for prepared, image_hu in self.blended(host, pending, attempt):
                tumor = _finish(host, prepared, image_hu, attempt)
                if isinstance(tumor, str):
                    left_out.append(prepared)
                    reasons.append(tumor)
                else:
                    finished.append(tumor)
            pending = left_out
        rejected.update(reasons)
        return SynthesisResult(tuple(finished), dict(rejected))

    def prepared(
        self, host: Host, tumors: Sequence[TumorSpec | MaskSurface]
    ) -> tuple[list[PreparedTumor], Counter[str]]:
        """Give tumours their places in a host: those that have one, and how many have none, by reason."""
        rejected: Counter[str] = Counter()
        occupied = np.zeros(host.image_hu.shape, dtype=bool)
        pending: list[PreparedTumor] = []
        for tumor in tumors:
            prepared = self._prepare(host, tumor, occupied)
            if isinstance(prepared, str):
                rejected[prepared] += 1
            else:
                occupied[prepared.box] |= prepared.touched
                pending.append(prepared)
        return [prepared.with_rim(host, occupied) for prepared in pending], rejected

    def without_tumors(self) -> TumorSynthesizer:
        """What does the same without making a tumour, for `blended`: its tissue is the host's own."""
        return replace(self, tissue=UnchangedTissue(self.tissue))

    def blended(
        self, host: Host, pending: Sequence[PreparedTumor], attempt: int
    ) -> Iterable[tuple[PreparedTumor, FloatArray]]:
        """Make the tumours and blend them: each with the host's box after blending, in HU, in any order.

        The first attempt has the number 0.
        """
        for shown, chosen in _shown_hosts(host, pending):
            for prepared, tumor_hu, reconstruction_hu in self._generate(shown, chosen, attempt):
                image_hu = self._blend(shown, prepared, tumor_hu, reconstruction_hu)
                yield prepared, np.where(prepared.weight > 0, image_hu, host.image_hu[prepared.box])

    def _prepare(self, host: Host, tumor: TumorSpec | MaskSurface, occupied: NDArray[np.bool_]) -> PreparedTumor | str:
        """Draw a tumour on the host and clip it, or say why it has no place."""
        surface = tumor if isinstance(tumor, MaskSurface) else TumorSurface(tumor)
        drawn = surface.draw() if isinstance(surface, MaskSurface) else draw_on_grid(surface, host.spacing_mm)
        cropped = _crop_to_host(drawn, host.image_hu.shape)
        if cropped is None:
            return OUT_OF_VIEW
        box, label, weight, distance_mm = cropped
        drawn_in_host = int(label.sum())  # a crop may cut a tumour off, as it does with real ones
        if drawn_in_host == 0:
            return OUT_OF_VIEW
        wide = with_surroundings(box, host)
        allowed_around = host.may_become_tumor(wide)
        allowed, border = allowed_around[inside(box, wide)], border_of(host, wide, allowed_around)
        if not isinstance(surface, MaskSurface) and ((label | (weight > 0)) & ~allowed).any():
            ends = allowed | ~host.valid_mask[box]  # the tumour goes on in padding
            drawn_mm, radius_mm = distance_mm, surface.spec.radius_mm
            distance_mm = turned_along_capsule(drawn_mm, ends, None, host.spacing_mm, radius_mm)
            turned = distance_mm > drawn_mm
            label = label & (~turned | (distance_mm <= 0.0))
            weight = np.where(turned, np.minimum(weight, surface.spec.edge.share(distance_mm)), weight)
        label, weight = label & allowed, np.where(allowed, weight, np.float32(0.0))
        weight = weight * border.share[inside(box, wide)]
        if label.sum() < max(1.0, self.minimum_inside_share * drawn_in_host):
            return "outside_organ"
        if (occupied[box] & (label | (weight > 0))).any():
            return "overlap"
        roi = choose_roi(surface, host.spacing_mm, self.tissue.roi_rule)
        roi_distance_mm = roi.distance_mm(surface)
        return PreparedTumor(
            surface.spec,
            roi,
            roi_distance_mm,
            surface.spec.edge.share(roi_distance_mm) * (_on_region(allowed, box, roi, host) >= 0.5),
            box,
            label,
            weight,
            distance_mm,
            drawn_voxels=int(drawn.label.sum()),
            shown_voxels=drawn_in_host,
            wide=wide,
            border=border,
        )

    def _generate(
        self, host: Host, pending: Sequence[PreparedTumor], attempt: int
    ) -> Iterable[tuple[PreparedTumor, FloatArray, FloatArray]]:
        """Generate the regions of interest, batched by side; yields in the order of the batches."""
        groups: dict[int, list[PreparedTumor]] = defaultdict(list)
        for prepared in pending:
            groups[prepared.roi.side].append(prepared)
        for group in groups.values():
            hosts_hu = [_shown(prepared, host) for prepared in group]
            masks = [prepared.roi.tissue_mask(prepared.roi_distance_mm, prepared.spec.edge) for prepared in group]
            asked = zip(group, hosts_hu, masks, strict=True)
            regions = self.tissue.generate(
                np.stack(hosts_hu),
                np.stack(masks),
                [_requested_in_region(prepared, region, mask) for prepared, region, mask in asked],
                [attempt_seed(prepared.spec.seed, attempt) for prepared in group],
            )
            for index, prepared in enumerate(group):
                yield prepared, self._levelled(prepared, regions.tumor_hu[index]), regions.reconstruction_hu[index]

    def _levelled(self, prepared: PreparedTumor, tumor_hu: FloatArray) -> FloatArray:
        """Tissue at the level that was asked for, in the shape of the region."""
        distance_mm, share = prepared.roi_distance_mm, prepared.roi_share
        return at_level(tumor_hu, distance_mm, share, prepared.roi.spacing_mm, prepared.level_hu)

    def _blend(
        self, host: Host, prepared: PreparedTumor, tumor_hu: FloatArray, reconstruction_hu: FloatArray
    ) -> FloatArray:
        """Blend a generated region into the host's box. HU, shape of the box."""
        box, wide, border = prepared.box, prepared.wide, prepared.border
        tissue_hu = onto_box(tumor_hu, prepared.roi, box, host)
        limited_hu = np.clip(host.image_hu[wide], *self.tissue.window_hu)
        reconstruction_hu = onto_box(reconstruction_hu, prepared.roi, wide, host)
        residual_hu = border.residual_hu(limited_hu, reconstruction_hu if self.has_residual else limited_hu)
        tissue = host.organ_mask[wide] & host.valid_mask[wide]
        tissue = tissue if int(tissue.sum()) >= ENOUGH_VOXELS else np.ones_like(tissue)
        noise = HostNoise.of(residual_hu, tissue, host.spacing_mm).within(prepared.inner)
        image_hu, weight = host.image_hu[box], prepared.weight
        return prepared.own_border.mixed(image_hu, tissue_hu, weight, composite(image_hu, tissue_hu, noise, weight))


def border_of(host: Host, wide: Box, allowed: NDArray[np.bool_]) -> OrganBorder:
    """The organ's border in a box where a tumour is allowed to be in some voxels."""
    organ, valid = host.organ_mask[wide], host.valid_mask[wide]
    return find_border(host.image_hu[wide], organ & allowed, valid & ~allowed & ~organ, host.spacing_mm)


def attempt_seed(seed: int, attempt: int) -> int:
    """Seed of one attempt at a tumour."""
    return int(np.random.SeedSequence([seed, attempt]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _shown_hosts(host: Host, pending: Sequence[PreparedTumor]) -> list[tuple[Host, Sequence[PreparedTumor]]]:
    """What the generator is shown for which tumours.

    A tumour in an organ contrasts with the soft tissue around it (see `rim_median_hu`). Where the window ends at
    -30 HU or above, clipped fat would count as such; there it is shown as fat.
    """
    from diffusion.conditioning import SOFT_TISSUE_LOW_HU

    if not pending or host.clipped_to_hu is None or host.clipped_to_hu[0] < SOFT_TISSUE_LOW_HU:
        return [(host, pending)]
    is_fat = is_clipped_to(host.image_hu, host.clipped_to_hu[0]) & ~host.organ_mask & host.valid_mask
    with_fat = replace(host, image_hu=np.where(is_fat, _FAT_HU, host.image_hu))
    in_organ = [prepared for prepared in pending if prepared.has_organ_rim]
    return [(with_fat, in_organ), (host, [prepared for prepared in pending if not prepared.has_organ_rim])]


def _crop_to_host(
    drawn: DrawnTumor, shape: Sequence[int]
) -> tuple[Box, NDArray[np.bool_], FloatArray, FloatArray] | None:
    starts, stops = np.maximum(drawn.start, 0), np.minimum(np.add(drawn.start, drawn.label.shape), shape)
    if (stops <= starts).any():
        return None
    inner = as_box(starts - drawn.start, stops - drawn.start)
    return as_box(starts, stops), drawn.label[inner], drawn.weight[inner], drawn.distance_mm[inner]


def _requested_in_region(prepared: PreparedTumor, region_hu: FloatArray, roi_mask: NDArray[np.bool_]) -> Appearance:
    """The look with its contrast against the tissue that the generator counts as rim, which is not the organ alone.

    The contrast of a tumour is that against the organ around it, where there is enough organ. Beside other tissue
    the two differ, and a tumour would come out fainter or stronger than requested, or on the other side.
    """
    import torch

    from diffusion.conditioning import rim_median_hu

    look = prepared.spec.appearance
    if prepared.level_hu is None:
        return look
    mask = torch.from_numpy(roi_mask)[None, None]
    rim_hu = float(rim_median_hu(torch.from_numpy(region_hu)[None, None], mask))
    return replace(look, contrast_hu=prepared.level_hu - rim_hu)


def _finish(host: Host, prepared: PreparedTumor, image_hu: FloatArray, attempt: int) -> SynthesizedTumor | str:
    """Measure a blended tumour, or say why it is left out."""
    weight, label = prepared.whole_voxels
    seen = look_at(
        host.image_hu[prepared.box],
        image_hu,
        weight,
        label,
        prepared.rim_hu,
        prepared.noise,
        organ=host.organ_mask[prepared.box] if prepared.has_organ_rim else None,
        requested_hu=prepared.spec.contrast_hu,
        window_hu=host.clipped_to_hu,
        shown_share=prepared.shown_voxels / prepared.drawn_voxels,
    )
    if seen is None or seen.is_cut_off or not seen.is_visible:
        return CUT_OFF if seen is not None and seen.is_cut_off else INVISIBLE
    voxel_mm3 = float(np.prod(host.spacing_mm))
    record = TumorRecord(
        spec=prepared.spec,
        attempt=attempt,
        roi_side=prepared.roi.side,
        roi_spacing_mm=prepared.roi.spacing_mm,
        drawn_mm3=prepared.drawn_voxels * voxel_mm3,
        label_mm3=int(prepared.label.sum()) * voxel_mm3,
        contrast_hu=seen.contrast_hu,
        depth_hu=seen.depth_hu,
        noise_ratio=seen.noise_ratio,
    )
    return SynthesizedTumor(prepared.box, image_hu, prepared.weight > 0, prepared.label, record)


def _shown(prepared: PreparedTumor, host: Host) -> FloatArray:
    """What a generator is shown of the host: the region of interest, with organ where it borders on other tissue."""
    region_hu = prepared.roi.sample(host.image_hu, host.spacing_mm, host.valid_mask)
    if not prepared.border.other.any():
        return region_hu
    hidden_hu = prepared.border.hidden_hu(host.image_hu[prepared.wide])
    return region_hu + _on_region(hidden_hu, prepared.wide, prepared.roi, host)


def _on_region(values: NDArray[np.generic], box: Box, roi: RegionOfInterest, host: Host) -> FloatArray:
    """Sample values of a box of the host on a region of interest; 0 beyond the box. Shape of the region."""
    start_mm = np.asarray(roi.start_mm) - np.multiply(ends_of(box)[0], host.spacing_mm)
    shape, spacing_mm = (roi.side,) * 3, (roi.spacing_mm,) * 3
    return resample(values, host.spacing_mm, shape, spacing_mm, start_mm, fill_value=0.0, whole_voxels=True)


def onto_box(region: FloatArray, roi: RegionOfInterest, box: Box, host: Host) -> FloatArray:
    """Average a region of interest over the host's voxels of a box."""
    starts, stops = ends_of(box)
    offset_mm = np.multiply(starts, host.spacing_mm) - np.asarray(roi.start_mm)
    return average_onto(region, (roi.spacing_mm,) * 3, (stops - starts).tolist(), host.spacing_mm, offset_mm)


def with_surroundings(box: Box, host: Host) -> Box:
    """The box with the rim and the organ's border around it."""
    return widened(box, np.ceil(_SURROUNDINGS_MM / np.asarray(host.spacing_mm)).astype(int), host.image_hu.shape)
