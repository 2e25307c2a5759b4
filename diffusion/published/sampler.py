"""Tumours from the published networks, by the arguments of a `TumorSampler`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from autoencoder.layers import draw_noise
from autoencoder.published.network import PublishedAutoencoder
from diffusion.published.network import PublishedDenoiser
from diffusion.published.sampling import DDIM_STEPS, published_condition, published_schedule, sample_as_published
from diffusion.sampling import TumorPipelineOutput, check_inputs

EARLY_TIMESTEPS, LATE_TIMESTEPS = 4, 200
LARGEST_EARLY_RADIUS = 11.0
"""In voxels, which are mm: the early network is trained on semi-axes up to 10, the late one on 12 and more."""

MASKED_UNIT = 0.0
"""What the networks see in the place of a tumour, in the window from -1 to 1."""


class PublishedSampler:
    """Draws a tumour into the mask of each crop with the published autoencoder and denoisers.

    They take no contrast and no heterogeneity: what is asked of these is left to whoever blends the tissue. Every norm
    of theirs looks at the whole crop, so a crop has the side that they were trained on; one is made at a time, which
    bounds the memory.

    Args:
        early: Of 4 steps, for tumours of at most `LARGEST_EARLY_RADIUS`.
        late: Of 200 steps, 50 of which are taken, for larger ones; None leaves those to the early one too.
        early_decoder: Decodes what the early one draws, where its file holds an autoencoder of its own that differs.

    Attributes:
        only_steps: Number of denoising steps that may be asked for.
    """

    only_steps: ClassVar[int | None] = EARLY_TIMESTEPS

    def __init__(
        self,
        autoencoder: PublishedAutoencoder,
        early: PublishedDenoiser,
        late: PublishedDenoiser | None = None,
        early_decoder: PublishedAutoencoder | None = None,
    ) -> None:
        self.autoencoder, self.early, self.late, self.early_decoder = autoencoder, early, late, early_decoder
        self._schedules = {steps: published_schedule(steps) for steps in (EARLY_TIMESTEPS, LATE_TIMESTEPS)}

    @property
    def denoiser(self) -> PublishedDenoiser:
        """The network that says where and in what type the others calculate."""
        return self.early

    @torch.no_grad()
    def __call__(
        self,
        image_hu: Tensor,
        tumor_mask: Tensor,
        *,
        contrast_hu: Tensor | None = None,
        heterogeneity_hu: Tensor | None = None,
        generators: Sequence[torch.Generator],
        num_inference_steps: int = EARLY_TIMESTEPS,
        autocast_dtype: torch.dtype | None = None,
    ) -> TumorPipelineOutput:
        """Synthesise one tumour per crop, whatever its neighbours are.

        Args:
            image_hu: CT in HU. Shape (B, 1, D, H, W), H and W multiples of 32.
            tumor_mask: Binary mask with a tumour in every crop. Shape (B, 1, D, H, W).
            contrast_hu, heterogeneity_hu: Not used.
            generators: Source of noise of each crop.
            num_inference_steps: The networks' own, which cannot be changed.
            autocast_dtype: What the networks calculate in; None for their own type.

        Raises:
            ValueError: If shapes, number of generators, mask, image values or steps do not fit.
        """
        if num_inference_steps != EARLY_TIMESTEPS:
            raise ValueError(
                f"The published networks draw in {EARLY_TIMESTEPS} steps (early) or {DDIM_STEPS} (late), not in "
                f"{num_inference_steps}. Leave the number of steps out."
            )
        check_inputs(image_hu, tumor_mask, generators)
        device, dtype = self.early.device, self.early.dtype
        image_hu, tumor_mask = image_hu.to(device, dtype), tumor_mask.to(device, dtype)
        with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            made = [
                self._one(image_hu[index : index + 1], tumor_mask[index : index + 1], generator)
                for index, generator in enumerate(generators)
            ]
        tumor_hu, reconstruction_hu = (torch.cat([each.to(dtype) for each in one]) for one in zip(*made, strict=True))
        return TumorPipelineOutput(tumor_hu, reconstruction_hu)

    def fill(
        self,
        image_hu: Tensor,
        tumor_mask: Tensor,
        *,
        contrast_hu: Tensor | None = None,
        heterogeneity_hu: Tensor | None = None,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Put what the networks see into the tumours' places, in HU; arguments and shape are those of a call."""
        check_inputs(image_hu, tumor_mask, generators)
        window = self.autoencoder.window
        masked_hu = window.low_hu + (window.high_hu - window.low_hu) * (MASKED_UNIT + 1.0) / 2.0
        return torch.where(tumor_mask > 0, torch.full_like(image_hu, masked_hu), window.clip(image_hu))

    def _one(self, image_hu: Tensor, tumor_mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Crop with tumour and decoded crop, (1, 1, D, H, W) in HU."""
        condition = published_condition(self.autoencoder, image_hu, tumor_mask)
        is_early = self.late is None or _radius(tumor_mask) <= LARGEST_EARLY_RADIUS
        network = self.early if is_early or self.late is None else self.late
        decoder = (self.early_decoder if is_early else None) or self.autoencoder

        def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
            return network(x_t, condition, timestep).to(x_t.dtype)

        noise = draw_noise(condition[:, :-1], generator)
        schedule = self._schedules[EARLY_TIMESTEPS if is_early else LATE_TIMESTEPS]
        latents = sample_as_published(schedule, predict, noise, [generator])
        return decoder.decode(latents.to(image_hu.dtype)), self.autoencoder.reconstruct(image_hu)


def _radius(tumor_mask: Tensor) -> float:
    """Radius in voxels of the sphere of the mask's volume."""
    return (3.0 * float((tumor_mask > 0).sum()) / (4.0 * math.pi)) ** (1.0 / 3.0)
