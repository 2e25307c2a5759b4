"""Hand-crafted tumours: the contrast fill with a drawn texture, and no network.

After the idea of Hu et al., "Label-Free Liver Tumor Segmentation", CVPR 2023: tumours are made by rules, a level and
a smooth random texture, without any annotated tumour. Contrast, heterogeneity, shape, place and blending are those of
the generated tumours, so that a comparison shows what the network adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.synthesis.tissue.interface import DescribedTissue, FloatArray, GeneratedRegions, or_nan
from nnunet_difftumor.tumor.appearance import Appearance

_HOST_SMOOTHING_VOXELS = 1.0
_EDGE_SMOOTHING_VOXELS = 0.7
_IN_SPACE = (1, 2, 3)  # every region by itself


class HandcraftedTissue(DescribedTissue):
    """Tissue from a level and a drawn texture, with regions, window and looks of a generator folder."""

    def generate(
        self, host_hu: FloatArray, tumor_masks: NDArray[np.bool_], appearances: Sequence[Appearance], seeds: list[int]
    ) -> GeneratedRegions:
        """Fill every region (see `TissueGenerator.generate`); the host's noise is what smoothing takes away."""
        import torch

        from diffusion.conditioning import fill_tumor_region
        from diffusion.texture import draw_texture

        smooth_hu = self.reconstruct(host_hu)
        masks = torch.from_numpy(tumor_masks[:, None])
        heterogeneities = torch.tensor([look.heterogeneity_hu or 0.0 for look in appearances])
        contrasts = [or_nan(look.contrast_hu) for look in appearances]
        texture_hu = draw_texture(masks, heterogeneities, [torch.Generator().manual_seed(seed) for seed in seeds])
        filled_hu = fill_tumor_region(
            torch.from_numpy(smooth_hu[:, None]), masks, torch.tensor(contrasts), texture_hu=texture_hu
        )[:, 0].numpy()
        tumor_hu = np.asarray(gaussian_filter(filled_hu, _EDGE_SMOOTHING_VOXELS, axes=_IN_SPACE), dtype=np.float32)
        return GeneratedRegions(np.clip(tumor_hu, *self.window_hu), smooth_hu)

    def reconstruct(self, host_hu: FloatArray) -> FloatArray:
        """Smooth the regions (see `TissueGenerator.reconstruct`)."""
        clipped_hu = np.clip(host_hu, *self.window_hu)
        return np.asarray(gaussian_filter(clipped_hu, _HOST_SMOOTHING_VOXELS, axes=_IN_SPACE), dtype=np.float32)
