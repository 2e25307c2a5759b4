"""How DiffTumor blends its tissue into a scan, as published with the paper (CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.ct.boxes import inside, widened
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.prepared import PreparedTumor
from nnunet_difftumor.synthesis.results import FloatArray
from nnunet_difftumor.synthesis.synthesizer import (
    TumorSynthesizer,
    border_of,
    onto_box,
    with_surroundings,
)
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.spec import TumorSpec

MOST_BLUR_MM = 4.0
"""The standard deviation of the blur is drawn between 0 and this, for each tumour."""
BLUR_REACH = 4.0
"""Standard deviations at which the blur ends."""
_BLUR_STREAM = 96  # a stream of its own, whatever else is drawn from the tumour's seed


def make_synthesizer(tissue: DiffusionTissue) -> TumorSynthesizer:
    """Make what blends a generator's tissue: as published where its folder asks for it."""
    return (PublishedSynthesizer if tissue.blends_as_published else TumorSynthesizer)(tissue)


class PublishedSynthesizer(TumorSynthesizer):
    """Blends tissue as DiffTumor publishes it: by the mask, blurred by 0 to 4 mm, scan and tissue in the window.

    No edge, contrast or noise of the scan is looked after, and voxels up to 16 mm from the outline along each axis
    change, those of other organs too, but not those of other tumours. (Published for livers and kidneys; in a pancreas
    the whole crop is replaced, which is not done here.)
    """

    def _prepare(self, host: Host, tumor: TumorSpec | MaskSurface, occupied: NDArray[np.bool_]) -> PreparedTumor | str:
        prepared = super()._prepare(host, tumor, occupied)
        if isinstance(prepared, str):
            return prepared
        sigma_mm = np.random.default_rng([prepared.spec.seed, _BLUR_STREAM]).uniform(0.0, MOST_BLUR_MM)
        sigma = sigma_mm / np.asarray(host.spacing_mm)
        box = widened(prepared.box, np.ceil(BLUR_REACH * sigma).astype(int), host.image_hu.shape)
        shape = tuple(each.stop - each.start for each in box)
        label, distance_mm = np.zeros(shape, bool), np.full(shape, np.inf, np.float32)
        own = inside(prepared.box, box)
        label[own], distance_mm[own] = prepared.label, prepared.distance_mm
        is_kept = occupied[box] | ~host.valid_mask[box]
        if host.avoid_mask is not None:
            is_kept |= host.avoid_mask[box]
        weight = np.where(is_kept, np.float32(0.0), blurred_mask(label, sigma))
        wide = with_surroundings(box, host)
        border = border_of(host, wide, host.may_become_tumor(wide))
        return replace(prepared, box=box, label=label, weight=weight, distance_mm=distance_mm, wide=wide, border=border)

    def _levelled(self, prepared: PreparedTumor, tumor_hu: FloatArray) -> FloatArray:
        return tumor_hu

    def _blend(
        self, host: Host, prepared: PreparedTumor, tumor_hu: FloatArray, reconstruction_hu: FloatArray
    ) -> FloatArray:
        tissue_hu = onto_box(tumor_hu, prepared.roi, prepared.box, host)
        return mix_in_window(host.image_hu[prepared.box], tissue_hu, prepared.weight, self.tissue.window_hu)


def blurred_mask(label: NDArray[np.bool_], sigma: Sequence[float] | NDArray[np.floating]) -> FloatArray:
    """Share of the tissue in each voxel: the mask, blurred by a Gaussian.

    Args:
        label: Mask of the tumour. Shape (D, H, W).
        sigma: Standard deviation in voxels along each axis.
    """
    blurred = gaussian_filter(label.astype(np.float32), sigma, mode="reflect", truncate=BLUR_REACH)
    return np.asarray(blurred, dtype=np.float32)


def mix_in_window(
    image_hu: FloatArray, tissue_hu: FloatArray, weight: FloatArray, window_hu: tuple[float, float]
) -> FloatArray:
    """Mix image and tissue, both limited to the window, by the share of tissue; without any the image stays as it is.

    All of shape (D, H, W).
    """
    limited_hu, tissue_hu = np.clip(image_hu, *window_hu), np.clip(tissue_hu, *window_hu)
    mixed_hu = (1.0 - weight) * limited_hu + weight * tissue_hu
    return np.where(weight > 0, mixed_hu, image_hu).astype(np.float32)
