"""Tissue to compare a generator with: its fill without diffusion, flat or textured, and the autoencoder alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions, TissueGenerator, or_nan
from nnunet_difftumor.tumor.appearance import Appearance

FloatArray = NDArray[np.float32]

Reconstruct = Callable[[FloatArray], FloatArray]
"""Takes regions in HU, shape (N, S, S, S), and returns them encoded and decoded."""

Fill = Callable[[FloatArray, NDArray[np.bool_], Sequence[Appearance], list[int]], FloatArray]
"""Fills regions with tumours. Arguments as for `TissueGenerator.generate`; shape (N, S, S, S), in HU."""


def reconstruct_with(autoencoder: Any) -> Reconstruct:
    """Wrap an `AutoencoderKL3D` in evaluation mode for arrays."""
    import torch

    def reconstruct(regions_hu: FloatArray) -> FloatArray:
        regions = torch.from_numpy(np.ascontiguousarray(regions_hu[:, None], dtype=np.float32))
        with torch.inference_mode():
            output = autoencoder.reconstruct(regions.to(next(autoencoder.parameters()).device))
        return output[:, 0].float().cpu().numpy()

    return reconstruct


class FilledTissue(TissueGenerator):
    """No diffusion: a fill, encoded and decoded. Regions, window and looks are those of a generator."""

    def __init__(self, generator: TissueGenerator, reconstruct: Reconstruct, fill: Fill) -> None:
        """Compare a generator with a fill.

        Args:
            fill: `flat_fill`; the generator's own, than which a generated tumour is better by its network's doing; or
                `as_it_is` for the floor of any generator with this autoencoder.
        """
        self._reconstruct, self._fill = reconstruct, fill
        self.roi_rule, self.window_hu = generator.roi_rule, generator.window_hu
        self.appearances = generator.appearances

    def generate(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> GeneratedRegions:
        """Decode the fill of every region (see `TissueGenerator.generate`)."""
        filled_hu = self._fill(host_hu, tumor_masks, appearances, seeds)
        return GeneratedRegions(self._reconstruct(filled_hu), self._reconstruct(host_hu))


def flat_fill(
    host_hu: FloatArray, tumor_masks: NDArray[np.bool_], appearances: Sequence[Appearance], seeds: list[int]
) -> FloatArray:
    """Fill regions at the requested contrast, without noise; the seeds change nothing (see `Fill`)."""
    import torch

    from diffusion.conditioning import fill_tumor_region

    return fill_tumor_region(
        torch.from_numpy(np.ascontiguousarray(host_hu[:, None], dtype=np.float32)),
        torch.from_numpy(tumor_masks[:, None].astype(np.float32)),
        torch.tensor([or_nan(look.contrast_hu) for look in appearances]),
    )[:, 0].numpy()


def as_it_is(real_hu: FloatArray) -> Fill:
    """Fill a region with the image that is there. `real_hu` has shape (S, S, S), in HU."""
    return lambda *_request: real_hu[None]
