"""What a user chooses of a training run, what a preset sets, what decides the run, and what one step reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

PresetT = TypeVar("PresetT", bound="TrainingPreset")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a user chooses of a training run of either stage, whatever the preset.

    Attributes:
        steps: Training steps; None takes the preset's.
        seed: Seed of initial weights and noise.
        mixed_precision: "no", "bf16" or "fp16".
        workers: Data-loading processes; 0 loads in the training process.
        evaluate_every: Steps between measurements and pictures on the held-out crops.
        identity: JSON content that must be the same at a resume, such as the data's fingerprint.
    """

    steps: int | None = None
    seed: int = 0
    resume: bool = False
    mixed_precision: str = "no"
    workers: int = 0
    checkpoint_every: int = 200
    evaluate_every: int = 250
    identity: Mapping[str, Any] = field(default_factory=dict)
    show_progress: bool = True


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What decides a training run, apart from model, data and loss; see also `RunSettings` and `TrainingPreset`.

    Attributes:
        learning_rate: Peak learning rate; cosine decay to zero after the warm-up.
        warmup_steps: Steps of the linear warm-up, at most a quarter of all steps.
        weight_decay: AdamW weight decay of the weights of rank 2 and more.
        betas: AdamW momentum terms.
        gradient_clip: Largest gradient norm.
        ema_decay: Decay of the averaged weights, reached gradually; None for no averaging.
        seed: Seed of the noise; the batches have their own.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 50
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_clip: float = 1.0
    ema_decay: float | None = None
    mixed_precision: str = "no"
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        lowest = {"steps": 1, "checkpoint_every": 1, "keep_checkpoints": 1}
        lowest |= {"warmup_steps": 0, "weight_decay": 0, "seed": 0, "workers": 0}
        for name, limit in lowest.items():
            if getattr(self, name) < limit:
                raise ValueError(f"FitSettings needs {name} >= {limit}, got {getattr(self, name)}.")
        if not (self.learning_rate > 0 and self.gradient_clip > 0):
            raise ValueError(
                f"FitSettings needs learning_rate > 0 and gradient_clip > 0, got "
                f"{self.learning_rate} and {self.gradient_clip}."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, or be None, got {self.ema_decay}.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision is 'no', 'bf16' or 'fp16', got {self.mixed_precision!r}.")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the update that follows `step` finished ones."""
        warmup = min(self.warmup_steps, self.steps // 4)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class TrainingPreset:
    """Crops and training defaults of one preset; see also `FitSettings`.

    Attributes:
        crop_sides: Sides of the cubic training crops, in voxels; multiples of 4.
        crop_probabilities: How often each side is drawn; same length, sums to 1.
        voxels_per_batch: Voxels of one batch, about the same for every side.
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


@dataclass(frozen=True)
class FitStep:
    """One finished optimiser step, the `index`-th: losses (mean over all processes) and gradient norm before clipping.

    If `checkpoint_follows`, a checkpoint is written as soon as the next step is asked for, so what the loop writes
    about steps up to this one should reach the disk now.
    """

    index: int
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    checkpoint_follows: bool = False
