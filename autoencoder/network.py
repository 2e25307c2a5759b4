"""Isotropic 3D KL autoencoder for CT whose output does not depend on the crop it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from autoencoder.intensity import IntensityWindow
from autoencoder.layers import (
    ChannelRMSNorm,
    Conv3d,
    Network,
    PixelShuffle3D,
    PooledShortcut,
    ResidualBlock,
    draw_noise,
    zero_start,
)

_INITIAL_LOG_VARIANCE = -8.0  # standard deviation 0.02, about 4 HU in the abdominal window
_LOG_VARIANCE_LIMITS = (-20.0, 10.0)


class AutoencoderOutput(NamedTuple):
    """Decoded sample in unit range (B, 1, D, H, W), mean and log variance of the posterior (B, C, D/4, H/4, W/4)."""

    reconstruction: Tensor
    mean: Tensor
    log_variance: Tensor


class AutoencoderNetwork(Network):
    """CT crop to latents of a quarter of its side, and back; `AutoencoderKL3D` is it with diffusers around.

    Every operation is local (convolutions and a norm over the channels of one voxel), so the result
    at a voxel is the same in a small crop and in the whole scan, except close to the crop's edge.
    No feature map has full resolution: a 4x4x4 convolution of stride 2 comes first and a 3D pixel
    shuffle last. Both halves add to a linear shortcut, so an untrained model is 2x average pooling.

    Args:
        channels: Feature channels at half and at quarter resolution.
        blocks: Residual blocks per resolution (one less at half resolution in the encoder).
        low_hu, high_hu: The HU window.
        latents_mean, latents_std: Mean and standard deviation of each latent channel; None before they are measured.

    Raises:
        ValueError: If the two statistics do not have one value per latent channel.
    """

    def __init__(
        self,
        channels: Sequence[int] = (24, 48),
        blocks: int = 2,
        latent_channels: int = 8,
        low_hu: float = -175.0,
        high_hu: float = 250.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        half, quarter = channels
        self.latent_channels = latent_channels
        self.window = IntensityWindow(low_hu, high_hu)
        self.set_latent_statistics(latents_mean, latents_std)
        self.encoder = nn.Sequential(
            Conv3d(1, half, kernel_size=4, stride=2, padding=1),
            *(ResidualBlock(half) for _ in range(blocks - 1)),
            Conv3d(half, quarter, kernel_size=4, stride=2, padding=1),
            *(ResidualBlock(quarter) for _ in range(blocks)),
            ChannelRMSNorm(quarter),
            nn.SiLU(),
            zero_start(Conv3d(quarter, 2 * latent_channels, kernel_size=1)),
        )
        self.decoder = nn.Sequential(
            Conv3d(latent_channels, quarter, kernel_size=3, padding=1),
            *(ResidualBlock(quarter) for _ in range(blocks)),
            nn.Upsample(scale_factor=2, mode="nearest"),
            Conv3d(quarter, half, kernel_size=3, padding=1),
            *(ResidualBlock(half) for _ in range(blocks)),
            ChannelRMSNorm(half),
            nn.SiLU(),
            zero_start(Conv3d(half, 8, kernel_size=3, padding=1)),
            PixelShuffle3D(),
        )
        self.shortcut = PooledShortcut(latent_channels)

    def forward(self, unit: Tensor, generator: torch.Generator | None = None) -> AutoencoderOutput:
        """Encode an image in [-1, 1] and decode a sample of the posterior, or its mean without a generator.

        The sides of the image (B, 1, D, H, W) are multiples of 4.
        """
        mean, log_variance = self.encode_moments(unit)
        latents = mean
        if generator is not None:
            latents = mean + (0.5 * log_variance).exp() * draw_noise(mean, generator)
        return AutoencoderOutput(self.decode_moments(latents), mean, log_variance)

    def encode_moments(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of an image in [-1, 1], not standardised; each (B, C, D/4, H/4, W/4).

        Raises:
            ValueError: If the shape is not (B, 1, D, H, W) or a side is no multiple of 4.
        """
        if unit.ndim != 5 or unit.shape[1] != 1 or any(side % 4 or side == 0 for side in unit.shape[2:]):
            raise ValueError(
                f"The autoencoder takes crops of shape (B, 1, D, H, W) with sides that are multiples of 4, "
                f"got {tuple(unit.shape)}. Crop or pad (with air) to such a size first."
            )
        mean, log_variance = self.encoder(unit).to(unit.dtype).chunk(2, dim=1)
        log_variance = log_variance + _INITIAL_LOG_VARIANCE
        return mean + self.shortcut.encode(unit), log_variance.clamp(*_LOG_VARIANCE_LIMITS)

    def decode_moments(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, D/4, H/4, W/4) that are not standardised, to an image in unit range (B, 1, D, H, W).

        Raises:
            ValueError: If the shape is not (B, C, d, h, w) with this model's number of channels.
        """
        self._check_latents(latents)
        return self.decoder(latents).to(latents.dtype) + self.shortcut.decode(latents)

    def encode(self, image_hu: Tensor) -> Tensor:
        """Encode a CT crop in HU (B, 1, D, H, W), limited to the window, to its standardised posterior mean."""
        mean = self.encode_moments(self.window.to_unit(image_hu))[0]
        shift, scale = self._statistics(mean)
        return (mean - shift) / scale

    def decode(self, latents: Tensor) -> Tensor:
        """Decode standardised latents (B, C, D/4, H/4, W/4) to a CT in HU, which may leave the window by a little."""
        self._check_latents(latents)  # before the statistics, which would broadcast
        shift, scale = self._statistics(latents)
        return self.window.to_hu(self.decode_moments(latents * scale + shift))

    def reconstruct(self, image_hu: Tensor) -> Tensor:
        """Encode and decode a CT crop in HU (B, 1, D, H, W); values outside the window saturate."""
        return self.decode(self.encode(image_hu))

    def set_latent_statistics(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Store the measured mean and standard deviation of each latent channel, those of `encode_moments`.

        Raises:
            ValueError: If there is not one value per channel or a deviation is not positive.
        """
        self._check_statistics(mean, std)
        self.latents_mean = None if mean is None else [float(x) for x in mean]
        self.latents_std = None if std is None else [float(x) for x in std]

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"Latents must have shape (B, {self.latent_channels}, D/4, H/4, W/4), got "
                f"{tuple(latents.shape)}. Use latents that this autoencoder encoded."
            )

    def _check_statistics(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        if mean is None and std is None:
            return
        lengths = [len(values) for values in (mean, std) if values is not None]
        if lengths != [self.latent_channels] * 2 or not all(value > 0 for value in std or ()):
            raise ValueError(
                f"latents_mean and latents_std must both hold {self.latent_channels} numbers, the second "
                f"all positive, got {mean} and {std}. Leave both out to work with raw latents."
            )

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale of shape (1, C, 1, 1, 1) on the device and in the type of `like`."""
        mean = self.latents_mean or [0.0] * self.latent_channels
        std = self.latents_std or [1.0] * self.latent_channels
        pair = torch.tensor([mean, std], dtype=like.dtype, device=like.device)
        shift, scale = pair.reshape(2, 1, -1, 1, 1, 1)
        return shift, scale
