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


class PublishedSampler:
    """Draws a tumour into the mask of each crop with the published autoencoder and denoisers.

    They take no contrast and no heterogeneity: what is asked of these is left to whoever blends the tissue. Every norm
    of theirs looks at the whole crop, so a crop has the side that they were trained on. Latents of several crops are
    drawn together, and decoded one by one, which bounds the memory.

    Args:
        early: Of 4 steps, for tumours of at most `LARGEST_EARLY_RADIUS`.
        late: Of 200 steps, 50 of which are taken, for larger ones; None leaves those to the early one too.
        early_decoder: Decodes what the early one draws, where its file holds an autoencoder of its own that differs.

    Attributes:
        only_steps: Number of denoising steps that may be asked for.
        only_float32: The first of the 4 steps multiplies an error of the denoiser by 263.
    """

    only_steps: ClassVar[int | None] = EARLY_TIMESTEPS
    only_float32: ClassVar[bool] = True

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
            autocast_dtype: None; the networks calculate in float32.

        Raises:
            ValueError: If shapes, number of generators, mask, image values, steps or type do not fit.
        """
        if num_inference_steps != EARLY_TIMESTEPS:
            raise ValueError(
                f"The published networks draw in {EARLY_TIMESTEPS} steps (early) or {DDIM_STEPS} (late), not in "
                f"{num_inference_steps}. Leave the number of steps out."
            )
        if autocast_dtype is not None:
            raise ValueError(f"The published networks calculate in float32 only, not in {autocast_dtype}.")
        check_inputs(image_hu, tumor_mask, generators)
        device, dtype = self.early.device, self.early.dtype
        image_hu, tumor_mask = image_hu.to(device, dtype), tumor_mask.to(device, dtype)
        crops = list(zip(image_hu.split(1), tumor_mask.split(1), strict=True))
        early, late = self._of_both_sizes(tumor_mask)
        conditions = [published_condition(self.autoencoder, *crop) for crop in crops]
        latents = self._draw(early, conditions, generators, is_early=True)
        latents |= self._draw(late, conditions, generators, is_early=False)
        decoders = dict.fromkeys(early, self.early_decoder or self.autoencoder)
        tumors_hu = [decoders.get(each, self.autoencoder).decode(latents[each]) for each in range(len(crops))]
        hosts_hu = [self.autoencoder.reconstruct(image) for image, _ in crops]
        return TumorPipelineOutput(torch.cat(tumors_hu), torch.cat(hosts_hu))

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
        return torch.where(tumor_mask > 0, window.to_hu(torch.zeros_like(image_hu)), window.clip(image_hu))

    def _of_both_sizes(self, tumor_masks: Tensor) -> tuple[list[int], list[int]]:
        """Numbers of the crops whose tumour is the early network's, and of the others."""
        early = [
            index
            for index, mask in enumerate(tumor_masks)
            if self.late is None or _radius(mask) <= LARGEST_EARLY_RADIUS
        ]
        return early, sorted(set(range(len(tumor_masks))).difference(early))

    def _draw(
        self,
        chosen: Sequence[int],
        conditions: Sequence[Tensor],
        generators: Sequence[torch.Generator],
        *,
        is_early: bool,
    ) -> dict[int, Tensor]:
        """Draw the latents (1, 8, f, h, w) of the chosen crops together, by their numbers."""
        if not chosen:
            return {}
        network = self.early if is_early or self.late is None else self.late
        condition, own = torch.cat([conditions[index] for index in chosen]), [generators[index] for index in chosen]

        def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
            return network(x_t, condition, timestep)

        noise = torch.cat([draw_noise(condition[:1, :-1], generator) for generator in own])
        schedule = self._schedules[EARLY_TIMESTEPS if is_early else LATE_TIMESTEPS]
        drawn = sample_as_published(schedule, predict, noise, own)
        return dict(zip(chosen, drawn.split(1), strict=True))


def _radius(tumor_mask: Tensor) -> float:
    """Radius in voxels of the sphere of the mask's volume."""
    return (3.0 * float((tumor_mask > 0).sum()) / (4.0 * math.pi)) ** (1.0 / 3.0)
