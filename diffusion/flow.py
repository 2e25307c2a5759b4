"""Rectified flow: straight paths from data to noise, and the velocity along them.

x_t = (1 - s) x_0 + s n with noise level s in [0, 1]; the network learns the velocity n - x_0.

Source:
    Liu et al., "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
    ICLR 2023. Logit-normal noise levels: Esser et al., "Scaling Rectified Flow Transformers for
    High-Resolution Image Synthesis", ICML 2024.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FlowLoss(NamedTuple):
    """Error of the velocity.

    Attributes:
        everywhere: Mean squared error over all latent voxels. Shape ().
        inside: Mean squared error inside the tumour of each sample, averaged over the samples that
            have one, so that a small tumour weighs as much as a large one. Shape ().
    """

    everywhere: Tensor
    inside: Tensor


def flow_sigmas(num_steps: int) -> list[float]:
    """Noise levels at which a sampler of this many steps calls the network.

    `FlowMatchEulerDiscreteScheduler.set_timesteps(n)` would end at 0.001 and waste one call of n.

    Args:
        num_steps: Number of network calls.

    Returns:
        1, 1 - 1/T, ..., 1/T; the scheduler adds the final 0.

    Raises:
        ValueError: If num_steps is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}. Four are the default.")
    return [(num_steps - step) / num_steps for step in range(num_steps)]


def draw_noise_levels(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Draw logit-normal noise levels: the middle of the path is trained more than its ends.

    Args:
        count: Number of samples.
        device: Where the result shall be.
        generator: Source of randomness, on any device.

    Returns:
        Values in (0, 1). Shape (count,).
    """
    return torch.randn(count, generator=generator, device=generator.device).sigmoid().to(device)


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise of a tensor's shape, type and device.

    Args:
        like: Tensor of any shape.
        generator: Source of randomness, on any device.

    Returns:
        Noise of the same shape.
    """
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return noise.to(device=like.device, dtype=like.dtype)


def interpolate(x_0: Tensor, noise: Tensor, noise_levels: Tensor) -> Tensor:
    """Point of the path at each sample's noise level: (1 - s) x_0 + s n.

    Args:
        x_0: Latents. Shape (B, C, D, H, W).
        noise: Standard normal noise. Shape (B, C, D, H, W).
        noise_levels: Noise level s in [0, 1]. Shape (B,).

    Returns:
        Noisy latents. Shape (B, C, D, H, W).
    """
    level = noise_levels.view(-1, *[1] * (x_0.ndim - 1)).to(x_0.dtype)
    return (1.0 - level) * x_0 + level * noise


def velocity_target(x_0: Tensor, noise: Tensor) -> Tensor:
    """Velocity along the path, the same at every noise level: n - x_0.

    Args:
        x_0: Latents. Shape (B, C, D, H, W).
        noise: Standard normal noise. Shape (B, C, D, H, W).

    Returns:
        Velocity. Shape (B, C, D, H, W).
    """
    return noise - x_0


def flow_loss(velocity: Tensor, target: Tensor, mask_share: Tensor) -> FlowLoss:
    """Squared error of the velocity, everywhere and inside the tumours.

    Args:
        velocity: Predicted velocity. Shape (B, C, D, H, W).
        target: True velocity. Shape (B, C, D, H, W).
        mask_share: Share of each latent voxel inside the tumour. Shape (B, 1, D, H, W).

    Returns:
        The two means; `inside` is 0 where no sample has a tumour.
    """
    squared_error = (velocity.float() - target.float()).square().mean(dim=1, keepdim=True)  # (B, 1, D, H, W)
    weight = mask_share.float()
    mass = weight.flatten(1).sum(dim=1)  # (B,)
    has_tumor = mass > 0
    inside = (weight * squared_error).flatten(1).sum(dim=1) / torch.where(has_tumor, mass, 1.0)
    return FlowLoss(squared_error.mean(), inside.sum() / has_tumor.sum().clamp(min=1))
