"""CPU-seconds of two training loaders for the same samples, and how long short epochs wait for batches."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from tqdm import tqdm

from nnunet_difftumor.injection.data_loader import REPORT_KEY
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, quiet, torch_threads

_WARM_UP_ITERATIONS = 3  # compiling the network, choosing cuDNN's algorithms

Pair = dict[str, Any]
"""One repetition, the same random numbers with and without synthetic tumours: CPU-seconds of both loaders
(baseline_s, trainer_s), samples, and how many of them were drawn from healthy cases (healthy), are of a case that
carries synthetic tumours, whether the crop shows one or not (carrying), and show one (injected)."""


def measure_loaders(choice: TrainingChoice, *, samples: int, repeats: int) -> tuple[dict[str, Any], Any]:
    """Measure both loaders in turns in this process with one thread, within `surroundings`.

    Both loaders of a pair start from the same random numbers, so that they draw the same cases and augmentations;
    only samples with tumours have other crops. Which loader comes first alternates. One pair more is made at the
    start and not counted.

    Args:
        samples: Samples of each loader in a pair, rounded up to whole batches.

    Returns:
        The costs as `summarise_pairs` gives them, and the trainer.
    """
    with torch_threads(1):
        with temporary_environment(nnUNet_n_proc_DA="0"):
            trainers = make_trainers(choice, "cpu")
            _seed_everything(0)  # a first batch is made at once
            with quiet():
                loaders = [trainer.get_dataloaders()[0] for trainer in trainers]
        batch_size = trainers[1].batch_size
        bar = tqdm(range(repeats + 1), desc="loaders, in turns")
        pairs = [_measure_pair(loaders, -(-samples // batch_size), batch_size, repeat) for repeat in bar]
    return summarise_pairs(pairs[1:]), trainers[1]


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
        return [_train(trainer, iterations, epochs) for trainer in make_trainers(choice, device)]


def summarise_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return what repetitions of both loaders cost; the ratio is that of each pair.

    What an injected sample costs more has attempts that failed included, and is None if there is none.
    """
    samples = sum(pair["samples"] for pair in pairs)
    injected = [(pair["trainer_s"] - pair["baseline_s"]) / pair["injected"] for pair in pairs if pair["injected"]]
    return {
        "baseline_cpu_seconds_per_sample": _spread([pair["baseline_s"] / pair["samples"] for pair in pairs]),
        "trainer_cpu_seconds_per_sample": _spread([pair["trainer_s"] / pair["samples"] for pair in pairs]),
        "ratio": _spread([pair["trainer_s"] / pair["baseline_s"] for pair in pairs]),
        "carrying_share": sum(pair["carrying"] for pair in pairs) / samples,
        "injected_share": sum(pair["injected"] for pair in pairs) / samples,
        "cpu_seconds_per_injected_sample": _spread(injected) if injected else None,
        "pairs": list(pairs),
    }


def summarise_epochs(iterations: int, epochs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return what a trainer's epochs cost.

    Args:
        epochs: Seconds in training steps, and seconds in which the loop waited for batches, of each.
    """
    steps, waits = zip(*epochs, strict=True)
    return {
        "iterations": iterations,
        "epochs": len(epochs),
        "epoch_seconds": _spread([sum(epoch) for epoch in epochs]),
        "waited_seconds": _spread(waits),
        "waited_share": sum(waits) / (sum(waits) + sum(steps)),
        "step_seconds": _spread(steps)["median"] / iterations,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": float(min(values)), "highest": float(max(values))}


def _measure_pair(loaders: Sequence[Any], batches: int, batch_size: int, repeat: int) -> Pair:
    seconds = [0.0, 0.0]
    counts: Counter[str] = Counter()
    for index in (0, 1) if repeat % 2 == 0 else (1, 0):
        _seed_everything(repeat)
        for _ in range(batches):
            started = time.process_time()
            batch = next(loaders[index])
            seconds[index] += time.process_time() - started
            counts.update(batch.get(REPORT_KEY, {}).get("counts", {}))
    shown = {"healthy": counts["healthy_samples"], "carrying": counts["carrying"], "injected": counts["injected"]}
    return {"samples": batches * batch_size, "baseline_s": seconds[0], "trainer_s": seconds[1], **shown}


def _seed_everything(seed: int) -> None:
    """Seed the global streams that nnU-Net's loader and transforms draw from; the injection has its own."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _train(trainer: Any, iterations: int, epochs: int) -> dict[str, Any]:
    with quiet():
        trainer.on_train_start()
    try:
        _train_epoch(trainer, min(_WARM_UP_ITERATIONS, iterations))
        bar = tqdm(range(epochs), desc=f"epochs of {type(trainer).__name__}")
        return summarise_epochs(iterations, [_train_epoch(trainer, iterations) for _ in bar])
    finally:
        with quiet():
            trainer.on_train_end()


def _train_epoch(trainer: Any, iterations: int) -> tuple[float, float]:
    """The training part of nnU-Net's run_training: seconds in training steps, seconds of waiting."""
    workers = get_allowed_n_proc_DA()
    made_in_advance = workers + 2 * max(6, workers // 2) if workers else 0  # in the workers and their two queues
    step_s = waited_s = 0.0
    outputs = []
    with quiet():
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        for _ in range(made_in_advance):
            next(trainer.dataloader_train)
        for _ in range(iterations):
            started = time.perf_counter()
            batch = next(trainer.dataloader_train)
            arrived = time.perf_counter()
            outputs.append(trainer.train_step(batch))
            waited_s += arrived - started
            step_s += time.perf_counter() - arrived
        trainer.on_train_epoch_end(outputs)  # always as the first epoch: the schedule may have no other
    return step_s, waited_s
