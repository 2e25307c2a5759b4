"""Sizes and training defaults of the diffusion model, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from autoencoder.fit_settings import FitSettings

if TYPE_CHECKING:
    import torch

    from diffusion.unet import DenoisingUNet3D


@dataclass(frozen=True, kw_only=True)
class DiffusionPreset:
    """Architecture and training defaults that belong together.

    Attributes:
        name: Key of the preset in DIFFUSION_PRESETS.
        channels: Feature channels of each resolution, finest first.
        blocks: Residual blocks per resolution.
        crop_sides: Sides of the cubic training crops, in voxels; a generator synthesises at these only.
        crop_probabilities: How often each side is drawn; same length, sums to 1.
        voxels_per_batch: Voxels of one batch, about the same for every side.
        condition_dropout: Share of the samples that are trained without a contrast, and likewise without a
            heterogeneity.
        objective: What the denoiser predicts: "flow", "v" or "epsilon" (see `diffusion.objectives`).
        draws_differences: The path runs in standardised differences from the filled image, not in latents.
        steps: Training steps.
        learning_rate: Peak learning rate (cosine decay after warm-up).
        warmup_steps: Steps of the linear warm-up.
        ema_decay: Decay of the averaged weights; None keeps the last weights.
    """

    name: str
    channels: tuple[int, ...]
    blocks: int = 1
    crop_sides: tuple[int, ...]
    crop_probabilities: tuple[float, ...]
    voxels_per_batch: int
    condition_dropout: float = 0.1
    objective: str = "flow"
    draws_differences: bool = True
    steps: int
    learning_rate: float
    warmup_steps: int = 50
    ema_decay: float | None

    def __post_init__(self) -> None:
        same_length = len(self.crop_sides) == len(self.crop_probabilities)
        if not self.crop_sides or not same_length or abs(sum(self.crop_probabilities) - 1) > 1e-6:
            raise ValueError(
                f"Preset {self.name!r} needs one probability per crop side, summing to 1, got sides "
                f"{self.crop_sides} and probabilities {self.crop_probabilities}."
            )
        if any(side % 4 or side <= 0 for side in self.crop_sides):
            raise ValueError(f"Crop sides must be positive multiples of 4, got {self.crop_sides}.")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must lie in [0, 1), got {self.condition_dropout}.")

    def batch_size(self, crop_side: int) -> int:
        """Crops of this side (in voxels) that make one batch.

        At least two: on a CPU the convolutions of a single small crop cost more than those of two.
        """
        return max(2, self.voxels_per_batch // crop_side**3)

    def build_model(self, latent_channels: int, generator: torch.Generator) -> DenoisingUNet3D:
        """Make an untrained network of this size.

        Args:
            latent_channels: Channels of the autoencoder's latents.
            generator: Source of the initial weights, on the CPU.

        Returns:
            The network, on the CPU.
        """
        from autoencoder.initial_weights import draw_initial_weights_
        from diffusion.unet import DenoisingUNet3D

        model = DenoisingUNet3D(
            channels=self.channels, blocks=self.blocks, latent_channels=latent_channels, objective=self.objective
        )
        draw_initial_weights_(model, generator)
        return model

    def fit_settings(
        self,
        *,
        steps: int | None = None,
        seed: int = 0,
        mixed_precision: str = "no",
        checkpoint_every: int = 200,
        workers: int = 0,
    ) -> FitSettings:
        """Combine the preset's training defaults with what a run chooses."""
        return FitSettings(
            steps=self.steps if steps is None else steps,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            ema_decay=self.ema_decay,
            mixed_precision=mixed_precision,
            checkpoint_every=checkpoint_every,
            seed=seed,
            workers=workers,
        )


def _table(*presets: DiffusionPreset) -> Mapping[str, DiffusionPreset]:
    return MappingProxyType({preset.name: preset for preset in presets})


DIFFUSION_PRESETS: Mapping[str, DiffusionPreset] = _table(
    DiffusionPreset(  # unit tests
        name="nano",
        channels=(16, 32),
        crop_sides=(16, 32),
        crop_probabilities=(0.5, 0.5),
        voxels_per_batch=2 * 32**3,
        steps=20,
        learning_rate=1e-3,
        ema_decay=None,
    ),
    DiffusionPreset(  # trains in minutes on two CPU cores
        name="tiny",
        channels=(32, 64),
        crop_sides=(32, 48, 64),
        crop_probabilities=(0.5, 0.35, 0.15),
        voxels_per_batch=3 * 48**3,
        steps=1500,
        learning_rate=1e-3,
        ema_decay=0.998,
    ),
    DiffusionPreset(  # one GPU or more
        name="base",
        channels=(48, 96, 192),
        crop_sides=(32, 48, 64),
        crop_probabilities=(0.4, 0.35, 0.25),
        voxels_per_batch=32 * 48**3,
        steps=60_000,
        learning_rate=2e-4,
        warmup_steps=1000,
        ema_decay=0.9995,
    ),
    DiffusionPreset(  # several GPUs, or one for long
        name="large",
        channels=(64, 128, 256),
        blocks=2,
        crop_sides=(32, 48, 64),
        crop_probabilities=(0.4, 0.35, 0.25),
        voxels_per_batch=48 * 48**3,
        steps=120_000,
        learning_rate=1.5e-4,
        warmup_steps=2000,
        ema_decay=0.9998,
    ),
)
"""The presets by name: nano (tests), tiny (CPU), base (GPU), large (GPUs)."""
