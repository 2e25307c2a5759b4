"""The network that predicts the flow's velocity from noisy latents, the filled surroundings and the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from diffusion.conditioning import LATENT_STRIDE, limit_contrast

CONTRAST_SCALE_HU = 30.0
SCALAR_CONDITIONS = ("contrast_hu",)
"""Scalar conditions that this release knows; each takes a channel for its value and one for its presence."""

_SMALLEST_NOISE_LEVEL = 0.1  # that of the last of ten steps; below it the division would only amplify errors


class DenoisingUNet3D(ModelMixin, ConfigMixin):
    """Small 3D U-Net over latents, for any crop whose sides are multiples of 4 voxels.

    It sees regions of interest only, at sizes it was trained on, so group norm and attention may look
    at the whole crop.

    Args:
        channels: Feature channels of each resolution, finest first; multiples of `norm_groups`.
        blocks: Residual blocks per resolution on the way down (one more on the way up).
        latent_channels: Channels of the autoencoder's latents.
        mask_embedding_channels: Channels to which the 64 channels of the unshuffled mask are reduced.
        scalar_conditions: Names of the scalar conditions, of `SCALAR_CONDITIONS`.
        attention_max_tokens: Largest number of coarsest latent voxels that attention is used for.
        norm_groups: Groups of the group norm.

    Raises:
        ValueError: If a channel number is no multiple of `norm_groups` or a condition is unknown.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        latent_channels: int = 8,
        mask_embedding_channels: int = 8,
        scalar_conditions: Sequence[str] = SCALAR_CONDITIONS,
        attention_max_tokens: int = 512,
        norm_groups: int = 8,
    ) -> None:
        super().__init__()
        _check_config(channels, scalar_conditions, norm_groups)
        self.time_channels = 4 * channels[0]
        self.attention_max_tokens = attention_max_tokens
        self.time_embedding = nn.Sequential(
            nn.Linear(channels[0], self.time_channels), nn.SiLU(), nn.Linear(self.time_channels, self.time_channels)
        )
        self.mask_embedding = nn.Conv3d(LATENT_STRIDE**3, mask_embedding_channels, kernel_size=1)
        inputs = 2 * latent_channels + mask_embedding_channels + 2 * len(scalar_conditions)
        self.entry = nn.Conv3d(inputs, channels[0], kernel_size=3, padding=1)

        stage = StageShape(blocks, self.time_channels, norm_groups)
        skip_widths = [channels[0]]
        self.down_stages, self.up_stages = nn.ModuleList(), nn.ModuleList()
        width = channels[0]
        for level, outgoing in enumerate(channels):
            self.down_stages.append(DownStage(width, outgoing, stage, halves=level > 0))
            skip_widths += ([width] if level > 0 else []) + [outgoing] * blocks
            width = outgoing
        self.middle_in = ResidualBlock(width, width, self.time_channels, norm_groups)
        self.attention = SelfAttention3D(width, norm_groups)
        self.middle_out = ResidualBlock(width, width, self.time_channels, norm_groups)
        for level, outgoing in enumerate(reversed(channels)):
            widths = [skip_widths.pop() for _ in range(blocks + 1)]
            self.up_stages.append(UpStage(width, outgoing, widths, stage, doubles=level > 0))
            width = outgoing
        self.exit_norm = nn.GroupNorm(norm_groups, width)
        self.exit = _zero_initialised(nn.Conv3d(width, latent_channels, kernel_size=3, padding=1))

    def forward(
        self,
        latents_noisy: Tensor,
        condition_latents: Tensor,
        mask_unshuffled: Tensor,
        contrast_hu: Tensor,
        timestep: Tensor,
    ) -> Tensor:
        """Predict the velocity n - x_0.

        The layers predict how x_0 differs from the condition; with x_t = (1 - s) x_0 + s n the velocity
        is (x_t - x_0) / s. Outside the mask the difference is zero and inside it is small, and an
        untrained network returns the filled image itself.

        Args:
            latents_noisy: Point x_t of the path. Shape (B, C, D/4, H/4, W/4).
            condition_latents: Latents of the image with the tumour region filled. Same shape.
            mask_unshuffled: `unshuffle_mask` of the tumour mask. Shape (B, 64, D/4, H/4, W/4).
            contrast_hu: Contrast of the tumour against its rim; NaN where it is not given. Shape (B,).
            timestep: Noise level in [0, 1], 1 is pure noise. Shape (B,).

        Returns:
            Velocity. Shape (B, C, D/4, H/4, W/4).
        """
        dtype = latents_noisy.dtype
        embedded_time = self.time_embedding(_sinusoids(timestep, self.config["channels"][0]).to(dtype))
        embedded_mask = self.mask_embedding(mask_unshuffled.to(dtype))
        scalars = _scalar_channels(contrast_hu, latents_noisy)
        features = self.entry(torch.cat([latents_noisy, condition_latents, embedded_mask, scalars], dim=1))
        skips = [features]
        for stage in self.down_stages:
            features, stage_skips = stage(features, embedded_time)
            skips += stage_skips
        features = self.middle_in(features, embedded_time)
        if features.shape[2:].numel() <= self.attention_max_tokens:
            features = self.attention(features)
        features = self.middle_out(features, embedded_time)
        for stage in self.up_stages:
            features = stage(features, skips, embedded_time)
        difference = self.exit(functional.silu(self.exit_norm(features)))
        noise_level = timestep.to(dtype).clamp(min=_SMALLEST_NOISE_LEVEL).view(-1, 1, 1, 1, 1)
        return (latents_noisy - condition_latents - difference) / noise_level


class StageShape(NamedTuple):
    """What all resolutions share.

    Attributes:
        blocks: Residual blocks per resolution on the way down.
        time_channels: Channels of the embedded time.
        norm_groups: Groups of the group norms.
    """

    blocks: int
    time_channels: int
    norm_groups: int


class DownStage(nn.Module):
    """Residual blocks of one resolution on the way down, after halving the sides.

    Args:
        incoming: Channels of the input.
        outgoing: Channels of the output.
        shape: What all resolutions share.
        halves: Whether the sides are halved first; not at the finest resolution.
    """

    def __init__(self, incoming: int, outgoing: int, shape: StageShape, *, halves: bool) -> None:
        super().__init__()
        self.halving = nn.Conv3d(incoming, incoming, kernel_size=3, stride=2, padding=1) if halves else None
        self.blocks = nn.ModuleList(
            ResidualBlock(outgoing if i else incoming, outgoing, shape.time_channels, shape.norm_groups)
            for i in range(shape.blocks)
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

    Args:
        incoming: Channels of the input.
        outgoing: Channels of the output.
        skip_widths: Channels of the skips, in the order of use.
        shape: What all resolutions share.
        doubles: Whether the sides grow first; not at the coarsest resolution.
    """

    def __init__(
        self, incoming: int, outgoing: int, skip_widths: Sequence[int], shape: StageShape, *, doubles: bool
    ) -> None:
        super().__init__()
        self.smoothing = nn.Conv3d(incoming, incoming, kernel_size=3, padding=1) if doubles else None
        self.blocks = nn.ModuleList(
            ResidualBlock((outgoing if i else incoming) + skip, outgoing, shape.time_channels, shape.norm_groups)
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
    """Two 3x3x3 convolutions with group norm; the time scales and shifts the second norm (AdaGN).

    Args:
        incoming: Channels of the input.
        outgoing: Channels of the output.
        time_channels: Channels of the embedded time.
        norm_groups: Groups of the group norm.
    """

    def __init__(self, incoming: int, outgoing: int, time_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_groups, incoming)
        self.conv_in = nn.Conv3d(incoming, outgoing, kernel_size=3, padding=1)
        self.time_projection = nn.Linear(time_channels, 2 * outgoing)
        self.norm_out = nn.GroupNorm(norm_groups, outgoing)
        self.conv_out = _zero_initialised(nn.Conv3d(outgoing, outgoing, kernel_size=3, padding=1))
        self.shortcut = nn.Conv3d(incoming, outgoing, kernel_size=1) if incoming != outgoing else nn.Identity()

    def forward(self, features: Tensor, embedded_time: Tensor) -> Tensor:
        """Turn features of shape (B, incoming, D, H, W) into (B, outgoing, D, H, W)."""
        hidden = self.conv_in(functional.silu(self.norm_in(features)))
        scale, shift = self.time_projection(functional.silu(embedded_time))[:, :, None, None, None].chunk(2, dim=1)
        hidden = self.norm_out(hidden) * (1.0 + scale) + shift
        return self.shortcut(features) + self.conv_out(functional.silu(hidden))


class SelfAttention3D(nn.Module):
    """Single-head attention between all voxels of the coarsest resolution, added to the input.

    Args:
        channels: Channels of input and output.
        norm_groups: Groups of the group norm.
    """

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.projection = _zero_initialised(nn.Linear(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (B, C, D, H, W)."""
        tokens = self.norm(features).flatten(2).transpose(1, 2)  # (B, D*H*W, C)
        query, key, value = self.query_key_value(tokens).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, D*H*W, C)
        attended = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        return features + self.projection(attended).transpose(1, 2).reshape(features.shape)


def _scalar_channels(contrast_hu: Tensor, latents: Tensor) -> Tensor:
    """Return the contrast (0 where it is not given) and its flag as constant channels (B, 2, D, H, W)."""
    is_given = ~contrast_hu.isnan()
    value = limit_contrast(contrast_hu.nan_to_num(nan=0.0)) / CONTRAST_SCALE_HU
    pair = torch.stack([value, is_given.to(value.dtype)], dim=1).to(device=latents.device, dtype=latents.dtype)
    return pair[:, :, None, None, None].expand(-1, -1, *latents.shape[2:])


def _sinusoids(timestep: Tensor, channels: int) -> Tensor:
    """Return cosines and sines of the noise level, wavelengths from 1/1000 to 10 times 2 pi. Shape (B, channels)."""
    half = channels // 2
    exponents = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    angles = 1000.0 * timestep.float()[:, None] * torch.pow(10_000.0, -exponents)[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _zero_initialised(layer: nn.Conv3d | nn.Linear) -> nn.Conv3d | nn.Linear:
    """Make a layer that starts without effect, so that a residual branch begins as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _check_config(channels: Sequence[int], scalar_conditions: Sequence[str], norm_groups: int) -> None:
    if not channels or any(width < 1 or width % norm_groups for width in channels):
        raise ValueError(
            f"channels must be multiples of norm_groups={norm_groups}, got {tuple(channels)}. "
            f"Try (32, 64) or (48, 96, 192)."
        )
    if tuple(scalar_conditions) != SCALAR_CONDITIONS:
        raise ValueError(
            f"scalar_conditions must be {list(SCALAR_CONDITIONS)}, got {list(scalar_conditions)}. "
            f"A newer release may know more: update nnunet-difftumor."
        )
