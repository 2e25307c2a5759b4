"""What a user chooses of a training run, what decides it apart from model, data and loss, and what one step reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a user chooses of a training run of either stage, whatever the preset.

    Attributes:
        steps: Training steps; None takes the preset's.
        seed: Seed of initial weights and noise.
        resume: Go on from the newest checkpoint in the output folder.
        mixed_precision: "no", "bf16" or "fp16".
        workers: Data-loading processes; 0 loads in the training process.
        checkpoint_every: Steps between checkpoints.
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
        keep_checkpoints: Newest checkpoints kept.
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


@dataclass(frozen=True)
class FitStep:
    """One finished optimiser step, the `index`-th.

    Attributes:
        losses: Loss terms by name, the mean over all processes.
        gradient_norm: Gradient norm before clipping.
        checkpoint_follows: A checkpoint is written as soon as the next step is asked for, so
            what the loop writes about steps up to this one should reach the disk now.
    """

    index: int
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    checkpoint_follows: bool = False
