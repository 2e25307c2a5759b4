"""Sizes, loss weights and training defaults of the autoencoder, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autoencoder.engine.settings import TrainingPreset, preset_table

if TYPE_CHECKING:  # the table itself is light enough for a command line's help
    import torch

    from autoencoder.intensity import IntensityWindow
    from autoencoder.model import AutoencoderKL3D


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of each term of the autoencoder's loss; a term of weight 0 is not computed.

    Attributes:
        l1: Mean absolute error in unit range.
        multi_scale: Mean absolute error after 2x, 4x and 8x average pooling, each.
        gradient: Mean absolute error of the forward differences along the three axes.
        fft: Mean absolute error of the orthonormal Fourier coefficients.
        kl: Kullback-Leibler divergence to the standard normal, summed over the latent channels.
        adversarial: Strength with which a patch discriminator pulls at the decoded crops (see `adversarial`;
            extra `adversarial`).
        adversarial_from: Share of the training steps after which it does.
        perceptual: Distance of the features of a photograph network, where its weights are given (see `perceptual`).
    """

    l1: float = 1.0
    multi_scale: float = 0.0
    gradient: float = 0.0
    fft: float = 0.0
    kl: float = 0.0
    adversarial: float = 0.0
    adversarial_from: float = 0.5
    perceptual: float = 0.1

    def __post_init__(self) -> None:
        others = (self.multi_scale, self.gradient, self.fft, self.kl, self.adversarial, self.perceptual)
        if self.l1 <= 0 or min(others) < 0 or not 0 <= self.adversarial_from < 1:
            raise ValueError(f"Loss weights need l1 > 0, no negative value and adversarial_from in [0, 1), got {self}.")


@dataclass(frozen=True, kw_only=True)
class AutoencoderPreset(TrainingPreset):
    """Architecture, loss and training defaults that belong together; `channels` at half and at quarter resolution."""

    channels: tuple[int, int]
    blocks: int
    latent_channels: int = 8
    losses: LossWeights = field(default_factory=LossWeights)

    def build_model(self, window: IntensityWindow, generator: torch.Generator) -> AutoencoderKL3D:
        """Make an untrained model on the CPU, its initial weights drawn from the generator."""
        import torch

        from autoencoder.layers import draw_initial_weights_
        from autoencoder.model import AutoencoderKL3D

        with torch.random.fork_rng(devices=[]):  # torch's layers draw a start of their own first
            model = AutoencoderKL3D(
                channels=self.channels,
                blocks=self.blocks,
                latent_channels=self.latent_channels,
                low_hu=window.low_hu,
                high_hu=window.high_hu,
            )
        draw_initial_weights_(model, generator)
        return model


AUTOENCODER_PRESETS: Mapping[str, AutoencoderPreset] = preset_table(
    AutoencoderPreset(  # unit tests and a first look: learns shapes, not texture
        name="nano",
        channels=(8, 16),
        blocks=1,
        crop_sides=(16, 32),
        crop_probabilities=(0.5, 0.5),
        voxels_per_batch=2 * 32**3,
        steps=20,
        learning_rate=2e-3,
        ema_decay=None,
    ),
    AutoencoderPreset(  # trains in minutes on two CPU cores
        name="tiny",
        channels=(24, 48),
        blocks=2,
        crop_sides=(32, 48),
        crop_probabilities=(0.5, 0.5),
        voxels_per_batch=4 * 48**3,
        steps=1500,
        learning_rate=2e-3,
        ema_decay=0.998,
        losses=LossWeights(gradient=0.5, fft=0.1, kl=1e-5),
    ),
    AutoencoderPreset(  # one GPU or more
        name="base",
        channels=(48, 96),
        blocks=2,
        crop_sides=(32, 48, 64, 96),
        crop_probabilities=(0.3, 0.3, 0.3, 0.1),
        voxels_per_batch=16 * 48**3,
        steps=100_000,
        learning_rate=3e-4,
        warmup_steps=1000,
        ema_decay=0.9995,
        losses=LossWeights(multi_scale=0.25, gradient=0.5, fft=0.1, kl=1e-6),
    ),
    AutoencoderPreset(  # several GPUs, or one for long; a discriminator asks for fine texture in the second half
        name="large",
        channels=(64, 160),
        blocks=3,
        crop_sides=(32, 48, 64, 96),
        crop_probabilities=(0.2, 0.3, 0.3, 0.2),
        voxels_per_batch=24 * 48**3,
        steps=150_000,
        learning_rate=2e-4,
        warmup_steps=2000,
        ema_decay=0.9998,
        losses=LossWeights(multi_scale=0.25, gradient=0.5, fft=0.1, kl=1e-6, adversarial=0.02),
    ),
)
"""The presets by name: nano (tests), tiny (CPU), base (GPU), large (GPUs)."""
