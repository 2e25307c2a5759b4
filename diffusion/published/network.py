"""The denoiser whose weights the authors of DiffTumor published, in their names and arithmetic."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoencoder.layers import Conv3d, Linear, Network
from autoencoder.published.network import LATENT_CHANNELS

CONDITION_CHANNELS = LATENT_CHANNELS + 1
"""Latents of the crop without its tumour region, and the mask."""
WIDTHS = (24, 48, 96, 192)
SIDE_FACTOR = 2 ** (len(WIDTHS) - 1)
"""h and w of the latents are multiples of it; f is free."""

_ENTRY_WIDTH = WIDTHS[0]
_TIME_CHANNELS = 4 * _ENTRY_WIDTH
_HEADS, _HEAD_CHANNELS = 8, 32
_INNER = _HEADS * _HEAD_CHANNELS
_NORM_GROUPS = 8
_BUCKETS, _FARTHEST = 32, 32
"""Classes of distances along f, half of them for keys behind the query; all far distances share one class."""


class PublishedDenoiser(Network):
    """U-Net that predicts the noise in latents; it convolves within a slice and attends along f.

    The names in its state dict are those below `denoise_fn.` of the published checkpoints, without the frequencies
    of the rotary embedding, which are computed. All shapes are in the published frame (see `PublishedAutoencoder`).

    Source:
        Chen et al., "Towards Generalizable Tumor Synthesis", CVPR 2024, and the published checkpoints.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latent_channels = LATENT_CHANNELS
        self.time_rel_pos_bias = DepthBias()
        self.init_conv = PlaneConv(LATENT_CHANNELS + CONDITION_CHANNELS, _ENTRY_WIDTH, kernel_size=7)
        self.init_temporal_attn = _depth_attention(_ENTRY_WIDTH)
        self.time_mlp = nn.Sequential(
            Sinusoids(_ENTRY_WIDTH),
            Linear(_ENTRY_WIDTH, _TIME_CHANNELS),
            nn.GELU(),
            Linear(_TIME_CHANNELS, _TIME_CHANNELS),
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, outgoing in enumerate(WIDTHS):
            stage = _stage(WIDTHS[max(level - 1, 0)], outgoing)
            if level < len(WIDTHS) - 1:
                stage.append(PlaneConv(outgoing, outgoing, kernel_size=4, stride=2))
            self.downs.append(stage)
        for level in reversed(range(len(WIDTHS))):
            outgoing = WIDTHS[max(level - 1, 0)]
            stage = _stage(2 * WIDTHS[level], outgoing)
            if level > 0:
                stage.append(nn.ConvTranspose3d(outgoing, outgoing, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1)))
            self.ups.append(stage)
        self.mid_block1 = ResidualBlock(WIDTHS[-1], WIDTHS[-1])
        self.mid_spatial_attn = ResidualAttention(WIDTHS[-1], PlaneAttention(WIDTHS[-1]))
        self.mid_temporal_attn = _depth_attention(WIDTHS[-1])
        self.mid_block2 = ResidualBlock(WIDTHS[-1], WIDTHS[-1])
        self.final_conv = nn.Sequential(
            ResidualBlock(2 * _ENTRY_WIDTH, _ENTRY_WIDTH, knows_time=False),
            PlaneConv(_ENTRY_WIDTH, LATENT_CHANNELS, kernel_size=1),
        )

    def forward(self, latents_noisy: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise, of the shape of the latents.

        Args:
            latents_noisy: x_t, normalised. Shape (B, 8, f, h, w), h and w multiples of 8.
            condition: Result of `published_condition`. Shape (B, 9, f, h, w).
            timestep: Index of the step of training, 0 to T - 1. Shape (B,), whole numbers.

        Raises:
            ValueError: If a shape does not fit.
        """
        _check_shapes(latents_noisy, condition)
        bias = self.time_rel_pos_bias(latents_noisy.shape[2])
        time = self.time_mlp(timestep.to(self.device))
        features = entry = self.init_conv(torch.cat([latents_noisy, condition], dim=1))
        features = self.init_temporal_attn(features, bias)
        skips = []
        for stage in self.downs:
            features = _run(stage, features, time, bias)
            skips.append(features)
            features = _resize(stage, features)
        features = self.mid_spatial_attn(self.mid_block1(features, time))
        features = self.mid_block2(self.mid_temporal_attn(features, bias), time)
        for stage in self.ups:
            features = _run(stage, torch.cat([features, skips.pop()], dim=1), time, bias)
            features = _resize(stage, features)
        return self.final_conv(torch.cat([features, entry], dim=1))


def _check_shapes(latents_noisy: Tensor, condition: Tensor) -> None:
    batch, _, *sides = latents_noisy.shape if latents_noisy.ndim == 5 else (0, 0)
    expected = ((batch, LATENT_CHANNELS, *sides), (batch, CONDITION_CHANNELS, *sides))
    if (latents_noisy.shape, condition.shape) != expected or any(side % SIDE_FACTOR for side in sides[1:]):
        raise ValueError(
            f"The published denoiser takes latents ({LATENT_CHANNELS} channels) and condition ({CONDITION_CHANNELS} "
            f"channels) of shape (B, C, f, h, w), h and w multiples of {SIDE_FACTOR}, got "
            f"{tuple(latents_noisy.shape)} and {tuple(condition.shape)}. Crops need H and W that are multiples of "
            f"{4 * SIDE_FACTOR} voxels."
        )


def _stage(incoming: int, outgoing: int) -> nn.ModuleList:
    """What the published names number 0 to 3 in each resolution; number 4, if there is one, resizes."""
    return nn.ModuleList(
        [
            ResidualBlock(incoming, outgoing),
            ResidualBlock(outgoing, outgoing),
            ResidualAttention(outgoing, LinearPlaneAttention(outgoing)),
            _depth_attention(outgoing),
        ]
    )


def _run(stage: nn.Module, features: Tensor, time: Tensor, bias: Tensor) -> Tensor:
    first, second, within_planes, along_depth, *_ = stage.children()
    return along_depth(within_planes(second(first(features, time), time)), bias)


def _resize(stage: nn.Module, features: Tensor) -> Tensor:
    for resizing in list(stage.children())[4:]:
        features = resizing(features)
    return features


class ResidualBlock(nn.Module):
    """Two convolutions within slices, added to the input; the time scales and shifts after the first norm."""

    def __init__(self, incoming: int, outgoing: int, *, knows_time: bool = True) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), Linear(_TIME_CHANNELS, 2 * outgoing)) if knows_time else None
        self.block1 = NormedConv(incoming, outgoing)
        self.block2 = NormedConv(outgoing, outgoing)
        self.res_conv = PlaneConv(incoming, outgoing, kernel_size=1) if incoming != outgoing else nn.Identity()

    def forward(self, features: Tensor, time: Tensor | None = None) -> Tensor:
        """Turn features (B, incoming, f, h, w) into (B, outgoing, f, h, w); time is (B, 96)."""
        modulation = None if self.mlp is None else self.mlp(time)[:, :, None, None, None]
        return self.block2(self.block1(features, modulation)) + self.res_conv(features)


class NormedConv(nn.Module):
    """3x3 convolution within slices, group norm, SiLU."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.proj = PlaneConv(incoming, outgoing, kernel_size=3)
        self.norm = nn.GroupNorm(_NORM_GROUPS, outgoing, eps=1e-5)

    def forward(self, features: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Return features (B, outgoing, f, h, w); a modulation (B, 2 outgoing, 1, 1, 1) holds scale, then shift."""
        normed = self.norm(self.proj(features))
        if modulation is not None:
            scale, shift = modulation.chunk(2, dim=1)
            normed = normed * (scale + 1.0) + shift
        return functional.silu(normed)


class PlaneConv(Conv3d):
    """Convolution within slices (1 x k x k), zeros beyond the border; a side n becomes n / stride."""

    def __init__(self, incoming: int, outgoing: int, *, kernel_size: int, stride: int = 1) -> None:
        margin = (kernel_size - 1) // 2
        super().__init__(
            incoming, outgoing, (1, kernel_size, kernel_size), stride=(1, stride, stride), padding=(0, margin, margin)
        )


class ResidualAttention(nn.Module):
    """Attention to features whose channels are normalised at each voxel, added to the features."""

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.fn = nn.ModuleDict({"norm": ChannelNorm(channels), "fn": attention})

    def forward(self, features: Tensor, *told: Tensor) -> Tensor:
        """Return features of the same shape (B, C, f, h, w); what is told goes to the attention."""
        return features + self.fn["fn"](self.fn["norm"](features), *told)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel, without an offset."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (B, C, f, h, w)."""
        variance, mean = torch.var_mean(features, dim=1, correction=0, keepdim=True)
        return (features - mean) * (variance + 1e-5).rsqrt() * self.gamma


class LinearPlaneAttention(nn.Module):
    """Linear attention among the voxels of each slice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * _INNER, kernel_size=1, bias=False)
        self.to_out = nn.Conv2d(_INNER, channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (B, C, f, h, w)."""
        slices = features.transpose(1, 2).flatten(0, 1)  # (B f, C, h, w)
        heads = self.to_qkv(slices).reshape(len(slices), 3, _HEADS, _HEAD_CHANNELS, -1)
        query, key, value = heads.unbind(dim=1)  # each (B f, heads, 32, h w)
        query = query.softmax(dim=-2) * _HEAD_CHANNELS**-0.5
        context = value @ key.softmax(dim=-1).transpose(-1, -2)  # (B f, heads, 32 of the value, 32 of the key)
        attended = (context @ query).reshape(len(slices), _INNER, *slices.shape[2:])
        return self.to_out(attended).unflatten(0, (len(features), -1)).transpose(1, 2)


class TokenAttention(nn.Module):
    """Softmax attention among the tokens of each sequence; a token's place turns query and key where `is_rotary`."""

    def __init__(self, channels: int, *, is_rotary: bool) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(channels, 3 * _INNER, bias=False)
        self.to_out = nn.Linear(_INNER, channels, bias=False)
        self._is_rotary = is_rotary

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape (N, tokens, C); a bias (heads, tokens, tokens) is added to the scores."""
        split = self.to_qkv(tokens).unflatten(-1, (3, _HEADS, _HEAD_CHANNELS))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, 32)
        if self._is_rotary:
            query, key = rotate(query), rotate(key)
        bias = None if bias is None else bias[None].to(query.dtype)  # of rank 4, or torch takes a slower way
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class PlaneAttention(nn.Module):
    """Softmax attention among the voxels of each slice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fn = TokenAttention(channels, is_rotary=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (B, C, f, h, w)."""
        tokens = features.permute(0, 2, 3, 4, 1)  # (B, f, h, w, C)
        attended = self.fn(tokens.flatten(2, 3).flatten(0, 1))
        return attended.reshape(tokens.shape).permute(0, 4, 1, 2, 3)


class DepthAttention(nn.Module):
    """Softmax attention along f, for each h and w on its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fn = TokenAttention(channels, is_rotary=True)

    def forward(self, features: Tensor, bias: Tensor) -> Tensor:
        """Return features of the same shape (B, C, f, h, w); the bias is that of `DepthBias`."""
        tokens = features.permute(0, 3, 4, 2, 1)  # (B, h, w, f, C)
        attended = self.fn(tokens.flatten(0, 2), bias)
        return attended.reshape(tokens.shape).permute(0, 4, 3, 1, 2)


class DepthBias(nn.Module):
    """What is added to the scores of attention along f, for each head and each class of distances."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(_BUCKETS, _HEADS)

    def forward(self, length: int) -> Tensor:
        """Return the bias of each head, query and key for `length` slices. Shape (heads, length, length)."""
        place = torch.arange(length, device=self.relative_attention_bias.weight.device)
        return self.relative_attention_bias(distance_buckets(place - place[:, None])).permute(2, 0, 1)


class Sinusoids(nn.Module):
    """Sines, then cosines of a whole number at frequencies from 1 to 1/10000."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._half = channels // 2

    def forward(self, timestep: Tensor) -> Tensor:
        """Turn numbers (B,) into (B, channels)."""
        steps = torch.arange(self._half, device=timestep.device, dtype=torch.float32)
        angles = timestep.float()[:, None] * torch.exp(steps * (-math.log(10000.0) / (self._half - 1)))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def distance_buckets(offset: Tensor) -> Tensor:
    """Class 0 to 31 of an offset from query to key, whole numbers of any shape.

    Offsets above 0 use 16 to 31. In both halves distances below 8 have their own class each, larger ones share classes
    whose widths grow with the logarithm.
    """
    half = _BUCKETS // 2
    exact = half // 2
    distance = offset.abs()
    scaled = (distance.clamp(min=1).float() / exact).log() / math.log(_FARTHEST / exact) * (half - exact)
    coarse = (exact + scaled.long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, coarse) + half * (offset > 0)


def rotate(tokens: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels by its frequency times the token's place; (..., tokens, channels)."""
    length, channels = tokens.shape[-2:]
    pairs = torch.arange(channels // 2, device=tokens.device, dtype=torch.float32)
    places = torch.arange(length, device=tokens.device, dtype=torch.float32)
    angles = places[:, None] * 10000.0 ** (-2.0 * pairs / channels)  # (tokens, channels / 2)
    plane = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)).contiguous())
    turned = plane * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2).to(tokens.dtype)


def _depth_attention(channels: int) -> ResidualAttention:
    return ResidualAttention(channels, DepthAttention(channels))
