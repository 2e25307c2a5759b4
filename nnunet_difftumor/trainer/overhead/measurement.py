"""CPU-seconds of two loaders for the same samples, how long short epochs wait for batches, and a table of both."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from tqdm import tqdm

from nnunet_difftumor import __version__
from nnunet_difftumor.injection.data_loader import REPORT_KEY
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.overhead.surroundings import (
    TrainingChoice,
    make_trainers,
    quiet,
    surroundings,
    torch_threads,
)

_WARM_UP_ITERATIONS = 3  # compiling the network, choosing cuDNN's algorithms

Pair = dict[str, Any]
"""One repetition, the same random numbers with and without synthetic tumours: CPU-seconds of both loaders
(baseline_s, trainer_s), samples, and how many of them were drawn from healthy cases (healthy), are of a case that
carries synthetic tumours, whether the crop shows one or not (carrying), and show one (injected)."""


def measure_overhead(
    choice: TrainingChoice, *, samples: int, repeats: int, iterations: int, epochs: int, device: str
) -> dict[str, Any]:
    """Measure loaders and epochs of a training; nothing is written into the user's nnUNet_results.

    Args:
        iterations: Training iterations of a short epoch; 0 measures no epoch. nnU-Net has 250, and 50 for validation,
            which are the same with and without synthetic tumours.

    Returns:
        The content of benchmark_overhead.json: all figures, and on what they were measured.
    """
    with surroundings():
        loader, trainer = measure_loaders(choice, samples=samples, repeats=repeats)
        with torch_threads((os.cpu_count() or 1) if device == "cpu" else 1):  # as nnUNetv2_train does
            trainers = make_trainers(choice, device) if iterations else ()
            costs = [_train(each, iterations, epochs) for each in trainers]
    versions = {name: importlib.metadata.version(name) for name in ("nnunetv2", "torch")}
    used = None if not costs else torch.cuda.get_device_name() if device == "cuda" else device
    return {
        "versions": {"nnunet-difftumor": __version__, **versions},
        "machine": {"cpu": _cpu_name(), "cores": _cores(), "device": used},
        "training": asdict(choice),
        "batch_size": trainer.batch_size,
        "patch_size": list(map(int, trainer.configuration_manager.patch_size)),
        "loader": loader,
        "epoch": costs or None,
        "workers": get_allowed_n_proc_DA(),
    }


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


def describe(figures: Mapping[str, Any]) -> str:
    """Return what `measure_overhead` measured as a table for the screen."""
    loader, choice, machine = figures["loader"], figures["training"], figures["machine"]
    per_injected = loader["cpu_seconds_per_injected_sample"]
    lines = [
        f"{choice['configuration']}, {choice['plans']}: patch {' x '.join(map(str, figures['patch_size']))}, "
        f"batch {figures['batch_size']}; {machine['cpu']}, {machine['cores']} cores",
        "",
        f"Loader, CPU-seconds per sample on one thread: median (range) of {len(loader['pairs'])} pairs in turns, "
        f"{sum(pair['samples'] for pair in loader['pairs'])} samples each",
        f"  {choice['baseline']:32s}{_text(loader['baseline_cpu_seconds_per_sample']):>24s}",
        f"  {choice['trainer']:32s}{_text(loader['trainer_cpu_seconds_per_sample']):>24s}",
        f"  {'ratio':32s}{_text(loader['ratio']):>24s}",
        f"  {'per injected sample':32s}{_text(per_injected) if per_injected else 'no sample was injected':>24s}",
        f"  tumours in {loader['injected_share']:.1%} of the samples, in the case of {loader['carrying_share']:.1%}",
    ]
    if figures["epoch"] is None:
        return "\n".join(lines)
    lines += [
        "",
        f"Epoch of {figures['epoch'][0]['iterations']} training iterations on {machine['device']}, "
        f"{figures['workers']} workers, seconds: median (range) of {figures['epoch'][0]['epochs']}",
        f"  {'':32s}{'epoch':>24s}{'waited for batches':>24s}{'share':>8s}",
    ]
    for name, epochs in zip((choice["baseline"], choice["trainer"]), figures["epoch"], strict=True):
        seconds = f"{_text(epochs['epoch_seconds']):>24s}{_text(epochs['waited_seconds']):>24s}"
        lines.append(f"  {name:32s}{seconds}{epochs['waited_share']:>8.1%}")
    if machine["device"] == "cpu":
        lines.append("  On a CPU the training takes the workers' cores; this says nothing about a GPU.")
    return "\n".join(lines)


def _text(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['lowest']:.3f}-{spread['highest']:.3f})"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
    """The training part of nnU-Net's run_training: seconds in training steps, seconds of waiting.

    Batches that were made in advance would hide that workers are slow in so short an epoch; they are thrown away.
    """
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
