"""Sampling of a rectified flow in few steps, its noise levels in training, and its loss.

On the path x_t = (1 - s) x_0 + s n the angle is theta = atan2(s, 1 - s): 0 at the data, pi/2 at pure noise.
Divided by its length sqrt((1 - s)^2 + s^2), the path is y = cos(theta) x_0 + sin(theta) n, and the flow along it
dy/dtheta = cos(theta) n - sin(theta) x_0. For data that are as wide as the noise this slope is zero on average,
so Euler steps in the angle keep the data's variance; four Euler steps in s keep 72 % of the standard deviation of
standard normal data, and 28 % where the data are ten times narrower than the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class FlowLoss(NamedTuple):
    """Mean error of the prediction everywhere, and inside the tumour of each sample; each a scalar.

    The second is averaged over the samples that have a tumour, so that a small one weighs as much as a large one.
    """

    everywhere: Tensor
    inside: Tensor


def flow_sigmas(num_steps: int) -> list[float]:
    """Noise levels at which a sampler of this many steps calls the network: 1, 1 - 1/T, ..., 1/T.

    `FlowMatchEulerDiscreteScheduler.set_timesteps(n)` would end at 0.001 and waste one call of n. The scheduler adds
    the final 0.

    Raises:
        ValueError: If num_steps is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}. Four are the default.")
    return [(num_steps - step) / num_steps for step in range(num_steps)]


def level_of_angle(angles: Tensor) -> Tensor:
    """Noise level s = sin / (sin + cos) of an angle in [0, pi/2]. Any shape."""
    return angles.sin() / (angles.sin() + angles.cos())


def draw_angle_levels(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Draw `count` noise levels in [0, 1) on a device, whose angle is uniform between data and noise."""
    share = torch.rand(count, generator=generator, device=generator.device)
    return level_of_angle(0.5 * math.pi * share).to(device)


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise of a tensor's shape, type and device; the generator may be on another device."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return noise.to(device=like.device, dtype=like.dtype)


def follow_angle(scheduler: Any, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, num_steps: int) -> Tensor:
    """Integrate a rectified flow with Euler steps in the angle, around the mean of what is to be sampled.

    At pure noise the network's estimate of x_0 is that mean m. The steps follow y - cos(theta) m, so that the
    mean is exact too. A single step returns m itself.

    Args:
        scheduler: `FlowMatchEulerDiscreteScheduler`; its sigma is the angle's share of pi/2 here.
        predict: Velocity n - x_0 at x_t and the noise levels (B,).
        noise: Standard normal noise. Shape (B, C, D, H, W), as the sample's.
        num_steps: Calls of `predict`.
    """
    if num_steps == 1:
        return noise - predict(noise, torch.ones(noise.shape[:1], dtype=noise.dtype, device=noise.device))
    scheduler.set_timesteps(sigmas=flow_sigmas(num_steps), device=noise.device)
    angles = [0.5 * math.pi * share for share in scheduler.sigmas.tolist()]
    y, mean = noise, torch.zeros_like(noise)
    for step, timestep in enumerate(scheduler.timesteps):
        cos, sin, next_cos = math.cos(angles[step]), math.sin(angles[step]), math.cos(angles[step + 1])
        x_t, level = y / (sin + cos), sin / (sin + cos)
        velocity = predict(x_t, torch.full(noise.shape[:1], level, dtype=noise.dtype, device=noise.device))
        x_0, n = x_t - level * velocity, x_t + (1.0 - level) * velocity
        mean = x_0 if step == 0 else mean
        slope = cos * n - sin * (x_0 - mean) + (next_cos - cos) / (angles[step + 1] - angles[step]) * mean
        y = scheduler.step(0.5 * math.pi * slope, timestep, y, return_dict=False)[0]
    return y


def flow_loss(prediction: Tensor, target: Tensor, mask_share: Tensor, *, absolute: bool = False) -> FlowLoss:
    """Error of a prediction (B, C, D, H, W), everywhere and inside the tumours; 0 where no sample has one.

    Args:
        mask_share: Share of each latent voxel inside the tumour. Shape (B, 1, D, H, W).
        absolute: Take the absolute error instead of the squared one.
    """
    difference = prediction.float() - target.float()
    error = (difference.abs() if absolute else difference.square()).mean(dim=1, keepdim=True)  # (B, 1, D, H, W)
    weight = mask_share.float()
    mass = weight.flatten(1).sum(dim=1)  # (B,)
    has_tumor = mass > 0
    inside = (weight * error).flatten(1).sum(dim=1) / torch.where(has_tumor, mass, 1.0)
    return FlowLoss(error.mean(), inside.sum() / has_tumor.sum().clamp(min=1))
