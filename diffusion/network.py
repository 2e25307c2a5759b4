"""The network that predicts the flow's velocity from noisy latents, the filled surroundings and the mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoencoder.layers import Conv3d, Linear, Network, zero_start
from diffusion.conditioning import LATENT_STRIDE, limit_contrast, limit_heterogeneity
from diffusion.generator.records import read_value
from diffusion.objectives import OBJECTIVES
from diffusion.texture import TextureProfile

CONTRAST_SCALE_HU = 30.0
HETEROGENEITY_SCALE_HU = 10.0
SCALAR_CONDITIONS = ("contrast_hu", "heterogeneity_hu")
"""Each is embedded with its value and its presence."""
MASK_CHANNELS = 8
"""Channels to which the 64 channels of the unshuffled mask are reduced."""
ATTENTION_MAX_TOKENS = 512
"""Largest number of coarsest latent voxels that attention is used for."""
NORM_GROUPS = 8

FIXED_ENTRIES: Mapping[str, Any] = MappingProxyType(
    {
        "attention_max_tokens": ATTENTION_MAX_TOKENS,
        "mask_embedding_channels": MASK_CHANNELS,
        "norm_groups": NORM_GROUPS,
        "scalar_conditions": list(SCALAR_CONDITIONS),
    }
)
"""Entries of config.json that have one value in every network of this release."""


class DenoisingNetwork(Network):
    """Small 3D U-Net over latents, for any crop whose sides are multiples of 4 voxels.

    `DenoisingUNet3D` is it with diffusers around.

    It sees regions of interest only, at sizes it was trained on, so group norm and attention may look
    at the whole crop.

    Args:
        channels: Feature channels of each resolution, finest first; multiples of 8.
        blocks: Residual blocks per resolution on the way down (one more on the way up).
        objective: What is predicted: "flow", "v" or "epsilon" (see `diffusion.objectives`).
        difference_std: Standard deviation of each latent channel's difference from the filled image inside
            tumours. With it the path runs in these differences, so that the noise is as wide as what is to be
            drawn; None lets it run in plain latents, as in the paper.
        difference_floor, difference_per_hu: Where a heterogeneity h is given, the deviation is
            sqrt(floor^2 + (per_hu h)^2): a part such as noise, and the increase per HU.
        texture_share: Standard deviation of the smooth noise in the fill over the requested heterogeneity; what
            the network itself falls short of (see `diffusion.texture`). 0 fills flat.
        texture_profiles: What that noise is like, as JSON values (see `TextureProfile`).

    Raises:
        ValueError: If a channel number is no multiple of 8, the objective is unknown, or there is not one number per
            latent channel in what describes the differences.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        latent_channels: int = 8,
        objective: str = "flow",
        difference_std: Sequence[float] | None = None,
        difference_floor: Sequence[float] | None = None,
        difference_per_hu: Sequence[float] | None = None,
        texture_share: float = 0.0,
        texture_profiles: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
        if not channels or any(width < 1 or width % NORM_GROUPS for width in channels):
            raise ValueError(
                f"channels must be multiples of norm_groups={NORM_GROUPS}, got {tuple(channels)}. "
                f"Try (32, 64) or (48, 96, 192)."
            )
        self.latent_channels = latent_channels
        self.set_differences(difference_std, difference_floor, difference_per_hu)
        self.texture_share = texture_share
        self.objective = OBJECTIVES[objective]
        self.texture_profiles = read_value(
            tuple[TextureProfile, ...], list(texture_profiles), "texture_profiles", ValueError
        )
        self._time_channels = channels[0]
        told = 4 * channels[0]  # channels of what is told of time and scalars
        self.time_embedding = nn.Sequential(Linear(channels[0], told), nn.SiLU(), Linear(told, told))
        scalars = Linear(2 * len(SCALAR_CONDITIONS), told)
        self.scalar_embedding = nn.Sequential(scalars, nn.SiLU(), zero_start(Linear(told, told)))
        self.mask_embedding = Conv3d(LATENT_STRIDE**3, MASK_CHANNELS, kernel_size=1)
        self.entry = Conv3d(2 * latent_channels + MASK_CHANNELS, channels[0], kernel_size=3, padding=1)

        skip_widths = [channels[0]]
        self.down_stages, self.up_stages = nn.ModuleList(), nn.ModuleList()
        width = channels[0]
        for level, outgoing in enumerate(channels):
            self.down_stages.append(DownStage(width, outgoing, blocks, told, halves=level > 0))
            skip_widths += ([width] if level > 0 else []) + [outgoing] * blocks
            width = outgoing
        self.middle_in = ResidualBlock(width, width, told)
        self.attention = SelfAttention3D(width)
        self.middle_out = ResidualBlock(width, width, told)
        for level, outgoing in enumerate(reversed(channels)):
            widths = [skip_widths.pop() for _ in range(blocks + 1)]
            self.up_stages.append(UpStage(width, outgoing, widths, told, doubles=level > 0))
            width = outgoing
        self.exit_norm = nn.GroupNorm(NORM_GROUPS, width)
        self.exit = zero_start(Conv3d(width, latent_channels, kernel_size=3, padding=1))

    def forward(
        self,
        latents_noisy: Tensor,
        condition_latents: Tensor,
        mask_unshuffled: Tensor,
        contrast_hu: Tensor,
        heterogeneity_hu: Tensor,
        timestep: Tensor,
    ) -> Tensor:
        """Predict what the objective asks for, in the frame of `to_frame`.

        For flow and v the layers estimate how x_0 differs from the condition, and the prediction follows
        from it. Outside the mask the difference is zero and inside it is small, and an untrained network
        returns the filled image itself. For epsilon the layers predict the noise, as in the paper.

        Args:
            latents_noisy: Point x_t of the path, in the frame. Shape (B, C, D/4, H/4, W/4), as the prediction's.
            condition_latents: Latents of the image with the tumour region filled. Same shape.
            mask_unshuffled: `unshuffle_mask` of the tumour mask. Shape (B, 64, D/4, H/4, W/4).
            contrast_hu: Contrast of the tumour against its rim; NaN where it is not given. Shape (B,).
            heterogeneity_hu: Standard deviation inside without noise; NaN where it is not given. Shape (B,).
            timestep: Noise level in [0, 1], 1 is pure noise. Shape (B,).
        """
        dtype = latents_noisy.dtype
        embedded_time = self.time_embedding(_sinusoids(timestep, self._time_channels).to(dtype))
        embedded_time = embedded_time + self.scalar_embedding(_scalars(contrast_hu, heterogeneity_hu, latents_noisy))
        embedded_mask = self.mask_embedding(mask_unshuffled.to(dtype))
        features = self.entry(torch.cat([latents_noisy, condition_latents, embedded_mask], dim=1))
        skips = [features]
        for stage in self.down_stages:
            features, stage_skips = stage(features, embedded_time)
            skips += stage_skips
        features = self.middle_in(features, embedded_time)
        if features.shape[2:].numel() <= ATTENTION_MAX_TOKENS:
            features = self.attention(features)
        features = self.middle_out(features, embedded_time)
        for stage in self.up_stages:
            features = stage(features, skips, embedded_time)
        output = self.exit(functional.silu(self.exit_norm(features)))
        if not self.objective.predicts_clean:
            return output
        clean = output if self.draws_differences else condition_latents + output
        return self.objective.from_clean(latents_noisy, clean, timestep)

    @property
    def draws_differences(self) -> bool:
        """Whether the path runs in differences from the condition."""
        return self.difference_std is not None

    def to_frame(self, latents: Tensor, condition_latents: Tensor, heterogeneity_hu: Tensor) -> Tensor:
        """Turn latents (B, C, D/4, H/4, W/4) into what the path runs in: standardised differences, or themselves."""
        if not self.draws_differences:
            return latents
        return (latents - condition_latents) / self._difference_scale(heterogeneity_hu, latents)

    def from_frame(self, sample: Tensor, condition_latents: Tensor, heterogeneity_hu: Tensor) -> Tensor:
        """Turn a sample of the path into latents: the inverse of `to_frame`."""
        if not self.draws_differences:
            return sample
        return condition_latents + sample * self._difference_scale(heterogeneity_hu, sample)

    def set_differences(
        self, std: Sequence[float] | None, floor: Sequence[float] | None, per_hu: Sequence[float] | None
    ) -> None:
        """Store measured deviations; from then on the path runs in differences, or in latents if all are None.

        Raises:
            ValueError: If there is not one number per latent channel: `std` and `floor` positive, `per_hu` 0 or more.
        """
        _check_differences(self.latent_channels, std=std, floor=floor, per_hu=per_hu)
        self.difference_std, self.difference_floor, self.difference_per_hu = (
            None if values is None else [float(value) for value in values] for values in (std, floor, per_hu)
        )

    def set_texture_share(self, texture_share: float) -> None:
        """Store how much smooth noise the fill gets for each HU of heterogeneity.

        Raises:
            ValueError: If it is negative.
        """
        if not texture_share >= 0:
            raise ValueError(f"texture_share must be 0 or more, got {texture_share}.")
        self.texture_share = float(texture_share)

    def set_texture_profiles(self, profiles: Sequence[TextureProfile]) -> None:
        """Store what the textures of the training tumours are like; none: symmetric noise is drawn."""
        self.texture_profiles = tuple(profiles)

    def _difference_scale(self, heterogeneity_hu: Tensor, like: Tensor) -> Tensor:
        """Deviation of each sample and channel. Shape (B, C, 1, 1, 1)."""
        std, floor, per_hu = (
            torch.tensor(values, dtype=like.dtype, device=like.device)
            for values in (self.difference_std, self.difference_floor, self.difference_per_hu)
        )
        asked = limit_heterogeneity(heterogeneity_hu).to(device=like.device, dtype=like.dtype).view(-1, 1)  # (B, 1)
        told = (floor.square() + (per_hu * asked).square()).sqrt()  # (B, C)
        return torch.where(asked.isnan(), std, told)[:, :, None, None, None]


def free_entries(config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """Leave out of a config what has one value, which a network knows itself.

    Raises:
        ValueError: If an entry has another value; the message names entry and both values.
    """
    for name, expected in FIXED_ENTRIES.items():
        if config.get(name, expected) != expected:
            raise ValueError(
                f"{name} in the config of {class_name} must be {expected}, got {config[name]!r}. "
                f"A newer release may know more: update nnunet-difftumor."
            )
    return {name: value for name, value in config.items() if name not in FIXED_ENTRIES}


class DownStage(nn.Module):
    """Residual blocks of one resolution on the way down, after halving the sides; not so at the finest resolution."""

    def __init__(self, incoming: int, outgoing: int, blocks: int, time_channels: int, *, halves: bool) -> None:
        super().__init__()
        self.halving = Conv3d(incoming, incoming, kernel_size=3, stride=2, padding=1) if halves else None
        self.blocks = nn.ModuleList(
            ResidualBlock(outgoing if i else incoming, outgoing, time_channels) for i in range(blocks)
        )

    def forward(self, features: Tensor, embedded_time: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the output and what the way up will need, in order."""
        skips = []
        if self.halving is not None:
            features = self.halving(features)
            skips.append(features)
        for block in self.blocks:
            features = block(features, embedded_time)
            skips.append(features)
        return features, skips


class UpStage(nn.Module):
    """Residual blocks of one resolution on the way up, after growing to the size of the skips.

    At the coarsest resolution nothing grows. `skip_widths` are the channels of the skips, in the order of use.
    """

    def __init__(
        self, incoming: int, outgoing: int, skip_widths: Sequence[int], time_channels: int, *, doubles: bool
    ) -> None:
        super().__init__()
        self.smoothing = Conv3d(incoming, incoming, kernel_size=3, padding=1) if doubles else None
        self.blocks = nn.ModuleList(
            ResidualBlock((outgoing if i else incoming) + skip, outgoing, time_channels)
            for i, skip in enumerate(skip_widths)
        )

    def forward(self, features: Tensor, skips: list[Tensor], embedded_time: Tensor) -> Tensor:
        """Return the output; the skips that were used are taken off the list."""
        if self.smoothing is not None:
            # to the size of the skip, not twice the size: an odd side was rounded up on the way down
            features = functional.interpolate(features, size=skips[-1].shape[2:], mode="nearest")
            features = self.smoothing(features)
        for block in self.blocks:
            features = block(torch.cat([features, skips.pop()], dim=1), embedded_time)
        return features


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with group norm; the time scales and shifts the second norm (AdaGN)."""

    def __init__(self, incoming: int, outgoing: int, time_channels: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(NORM_GROUPS, incoming)
        self.conv_in = Conv3d(incoming, outgoing, kernel_size=3, padding=1)
        self.time_projection = Linear(time_channels, 2 * outgoing)
        self.norm_out = nn.GroupNorm(NORM_GROUPS, outgoing)
        self.conv_out = zero_start(Conv3d(outgoing, outgoing, kernel_size=3, padding=1))
        self.shortcut = Conv3d(incoming, outgoing, kernel_size=1) if incoming != outgoing else nn.Identity()

    def forward(self, features: Tensor, embedded_time: Tensor) -> Tensor:
        """Turn features of shape (B, incoming, D, H, W) into (B, outgoing, D, H, W)."""
        hidden = self.conv_in(functional.silu(self.norm_in(features)))
        scale, shift = self.time_projection(functional.silu(embedded_time))[:, :, None, None, None].chunk(2, dim=1)
        hidden = self.norm_out(hidden) * (1.0 + scale) + shift
        return self.shortcut(features) + self.conv_out(functional.silu(hidden))


class SelfAttention3D(nn.Module):
    """Single-head attention between all voxels of the coarsest resolution, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.projection = zero_start(nn.Linear(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (B, C, D, H, W)."""
        tokens = self.norm(features).flatten(2).transpose(1, 2)  # (B, D*H*W, C)
        query, key, value = self.query_key_value(tokens).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, D*H*W, C)
        attended = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        return features + self.projection(attended).transpose(1, 2).reshape(features.shape)


def _scalars(contrast_hu: Tensor, heterogeneity_hu: Tensor, like: Tensor) -> Tensor:
    """Both values (0 where they are not given) and their flags. Shape (B, 4)."""
    contrast = limit_contrast(contrast_hu) / CONTRAST_SCALE_HU
    heterogeneity = limit_heterogeneity(heterogeneity_hu) / HETEROGENEITY_SCALE_HU
    values = torch.stack([contrast, heterogeneity], dim=1)
    both = torch.cat([values.nan_to_num(nan=0.0), (~values.isnan()).to(values.dtype)], dim=1)
    return both.to(device=like.device, dtype=like.dtype)


def _sinusoids(timestep: Tensor, channels: int) -> Tensor:
    """Return cosines and sines of the noise level, wavelengths from 1/1000 to 10 times 2 pi. Shape (B, channels)."""
    half = channels // 2
    exponents = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    angles = 1000.0 * timestep.float()[:, None] * torch.pow(10_000.0, -exponents)[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _check_differences(latent_channels: int, **parts: Sequence[float] | None) -> None:
    if all(values is None for values in parts.values()):
        return
    for name, values in parts.items():
        lowest = 0.0 if name == "per_hu" else 1e-9
        if values is None or len(values) != latent_channels or not all(value >= lowest for value in values):
            raise ValueError(
                f"difference_{name} must hold {latent_channels} positive numbers, one per latent channel, got "
                f"{values}. Give all of difference_std, difference_floor and difference_per_hu, or leave all out to "
                f"let the path run in plain latents."
            )
