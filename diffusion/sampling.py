"""Crops and masks in, tumours out: what autoencoder, denoiser and scheduler do together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from autoencoder.layers import draw_noise
from autoencoder.network import AutoencoderNetwork
from diffusion.conditioning import fill_tumor_region, limit_contrast, limit_heterogeneity, unshuffle_mask
from diffusion.network import DenoisingNetwork
from diffusion.texture import draw_texture

DEFAULT_STEPS = 4


class TumorPipelineOutput(NamedTuple):
    """Two decoded crops in HU (B, 1, D, H, W): with a synthetic tumour, and the input after the autoencoder.

    `image_hu - reconstruction_hu` is what the autoencoder cannot represent, such as the scan's noise.
    """

    tumor_hu: Tensor
    reconstruction_hu: Tensor


class _Asked(NamedTuple):
    """Crops with what is asked of each, NaN where nothing is, and with their tumour regions filled."""

    image_hu: Tensor
    tumor_mask: Tensor
    contrast_hu: Tensor
    heterogeneity_hu: Tensor
    filled_hu: Tensor


class TumorSampler:
    """Synthesise a tumour inside the mask of each crop; the scheduler is what the denoiser's objective samples with.

    `TumorDiffusionPipeline` is it with diffusers around.

    Attributes:
        only_steps: Number of denoising steps, where it cannot be chosen.
        only_float32: It must not calculate in anything lower.
    """

    autoencoder: AutoencoderNetwork
    denoiser: DenoisingNetwork
    scheduler: Any
    only_steps: ClassVar[int | None] = None
    only_float32: ClassVar[bool] = False

    def __init__(self, autoencoder: AutoencoderNetwork, denoiser: DenoisingNetwork, scheduler: Any) -> None:
        self.autoencoder, self.denoiser, self.scheduler = autoencoder, denoiser, scheduler

    @torch.no_grad()
    def __call__(
        self,
        image_hu: Tensor,
        tumor_mask: Tensor,
        *,
        contrast_hu: Tensor | None = None,
        heterogeneity_hu: Tensor | None = None,
        generators: Sequence[torch.Generator],
        num_inference_steps: int = DEFAULT_STEPS,
        texture_hu: Tensor | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> TumorPipelineOutput:
        """Synthesise one tumour per crop; crops do not influence each other.

        Args:
            image_hu: CT in HU, padding as air. Shape (B, 1, D, H, W), sides multiples of 4 and of a
                size that the generator was trained on.
            tumor_mask: Binary mask with a tumour in every crop. Shape (B, 1, D, H, W).
            contrast_hu: Wanted contrast against the rim, limited to +-80 HU; NaN leaves it to the
                network, None does so for all crops. Shape (B,).
            heterogeneity_hu: Wanted standard deviation inside without noise, limited to 40 HU; NaN or None leave
                it to the network. Shape (B,).
            generators: Source of noise of each crop.
            texture_hu: Added to the fill that the network sees; None draws smooth noise as wide as the
                generator needs for the heterogeneity. Shape (B, 1, D, H, W).
            autocast_dtype: What the networks calculate in, such as `torch.bfloat16`; None for their own type. Fill,
                texture and the steps between the networks' calls stay in their own type.

        Returns:
            Crop with tumour, and the decoded input, both in HU and whole: compositing is the caller's.

        Raises:
            ValueError: If shapes, number of generators, mask or image values do not fit.
        """
        if num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps must be at least 1, got {num_inference_steps}. {DEFAULT_STEPS} are the default."
            )
        asked = self._ask(image_hu, tumor_mask, contrast_hu, heterogeneity_hu, generators, texture_hu)
        dtype = self.denoiser.dtype
        lower = torch.autocast(self.denoiser.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None)
        with lower:
            latents = self.autoencoder.encode(torch.cat([asked.filled_hu, asked.image_hu])).to(dtype)
        condition, original = latents.chunk(2)
        noise = torch.cat([draw_noise(original[:1], generator) for generator in generators])
        mask_unshuffled = unshuffle_mask(asked.tumor_mask).to(dtype)
        told = (condition, mask_unshuffled, asked.contrast_hu, asked.heterogeneity_hu)

        def predict(x_t: Tensor, levels: Tensor) -> Tensor:
            with lower:
                return self.denoiser(x_t, *told, levels).to(x_t.dtype)

        sample = self.denoiser.objective.sample(self.scheduler, predict, noise, num_inference_steps, generators)
        sample = self.denoiser.from_frame(sample, condition, asked.heterogeneity_hu)
        with lower:
            decoded_hu = self.autoencoder.decode(torch.cat([sample, original])).to(dtype)
        tumor_hu, reconstruction_hu = decoded_hu.chunk(2)
        return TumorPipelineOutput(tumor_hu, reconstruction_hu)

    @torch.no_grad()
    def fill(
        self,
        image_hu: Tensor,
        tumor_mask: Tensor,
        *,
        contrast_hu: Tensor | None = None,
        heterogeneity_hu: Tensor | None = None,
        generators: Sequence[torch.Generator],
        texture_hu: Tensor | None = None,
    ) -> Tensor:
        """Fill the tumour regions of crops, texture included: all that the network sees of the tumours, in HU.

        Arguments, errors and shape are those of a call. Fresh generators of the same seeds give the fill that a call
        with them starts from: texture is the first that is drawn from them.
        """
        return self._ask(image_hu, tumor_mask, contrast_hu, heterogeneity_hu, generators, texture_hu).filled_hu

    def _ask(
        self,
        image_hu: Tensor,
        tumor_mask: Tensor,
        contrast_hu: Tensor | None,
        heterogeneity_hu: Tensor | None,
        generators: Sequence[torch.Generator],
        texture_hu: Tensor | None,
    ) -> _Asked:
        """Check what is asked, limit it to what the network knows, put it where the network is, and fill."""
        check_inputs(image_hu, tumor_mask, generators)
        device, dtype = self.denoiser.device, self.denoiser.dtype
        not_given = torch.full((len(image_hu),), torch.nan)
        image_hu, tumor_mask = image_hu.to(device, dtype), tumor_mask.to(device)
        contrast_hu = limit_contrast((not_given if contrast_hu is None else contrast_hu).to(device, dtype))
        heterogeneity_hu = not_given if heterogeneity_hu is None else heterogeneity_hu
        heterogeneity_hu = limit_heterogeneity(heterogeneity_hu.to(device, dtype))
        if texture_hu is None:
            sd_hu = heterogeneity_hu.nan_to_num(nan=0.0) * self.denoiser.texture_share
            texture_hu = draw_texture(tumor_mask, sd_hu, generators, profiles=self.denoiser.texture_profiles)
        filled_hu = fill_tumor_region(image_hu, tumor_mask, contrast_hu, texture_hu=texture_hu.to(device, dtype))
        return _Asked(image_hu, tumor_mask, contrast_hu, heterogeneity_hu, filled_hu)


def check_inputs(image_hu: Tensor, tumor_mask: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Refuse crops that are not finite, without a tumour, or without a source of noise each.

    Raises:
        ValueError: If one is.
    """
    if len(generators) != image_hu.shape[0]:
        raise ValueError(
            f"generators must hold one torch.Generator per crop, got {len(generators)} for {image_hu.shape[0]} "
            f"crops. Seed one for each, so that a crop's tumour does not depend on its neighbours."
        )
    if not bool(image_hu.isfinite().all()):
        raise ValueError("image_hu holds NaN or infinite values. Replace what is missing by air (-1000 HU).")
    if tumor_mask.shape == image_hu.shape and not bool(tumor_mask.flatten(1).any(dim=1).all()):
        raise ValueError(
            "tumor_mask is empty in at least one crop, so there is nothing to synthesise. Leave that crop out."
        )
