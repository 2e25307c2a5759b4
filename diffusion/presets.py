"""Sizes and training defaults of the diffusion model, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoencoder.engine.settings import TrainingPreset, preset_table

if TYPE_CHECKING:
    import torch

    from diffusion.unet import DenoisingUNet3D


@dataclass(frozen=True, kw_only=True)
class DiffusionPreset(TrainingPreset):
    """Architecture and training defaults that belong together.

    A generator synthesises at the sides of its training crops only.

    Attributes:
        channels: Feature channels of each resolution, finest first.
        condition_dropout: Share of the samples that are trained without a contrast, and likewise without a
            heterogeneity.
        objective: What the denoiser predicts: "flow", "v" or "epsilon" (see `diffusion.objectives`).
        draws_differences: The path runs in standardised differences from the filled image, not in latents.
    """

    channels: tuple[int, ...]
    blocks: int = 1
    condition_dropout: float = 0.1
    objective: str = "flow"
    draws_differences: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must lie in [0, 1), got {self.condition_dropout}.")

    def build_model(self, latent_channels: int, generator: torch.Generator) -> DenoisingUNet3D:
        """Make an untrained network on the CPU, its initial weights drawn from the generator."""
        from autoencoder.layers import draw_initial_weights_
        from diffusion.unet import DenoisingUNet3D

        model = DenoisingUNet3D(
            channels=self.channels, blocks=self.blocks, latent_channels=latent_channels, objective=self.objective
        )
        draw_initial_weights_(model, generator)
        return model


DIFFUSION_PRESETS: Mapping[str, DiffusionPreset] = preset_table(
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
