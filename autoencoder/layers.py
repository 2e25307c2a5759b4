"""The layers of the autoencoder, which look at the neighbourhood of a voxel only, and how layers start."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate


class Network(nn.Module):
    """A network that says where its weights are, and of what type."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions, each after a norm and SiLU, added to the input.

    The last one starts at zero, so an untrained block passes its input on; a network of such
    blocks starts with a small field of view and widens it only as far as that helps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ChannelRMSNorm(channels),
            nn.SiLU(),
            Conv3d(channels, channels, kernel_size=3, padding=1),
            ChannelRMSNorm(channels),
            nn.SiLU(),
            zero_start(Conv3d(channels, channels, kernel_size=3, padding=1)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (B, C, D, H, W)."""
        return features + self.layers(features)


class ChannelRMSNorm(nn.Module):
    """Divide each voxel by the root mean square of its channels, then scale each channel.

    It looks at one voxel only, unlike group norm, so the result does not depend on the crop.
    The scale has shape (C,): rank 4 would break `to(memory_format=torch.channels_last_3d)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.epsilon = 1e-6

    def forward(self, features: Tensor) -> Tensor:
        """Return normalised features of the same shape (B, C, D, H, W)."""
        mean_square = features.float().square().mean(dim=1, keepdim=True)
        inverse_rms = torch.rsqrt(mean_square + self.epsilon).to(features.dtype)
        return features * inverse_rms * self.weight.view(1, -1, 1, 1, 1).to(features.dtype)


class PooledShortcut(nn.Module):
    """Linear way from image to latents and back that needs no training: 2x average pooling.

    The pooled image has 8 values in every 4x4x4 block. An orthonormal Haar transform turns them into
    their mean and 7 differences, one per latent channel, so that each channel has a scale of its own.
    A network that only adds to this starts at the error of 2x pooling instead of that of a constant
    (after the non-parametric shortcuts of Chen et al., "Deep Compression Autoencoder", 2024).
    Beyond 8 latent channels they start empty, below 8 the finest differences are left out.
    """

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2.0)
        haar = torch.kron(torch.kron(pair, pair), pair)  # (8, 8), orthonormal, coarse first
        by_order = sorted(range(8), key=lambda row: (row.bit_count(), row))
        basis = torch.zeros(latent_channels, 8)
        kept = min(latent_channels, 8)
        basis[:kept] = haar[by_order[:kept]]
        self.register_buffer("basis", basis, persistent=False)
        self._shuffle = PixelShuffle3D()

    def encode(self, unit: Tensor) -> Tensor:
        """Turn an image (B, 1, D, H, W) into latents (B, C, D/4, H/4, W/4)."""
        pooled = avg_pool3d(unit, 2)
        blocks = unshuffle(pooled, 2)
        return torch.einsum("cp,bpdhw->bcdhw", self._basis_like(unit), blocks)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (B, C, d, h, w) into an image (B, 1, 4d, 4h, 4w)."""
        blocks = torch.einsum("cp,bcdhw->bpdhw", self._basis_like(latents), latents)
        return interpolate(self._shuffle(blocks), scale_factor=2, mode="trilinear", align_corners=False)

    def _basis_like(self, like: Tensor) -> Tensor:
        return self.get_buffer("basis").to(device=like.device, dtype=like.dtype)


class PixelShuffle3D(nn.Module):
    """Move 8 channels of one voxel to the 2x2x2 voxels of the next resolution."""

    def forward(self, features: Tensor) -> Tensor:
        """Turn (B, 8, D, H, W) into (B, 1, 2D, 2H, 2W)."""
        batch, _, depth, height, width = features.shape
        split = features.reshape(batch, 2, 2, 2, depth, height, width)
        interleaved = split.permute(0, 4, 1, 5, 2, 6, 3)  # (B, D, 2, H, 2, W, 2)
        return interleaved.reshape(batch, 1, 2 * depth, 2 * height, 2 * width)


def unshuffle(volume: Tensor, stride: int) -> Tensor:
    """Move each block of stride^3 voxels of (B, 1, D, H, W) into the channels of one voxel, the last axis fastest."""
    batch, _, depth, height, width = volume.shape
    d, h, w = depth // stride, height // stride, width // stride
    split = volume.reshape(batch, d, stride, h, stride, w, stride)
    return split.permute(0, 2, 4, 6, 1, 3, 5).reshape(batch, stride**3, d, h, w)


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise of a tensor's shape, type and device; the generator may be on another device."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return noise.to(device=like.device, dtype=like.dtype)


def zero_start(layer: nn.Conv3d | nn.Linear) -> nn.Conv3d | nn.Linear:
    """Set a layer's parameters to zero, so that it starts without effect."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@torch.no_grad()
def draw_initial_weights_(model: nn.Module, generator: torch.Generator) -> None:
    """Draw torch's usual start of every convolution and linear layer again, from `generator`, in place and on the CPU.

    Weight and bias are uniform in +-1/sqrt(fan-in). A parameter that is all zero stays zero: such
    layers are meant to start without effect.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            continue
        bound = 1.0 / math.sqrt(module.weight[0].numel())
        for parameter in (module.weight, module.bias):
            if parameter is not None and parameter.any():
                parameter.uniform_(-bound, bound, generator=generator)


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d`; without gradients a single crop takes oneDNN's convolution, as several crops do."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve features of shape (B, C, D, H, W)."""
        if not _is_single_on_cpu(input) or not torch.backends.mkldnn.is_available() or self._is_native_anyway:
            return super().forward(input)
        return torch.ops.aten.mkldnn_convolution(
            input.contiguous(), self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )

    @property
    def _is_native_anyway(self) -> bool:
        """True where torch does not use oneDNN for several crops either."""
        is_pointwise = all(size == 1 for size in self.kernel_size)
        return self.padding_mode != "zeros" or (is_pointwise and torch.get_num_threads() == 1)


class Linear(nn.Linear):
    """`torch.nn.Linear`; without gradients the only row of a batch is computed as one of two."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform rows of shape (B, C)."""
        if not _is_single_on_cpu(input):
            return super().forward(input)
        return super().forward(input.repeat(2, 1))[:1]


def _is_single_on_cpu(value: Tensor) -> bool:
    is_plain = value.device.type == "cpu" and value.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return is_plain and len(value) == 1 and not torch.is_grad_enabled()
