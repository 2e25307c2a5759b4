"""Time of short epochs with nnU-Net's own workers: how long the training loop waits for batches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from tqdm import tqdm

from nnunet_difftumor.trainer.overhead.loaders import spread
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, quiet, torch_threads

_WARM_UP_ITERATIONS = 3  # compiling the network, choosing cuDNN's algorithms


def measure_epochs(choice: TrainingChoice, *, device: str, iterations: int, epochs: int) -> list[dict[str, Any]]:
    """Train short epochs with both trainers, one after the other, within `surroundings`.

    Batches that were made in advance would hide that workers are slow in so short an epoch; they are thrown away
    at its start.

    Args:
        iterations: Training iterations in each epoch; nnU-Net has 250, and 50 for validation, which are the same
            with and without synthetic tumours.
        epochs: Epochs of each trainer, after a few iterations that are not counted.

    Returns:
        Costs of baseline and trainer, as `summarise_epochs` gives them.
    """
    with torch_threads((os.cpu_count() or 1) if device == "cpu" else 1):  # as nnUNetv2_train does
        return [_train(each, iterations, epochs) for each in make_trainers(choice, device)]


def summarise_epochs(iterations: int, epochs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Summarise a trainer's epochs.

    Args:
        epochs: Seconds in training steps, and seconds in which the loop waited for batches, of each.
    """
    steps, waits = zip(*epochs, strict=True)
    return {
        "iterations": iterations,
        "epochs": len(epochs),
        "epoch_seconds": spread([sum(epoch) for epoch in epochs]),
        "waited_seconds": spread(waits),
        "waited_share": sum(waits) / (sum(waits) + sum(steps)),
        "step_seconds": spread(steps)["median"] / iterations,
    }


def _train(trainer: nnUNetTrainer, iterations: int, epochs: int) -> dict[str, Any]:
    with quiet():
        trainer.on_train_start()
    try:
        _train_epoch(trainer, min(_WARM_UP_ITERATIONS, iterations))
        bar = tqdm(range(epochs), desc=f"epochs of {type(trainer).__name__}")
        return summarise_epochs(iterations, [_train_epoch(trainer, iterations) for _ in bar])
    finally:
        with quiet():
            trainer.on_train_end()


def _train_epoch(trainer: nnUNetTrainer, iterations: int) -> tuple[float, float]:
    """The training part of nnU-Net's run_training: seconds in training steps, seconds of waiting."""
    batches: Any = trainer.dataloader_train
    workers = get_allowed_n_proc_DA()
    made_in_advance = workers + 2 * max(6, workers // 2) if workers else 0  # in the workers and their two queues
    step_s = waited_s = 0.0
    outputs = []
    with quiet():
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        for _ in range(made_in_advance):
            next(batches)
        for _ in range(iterations):
            started = time.perf_counter()
            batch = next(batches)
            arrived = time.perf_counter()
            outputs.append(trainer.train_step(batch))
            waited_s += arrived - started
            step_s += time.perf_counter() - arrived
        trainer.on_train_epoch_end(outputs)  # always as the first epoch: the schedule may have no other
    return step_s, waited_s
