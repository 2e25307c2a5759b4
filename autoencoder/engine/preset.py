"""What presets of both stages have in common: crops, steps, learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from autoencoder.engine.settings import FitSettings, RunSettings

PresetT = TypeVar("PresetT", bound="TrainingPreset")


@dataclass(frozen=True, kw_only=True)
class TrainingPreset:
    """Crops and training defaults of one preset.

    Attributes:
        crop_sides: Sides of the cubic training crops, in voxels; multiples of 4.
        crop_probabilities: How often each side is drawn; same length, sums to 1.
        voxels_per_batch: Voxels of one batch, about the same for every side.
        learning_rate: Peak learning rate (cosine decay after a linear warm-up).
        ema_decay: Decay of the averaged weights; None keeps the last weights.
    """

    name: str
    crop_sides: tuple[int, ...]
    crop_probabilities: tuple[float, ...]
    voxels_per_batch: int
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

    def fit_settings(self, run: RunSettings) -> FitSettings:
        """Combine the preset's training defaults with what a run chooses."""
        return FitSettings(
            steps=self.steps if run.steps is None else run.steps,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            ema_decay=self.ema_decay,
            mixed_precision=run.mixed_precision,
            checkpoint_every=run.checkpoint_every,
            seed=run.seed,
            workers=run.workers,
        )


def preset_table(*presets: PresetT) -> Mapping[str, PresetT]:
    """Presets by their names."""
    return MappingProxyType({preset.name: preset for preset in presets})
