"""Time of short epochs with nnU-Net's own workers: how long the training loop waits for batches."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from tqdm import tqdm

from nnunet_difftumor.trainer.overhead.loaders import Spread
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, quiet

_WARM_UP_ITERATIONS = 3  # compiling the network, choosing cuDNN's algorithms


@dataclass(frozen=True)
class Epoch:
    """Training iterations of one epoch, in seconds of wall time.

    Attributes:
        step_s: In training steps.
        waited_s: Waiting for batches.
    """

    step_s: float
    waited_s: float


@dataclass(frozen=True)
class EpochCosts:
    """Short epochs of one trainer.

    Attributes:
        iterations: Training iterations in each epoch; nnU-Net has 250, and 50 for validation, which are the same
            with and without synthetic tumours.
        epochs: The epochs.
    """

    iterations: int
    epochs: tuple[Epoch, ...]

    @property
    def epoch(self) -> Spread:
        """Seconds of an epoch."""
        return Spread.of([epoch.step_s + epoch.waited_s for epoch in self.epochs])

    @property
    def waited(self) -> Spread:
        """Seconds of an epoch in which the loop waited for batches."""
        return Spread.of([epoch.waited_s for epoch in self.epochs])

    @property
    def waited_share(self) -> float:
        """Share of the time in which the loop waited for batches."""
        waited_s = sum(epoch.waited_s for epoch in self.epochs)
        return waited_s / (waited_s + sum(epoch.step_s for epoch in self.epochs))

    @property
    def step_s(self) -> float:
        """Median seconds of one training step without waiting."""
        return Spread.of([epoch.step_s for epoch in self.epochs]).median / self.iterations


def measure_epochs(
    choice: TrainingChoice, *, device: str, iterations: int, epochs: int
) -> tuple[EpochCosts, EpochCosts]:
    """Train short epochs with both trainers, one after the other, within `surroundings`.

    Batches that were made in advance would hide that workers are slow in so short an epoch; they are thrown away
    at its start.

    Args:
        choice: Which training.
        device: Torch device.
        iterations: Training iterations of an epoch.
        epochs: Epochs of each trainer, after a few iterations that are not counted.

    Returns:
        Costs of baseline and trainer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads((os.cpu_count() or 1) if device == "cpu" else 1)  # as nnUNetv2_train does
    try:
        baseline, trainer = (
            EpochCosts(iterations, _train(each, iterations, epochs)) for each in make_trainers(choice, device)
        )
    finally:
        torch.set_num_threads(threads)
    return baseline, trainer


def _train(trainer: nnUNetTrainer, iterations: int, epochs: int) -> tuple[Epoch, ...]:
    measured = []
    with quiet():
        trainer.on_train_start()
    try:
        bar = tqdm(total=epochs * iterations, desc=f"iterations of {type(trainer).__name__}")
        for number in range(epochs + 1):
            epoch = _train_epoch(trainer, iterations if number else min(_WARM_UP_ITERATIONS, iterations))
            if number:
                measured.append(epoch)
                bar.update(iterations)
        bar.close()
    finally:
        with quiet():
            trainer.on_train_end()
    return tuple(measured)


def _train_epoch(trainer: nnUNetTrainer, iterations: int) -> Epoch:
    """The training part of nnU-Net's run_training, with a clock."""
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
    return Epoch(step_s, waited_s)


def _made_in_advance() -> int:
    """Batches that nnU-Net's workers and their two queues hold at most."""
    workers = get_allowed_n_proc_DA()
    return 0 if workers == 0 else workers + 2 * max(6, workers // 2)
