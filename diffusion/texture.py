"""Smooth noise in the fill: where a generated tumour is a little darker, and where brighter.

In training the fill holds the smoothed texture of the real tumour, which the network learns to keep and to refine.
In use smooth noise stands in for it, with the reach and the lopsidedness of a training tumour's texture (see
`diffusion.texture_profiles`). How wide the noise must be for a requested heterogeneity is measured after the
training, so that smoothing by autoencoder and network is made up for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.conditioning import SMOOTHING_VOXELS
from diffusion.texture_profiles import (
    NORMAL_SCORES,
    TEXTURE_SCALES_VOXELS,
    TextureProfile,
    choose_profile,
    smooth_unit_noise,
)

LARGEST_SHARE = 2.0

_LARGEST_DEVIATION = 2.5
_LARGEST_SCALE = 2.0  # times SMOOTHING_VOXELS


def draw_texture(
    tumor_mask: Tensor, sd_hu: Tensor, generators: Sequence[torch.Generator], *, profiles: Sequence[TextureProfile] = ()
) -> Tensor:
    """Draw smooth noise with zero mean and a given deviation in the mask, in HU. Shape (B, 1, D, H, W).

    Each crop follows one profile, most often of a tumour that is about as heterogeneous. Without profiles the noise
    is symmetric, and smoothed by 2 to 4 voxels.

    Args:
        tumor_mask: Binary mask, not empty. Shape (B, 1, D, H, W).
        sd_hu: Standard deviation inside the mask in HU; a crop with 0 draws nothing. Shape (B,).
        generators: Source of randomness, one a crop.
    """
    textures = []
    for mask, deviation, generator in zip(tumor_mask > 0, sd_hu, generators, strict=True):
        if not deviation > 0:
            textures.append(torch.zeros(mask.shape, dtype=sd_hu.dtype, device=sd_hu.device))
            continue
        like = torch.empty((1, *mask.shape), dtype=sd_hu.dtype, device=sd_hu.device)
        if profiles:
            profile = choose_profile(profiles, float(deviation), generator)
            textures.append(deviation * _standardise(_draw_like(profile, like, mask, generator), mask))
        else:
            share = torch.rand((), generator=generator, device=generator.device).item()
            scale = SMOOTHING_VOXELS * _LARGEST_SCALE**share
            field = _standardise(smooth_unit_noise(like, scale, generator)[0], mask)
            textures.append(deviation * field.clamp(-_LARGEST_DEVIATION, _LARGEST_DEVIATION))
    return torch.stack(textures)


def _draw_like(profile: TextureProfile, like: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the profile's scales, its values changed to the profile's. Shape (1, D, H, W)."""
    field = torch.zeros_like(like)
    for share, scale in zip(profile.scale_shares, TEXTURE_SCALES_VOXELS, strict=True):
        if share > 0:
            field = field + share**0.5 * smooth_unit_noise(like, scale, generator)
    field = _standardise(field[0], mask).clamp(NORMAL_SCORES[0], NORMAL_SCORES[-1])
    place = (field - NORMAL_SCORES[0]) / (NORMAL_SCORES[1] - NORMAL_SCORES[0])
    below = place.floor().clamp(max=len(NORMAL_SCORES) - 2)
    quantiles = torch.tensor(profile.quantiles, dtype=field.dtype, device=field.device)
    lower, upper = quantiles[below.long()], quantiles[below.long() + 1]
    return lower + (place - below) * (upper - lower)


def _standardise(field: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale a field to zero mean and unit deviation inside the mask. Same shape."""
    inside = field[mask]
    return (field - inside.mean()) / inside.std(correction=0).clamp(min=1e-6)
