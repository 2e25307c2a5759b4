"""What the published DiffTumor models are told, and how they draw latents: 4 ancestral steps, or 50 of DDIM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from autoencoder.layers import draw_noise
from autoencoder.published.network import PublishedAutoencoder, swap_last_axes

DDIM_STEPS = 50

Predict = Callable[[Tensor, Tensor], Tensor]
"""Predicts the noise in x_t (B, C, f, h, w) at the steps t (B,), int64, of each crop."""


class PublishedSchedule(NamedTuple):
    """Cosine schedule of T steps of training; each entry has shape (T,), float32, on the CPU."""

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    posterior_log_variance_clipped: Tensor

    @property
    def timesteps(self) -> int:
        """T: 4 in the models of early tumours, 200 in the others."""
        return len(self.betas)


def published_schedule(timesteps: int) -> PublishedSchedule:
    """Compute the schedule of T steps in float64.

    Raises:
        ValueError: If there is no step.

    Source:
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, with s = 0.008.
    """
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}. The published models have 4 or 200.")
    shift = 0.008
    progress = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    signal = torch.cos((progress + shift) / (1 + shift) * math.pi / 2).square()
    beta = (1 - signal[1:] / signal[:-1]).clamp(0, 0.9999)
    alpha_bar = (1 - beta).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    variance = beta * (1 - before) / (1 - alpha_bar)
    exact = (
        beta,
        alpha_bar,
        (1 / alpha_bar).sqrt(),
        (1 / alpha_bar - 1).sqrt(),
        beta * before.sqrt() / (1 - alpha_bar),
        (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
        variance.clamp(min=1e-20).log(),
    )
    return PublishedSchedule(*(values.float() for values in exact))


def published_condition(autoencoder: PublishedAutoencoder, image_hu: Tensor, tumor_mask: Tensor) -> Tensor:
    """Encode crops without their tumour regions, and add the mask.

    The regions hold the middle of the window, 37.5 HU, 0 in [-1, 1]. The mask channel is 1 where the first of 4 voxels
    along each axis lies in the tumour and -1 elsewhere, so that it may miss a tumour of few voxels.

    Args:
        image_hu: CT in HU. Shape (B, 1, D, H, W), D a multiple of 4, H and W of 32 for the denoiser.
        tumor_mask: Binary mask. Shape (B, 1, D, H, W).

    Returns:
        Normalised latents and mask in the published frame. Shape (B, 9, D/4, W/4, H/4).

    Raises:
        ValueError: If the shapes differ or do not fit the autoencoder.
    """
    if tumor_mask.shape != image_hu.shape:
        raise ValueError(
            f"image_hu {tuple(image_hu.shape)} and tumor_mask {tuple(tumor_mask.shape)} must share one shape. "
            f"Crop both with the same bounding box."
        )
    unit = autoencoder.window.to_unit(image_hu)
    inside = tumor_mask.to(unit)
    latents = autoencoder.normalise(autoencoder.encode_unit(swap_last_axes(unit * (1.0 - inside))))
    mask = interpolate(swap_last_axes(inside), size=latents.shape[2:], mode="nearest")
    return torch.cat([latents, 2.0 * mask.to(latents) - 1.0], dim=1)


def sample_as_published(
    schedule: PublishedSchedule, predict: Predict, noise: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """Draw normalised latents in the way that belongs to the schedule: ancestral up to 50 steps, DDIM beyond.

    Args:
        noise: x_T, standard normal. Shape (B, C, f, h, w), as the result's.
        generators: Source of further noise of each crop; DDIM needs none.
    """
    if schedule.timesteps > DDIM_STEPS:
        return sample_ddim(schedule, predict, noise)
    return sample_ancestral(schedule, predict, noise, generators)


def sample_ancestral(
    schedule: PublishedSchedule,
    predict: Predict,
    noise: Tensor,
    generators: Sequence[torch.Generator] = (),
    step_noises: Iterable[Tensor] | None = None,
) -> Tensor:
    """Draw normalised latents in [-1, 1] with all steps of the schedule.

    Args:
        noise: x_T, standard normal. Shape (B, C, f, h, w), as the result's.
        generators: Source of the noise that the steps add, one for each crop.
        step_noises: That noise itself, T - 1 tensors in the order of use; None draws it.

    Raises:
        ValueError: If the noise is to be drawn and there is not one generator per crop.

    Source:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, algorithm 2 with a clamped estimate of x_0.
    """
    noises = iter(_draw_noises(noise, generators) if step_noises is None else step_noises)
    x_t = noise
    for t in reversed(range(schedule.timesteps)):
        estimate = _at(schedule.sqrt_recip_alphas_cumprod, t) * x_t
        estimate = estimate - _at(schedule.sqrt_recipm1_alphas_cumprod, t) * predict(x_t, _steps(t, noise))
        x_0 = estimate.clamp(-1.0, 1.0)
        x_t = _at(schedule.posterior_mean_coef1, t) * x_0 + _at(schedule.posterior_mean_coef2, t) * x_t
        if t > 0:
            x_t = x_t + math.exp(0.5 * _at(schedule.posterior_log_variance_clipped, t)) * next(noises)
    return x_t


def sample_ddim(schedule: PublishedSchedule, predict: Predict, noise: Tensor, steps: int = DDIM_STEPS) -> Tensor:
    """Draw normalised latents with a part of the schedule's steps, without further noise and without a limit.

    Args:
        noise: x_T, standard normal. Shape (B, C, f, h, w), as the result's.
        steps: How many; where it does not divide T, the next larger number that a whole stride gives is used.

    Raises:
        ValueError: If steps is not between 1 and T.

    Source:
        Song et al., "Denoising Diffusion Implicit Models", 2021, eta = 0. As in the published models, the steps start
        at 1 and the last one leads to the noise level of step 0, not to none.
    """
    indices = ddim_indices(schedule.timesteps, steps)
    levels = [_at(schedule.alphas_cumprod, t) for t in (0, *indices)]
    x_t = noise
    for i in reversed(range(len(indices))):
        after, before = levels[i], levels[i + 1]
        epsilon = predict(x_t, _steps(indices[i], noise))
        x_0 = (x_t - math.sqrt(1 - before) * epsilon) / math.sqrt(before)
        x_t = math.sqrt(after) * x_0 + math.sqrt(1 - after) * epsilon
    return x_t


def ddim_indices(timesteps: int, steps: int) -> list[int]:
    """Steps of the schedule that DDIM uses, ascending: 1, 5, ..., 197 for 50 of 200.

    Raises:
        ValueError: If steps is not between 1 and T.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"DDIM takes 1 to {timesteps} steps of this schedule, got {steps}. {DDIM_STEPS} are usual.")
    stride = timesteps // steps
    return list(range(1 if stride > 1 else 0, timesteps, stride))


def _draw_noises(noise: Tensor, generators: Sequence[torch.Generator]) -> Iterator[Tensor]:
    if len(generators) != len(noise):
        raise ValueError(
            f"generators must hold one torch.Generator per crop, got {len(generators)} for {len(noise)} crops. Seed "
            f"one for each."
        )
    while True:
        yield torch.cat([draw_noise(noise[:1], generator) for generator in generators])


def _at(values: Tensor, t: int) -> float:
    return float(values[t])


def _steps(t: int, noise: Tensor) -> Tensor:
    """Return the step of each crop. Shape (B,), int64."""
    return torch.full((len(noise),), t, device=noise.device)
