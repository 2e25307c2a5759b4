"""Tissue to compare a generator with: its fill without diffusion, flat or textured, and the autoencoder alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions, TissueGenerator
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.region import RoiRule

FloatArray = NDArray[np.float32]

Reconstruct = Callable[[FloatArray], FloatArray]
"""Takes regions in HU, shape (N, S, S, S), and returns them encoded and decoded."""

_REGIONS_AT_ONCE = 4


class FillingGenerator(TissueGenerator, Protocol):
    """A generator that shows what its network is given (see `DiffusionTissue.fill`)."""

    def fill(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> FloatArray:
        """Fill regions, texture included. Arguments as for `generate`; shape (N, S, S, S), in HU."""
        ...


def reconstruct_with(autoencoder: Any) -> Reconstruct:
    """Wrap an autoencoder for arrays.

    Args:
        autoencoder: `AutoencoderKL3D`, in evaluation mode.

    Returns:
        Function that encodes and decodes regions in HU.
    """
    import torch

    def reconstruct(regions_hu: FloatArray) -> FloatArray:
        device = next(autoencoder.parameters()).device
        parts = []
        with torch.inference_mode():
            for start in range(0, len(regions_hu), _REGIONS_AT_ONCE):
                part = np.ascontiguousarray(regions_hu[start : start + _REGIONS_AT_ONCE, None], dtype=np.float32)
                parts.append(autoencoder.reconstruct(torch.from_numpy(part).to(device))[:, 0].float().cpu().numpy())
        return np.concatenate(parts)

    return reconstruct


class _Derived:
    """What a comparison shares with the generator that it is compared with."""

    def __init__(self, generator: FillingGenerator, reconstruct: Reconstruct) -> None:
        """Take regions, window and looks from a generator."""
        self._generator = generator
        self._reconstruct = reconstruct

    @property
    def roi_rule(self) -> RoiRule:
        """Regions of the generator."""
        return self._generator.roi_rule

    @property
    def window_hu(self) -> tuple[float, float]:
        """Window of the generator in HU."""
        return self._generator.window_hu

    @property
    def appearances(self) -> tuple[Appearance, ...]:
        """Looks of the generator's training tumours."""
        return self._generator.appearances


class FillTissue(_Derived):
    """Neither diffusion nor noise: a flat fill at the requested contrast, encoded and decoded."""

    def generate(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> GeneratedRegions:
        """Decode the fill of every region (see `TissueGenerator.generate`); the seeds change nothing."""
        import torch

        from diffusion.conditioning import fill_tumor_region

        contrasts = [look.contrast_hu for look in appearances]
        requested = torch.tensor([float("nan") if value is None else value for value in contrasts])
        filled = fill_tumor_region(
            torch.from_numpy(np.ascontiguousarray(host_hu[:, None], dtype=np.float32)),
            torch.from_numpy(tumor_masks[:, None].astype(np.float32)),
            requested,
        )
        return GeneratedRegions(self._reconstruct(filled[:, 0].numpy()), self._reconstruct(host_hu))


class TexturedFillTissue(_Derived):
    """What the generator's network starts from, with the noise that stands in for texture, encoded and decoded.

    What a generator is better by than this is its network's doing.
    """

    def generate(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> GeneratedRegions:
        """Decode the generator's own fill of every region (see `TissueGenerator.generate`)."""
        filled_hu = self._generator.fill(host_hu, tumor_masks, appearances, seeds)
        return GeneratedRegions(self._reconstruct(filled_hu), self._reconstruct(host_hu))


class AutoencoderTissue(_Derived):
    """The floor of any generator with this autoencoder: the image that is there, encoded and decoded."""

    def generate(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> GeneratedRegions:
        """Decode every region as it is (see `TissueGenerator.generate`)."""
        reconstruction_hu = self._reconstruct(host_hu)
        return GeneratedRegions(reconstruction_hu, reconstruction_hu)
