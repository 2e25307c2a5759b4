"""Time of short epochs with nnU-Net's own workers: how long the training loop waits for batches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from tqdm import tqdm

from nnunet_difftumor.trainer.overhead.loaders import Spread
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, quiet, torch_threads

_WARM_UP_ITERATIONS = 3  # compiling the network, choosing cuDNN's algorithms


@dataclass(frozen=True)
class EpochCosts:
    """Wall time of a trainer's short epochs.

    Attributes:
        iterations: Training iterations in each epoch; nnU-Net has 250, and 50 for validation, which are the same
            with and without synthetic tumours.
        waited_seconds: Those of an epoch in which the loop waited for batches.
        step_seconds: Median of one training step without waiting.
    """

    iterations: int
    epochs: int
    epoch_seconds: Spread
    waited_seconds: Spread
    waited_share: float
    step_seconds: float

    @classmethod
    def of(cls, iterations: int, epochs: Sequence[tuple[float, float]]) -> EpochCosts:
        """Summarise the epochs: seconds in training steps, seconds of waiting."""
        steps, waits = zip(*epochs, strict=True)
        return cls(
            iterations,
            len(epochs),
            Spread.of([sum(epoch) for epoch in epochs]),
            Spread.of(waits),
            sum(waits) / (sum(waits) + sum(steps)),
            Spread.of(steps).median / iterations,
        )


def measure_epochs(
    choice: TrainingChoice, *, device: str, iterations: int, epochs: int
) -> tuple[EpochCosts, EpochCosts]:
    """Train short epochs with both trainers, one after the other, within `surroundings`.

    Batches that were made in advance would hide that workers are slow in so short an epoch; they are thrown away
    at its start.

    Args:
        epochs: Epochs of each trainer, after a few iterations that are not counted.

    Returns:
        Costs of baseline and trainer.
    """
    with torch_threads((os.cpu_count() or 1) if device == "cpu" else 1):  # as nnUNetv2_train does
        baseline, trainer = (_train(each, iterations, epochs) for each in make_trainers(choice, device))
    return baseline, trainer


def _train(trainer: nnUNetTrainer, iterations: int, epochs: int) -> EpochCosts:
    with quiet():
        trainer.on_train_start()
    try:
        _train_epoch(trainer, min(_WARM_UP_ITERATIONS, iterations))
        bar = tqdm(range(epochs), desc=f"epochs of {type(trainer).__name__}")
        return EpochCosts.of(iterations, [_train_epoch(trainer, iterations) for _ in bar])
    finally:
        with quiet():
            trainer.on_train_end()


def _train_epoch(trainer: nnUNetTrainer, iterations: int) -> tuple[float, float]:
    """The training part of nnU-Net's run_training: seconds in training steps, seconds of waiting."""
    batches: Any = trainer.dataloader_train
    step_s = waited_s = 0.0
    outputs = []
    with quiet():
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        for _ in range(_made_in_advance()):
            next(batches)
        for _ in range(iterations):
            started = time.perf_counter()
            batch = next(batches)
            waited_s += time.perf_counter() - started
            started = time.perf_counter()
            outputs.append(trainer.train_step(batch))
            step_s += time.perf_counter() - started
        trainer.on_train_epoch_end(outputs)  # always as the first epoch: the schedule may have no other
    return step_s, waited_s


def _made_in_advance() -> int:
    """Batches that nnU-Net's workers and their two queues hold at most."""
    workers = get_allowed_n_proc_DA()
    return 0 if workers == 0 else workers + 2 * max(6, workers // 2)
