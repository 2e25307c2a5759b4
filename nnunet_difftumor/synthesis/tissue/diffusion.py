"""Tumour tissue from a diffusion model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.synthesis.tissue.interface import DescribedTissue, FloatArray, GeneratedRegions, or_nan
from nnunet_difftumor.tumor.appearance import Appearance

if TYPE_CHECKING:
    import torch

    from diffusion.generator_folder import LoadedGenerator

PRECISION_VARIABLE = "nnUNet_difftumor_synthesis_precision"
FLOAT32, BFLOAT16 = "float32", "bfloat16"


class DiffusionTissue(DescribedTissue):
    """Tumour tissue from a trained generator folder, on the CPU unless told otherwise.

    Attributes:
        precision: What the networks calculate in, "float32" or "bfloat16" (see `synthesis_precision`).
        identity: Hash of the generator's folder.
        blends_as_published: The folder asks for the published way of blending (see `PublishedSynthesizer`).
    """

    def __init__(self, loaded: LoadedGenerator, *, steps: int = 4) -> None:
        """Choose the precision of a loaded generator.

        Raises:
            ConfigurationError: If the precision that the environment asks for does not exist, or the generator's number
                of steps cannot be chosen.
        """
        super().__init__(loaded.info)
        only = loaded.sampler.only_steps
        if only not in (None, steps):
            raise ConfigurationError(
                f"This generator draws in steps of its own; {steps} were asked for. Leave --steps out, or set "
                f'"steps": {only}.'
            )
        chosen = synthesis_precision(loaded.sampler.denoiser.device)
        self.precision = FLOAT32 if loaded.sampler.only_float32 else chosen
        self.identity, self.blends_as_published = loaded.identity, loaded.blends_as_published
        self._loaded = loaded
        self._steps = steps

    @classmethod
    def from_folder(cls, folder: Path, *, steps: int = 4, device: str = "cpu") -> DiffusionTissue:
        """Load a folder that `difftumor train-diffusion` wrote (its `generator` subfolder)."""
        from diffusion.generator_folder import load_generator

        return cls(load_generator(folder, device=device), steps=steps)

    def generate(
        self, host_hu: FloatArray, tumor_masks: NDArray[np.bool_], appearances: Sequence[Appearance], seeds: list[int]
    ) -> GeneratedRegions:
        """Generate tissue for regions of one side (see `TissueGenerator.generate`)."""
        import torch

        with torch.inference_mode():
            output = self._loaded.sampler(
                **self._inputs(host_hu, tumor_masks, appearances, seeds),
                num_inference_steps=self._steps,
                autocast_dtype=torch.bfloat16 if self.precision == BFLOAT16 else None,
            )
        return GeneratedRegions(
            output.tumor_hu[:, 0].float().cpu().numpy(), output.reconstruction_hu[:, 0].float().cpu().numpy()
        )

    def reconstruct(self, host_hu: FloatArray) -> FloatArray:
        """Encode and decode regions (see `TissueGenerator.reconstruct`)."""
        import torch

        sampler = self._loaded.sampler
        image_hu = torch.from_numpy(np.ascontiguousarray(host_hu[:, None], dtype=np.float32))
        device = sampler.denoiser.device
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self.precision == BFLOAT16):
            return sampler.autoencoder.reconstruct(image_hu.to(device))[:, 0].float().cpu().numpy()

    def fill(
        self, host_hu: FloatArray, tumor_masks: NDArray[np.bool_], appearances: Sequence[Appearance], seeds: list[int]
    ) -> FloatArray:
        """Fill the regions as `generate` does before it draws, texture included, in HU: what the network sees."""
        filled_hu = self._loaded.sampler.fill(**self._inputs(host_hu, tumor_masks, appearances, seeds))
        return filled_hu[:, 0].float().cpu().numpy()

    def _inputs(
        self, host_hu: FloatArray, tumor_masks: NDArray[np.bool_], appearances: Sequence[Appearance], seeds: list[int]
    ) -> dict[str, Any]:
        import torch

        device = self._loaded.sampler.denoiser.device
        contrasts_hu = [or_nan(look.contrast_hu) for look in appearances]
        heterogeneities_hu = [or_nan(look.heterogeneity_hu) for look in appearances]
        return {
            "image_hu": torch.from_numpy(np.ascontiguousarray(host_hu[:, None], dtype=np.float32)).to(device),
            "tumor_mask": torch.from_numpy(tumor_masks[:, None].astype(np.float32)).to(device),
            "contrast_hu": torch.tensor(contrasts_hu, dtype=torch.float32, device=device),
            "heterogeneity_hu": torch.tensor(heterogeneities_hu, dtype=torch.float32, device=device),
            "generators": [torch.Generator().manual_seed(seed) for seed in seeds],
        }


def synthesis_precision(device: torch.device) -> str:
    """Choose what the networks of a generator calculate in, where the environment variable does not say.

    bfloat16 saves half of the time of a large region on a CPU with matrix units (Intel AMX), and takes more time
    than float32 on others. The tissue differs by a tenth of a HU.

    Raises:
        ConfigurationError: If the variable holds something else.
    """
    wanted = os.environ.get(PRECISION_VARIABLE, "").strip()
    if wanted not in ("", FLOAT32, BFLOAT16):
        raise ConfigurationError(
            f"{PRECISION_VARIABLE} must be {FLOAT32} or {BFLOAT16}; it is {wanted!r}. Unset it to let the CPU decide."
        )
    return wanted or (BFLOAT16 if device.type == "cpu" and has_matrix_units() else FLOAT32)


def has_matrix_units() -> bool:
    """Whether this CPU has matrix units that PyTorch uses, as far as PyTorch can say (from version 2.6)."""
    import torch

    says = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return says is not None and torch.backends.mkldnn.is_available() and bool(says())
