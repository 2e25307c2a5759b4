"""The layers of the autoencoder; each looks at the neighbourhood of a voxel only."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions, each after a norm and SiLU, added to the input.

    The last one starts at zero, so an untrained block passes its input on; a network of such
    blocks starts with a small field of view and widens it only as far as that helps.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ChannelRMSNorm(channels),
            nn.SiLU(),
            nn.Conv3d(channels, channels, kernel_size=3, padding=1),
            ChannelRMSNorm(channels),
            nn.SiLU(),
            _zero(nn.Conv3d(channels, channels, kernel_size=3, padding=1)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (B, C, D, H, W)."""
        return features + self.layers(features)


class ChannelRMSNorm(nn.Module):
    """Divide each voxel by the root mean square of its channels, then scale each channel.

    It looks at one voxel only, unlike group norm, so the result does not depend on the crop.
    The scale has shape (C,): rank 4 would break `to(memory_format=torch.channels_last_3d)`.

    Args:
        channels: Number of channels.
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


class PixelShuffle3D(nn.Module):
    """Move 8 channels of one voxel to the 2x2x2 voxels of the next resolution."""

    def forward(self, features: Tensor) -> Tensor:
        """Turn (B, 8, D, H, W) into (B, 1, 2D, 2H, 2W)."""
        batch, _, depth, height, width = features.shape
        split = features.reshape(batch, 2, 2, 2, depth, height, width)
        interleaved = split.permute(0, 4, 1, 5, 2, 6, 3)  # (B, D, 2, H, 2, W, 2)
        return interleaved.reshape(batch, 1, 2 * depth, 2 * height, 2 * width)


def _zero(layer: nn.Conv3d) -> nn.Conv3d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
