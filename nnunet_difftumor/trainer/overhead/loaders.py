"""CPU-seconds of two training loaders for the same samples, measured in turns in one process."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunet_difftumor.injection.data_loader import REPORT_KEY
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, quiet, torch_threads

Pair = dict[str, Any]
"""One repetition, the same random numbers with and without synthetic tumours: CPU-seconds of both loaders
(baseline_s, trainer_s), samples, and how many of them were drawn from healthy cases (healthy), are of a case that
carries synthetic tumours, whether the crop shows one or not (carrying), and show one (injected)."""


def measure_loaders(choice: TrainingChoice, *, samples: int, repeats: int) -> tuple[dict[str, Any], Any]:
    """Measure both loaders in this process with one thread, within `surroundings`.

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
            baseline, trainer = make_trainers(choice, "cpu")
            _seed_everything(0)  # a first batch is made at once
            with quiet():
                loaders = [each.get_dataloaders()[0] for each in (baseline, trainer)]
        batches = -(-samples // trainer.batch_size)
        bar = tqdm(range(repeats + 1), desc="loaders, in turns")
        pairs = [_measure_pair(loaders, batches, trainer.batch_size, repeat) for repeat in bar]
    return summarise_pairs(pairs[1:]), trainer


def summarise_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return what repetitions of both loaders cost; the ratio is that of each pair.

    What an injected sample costs more has attempts that failed included, and is None if there is none.
    """
    samples = sum(pair["samples"] for pair in pairs)
    injected = [(pair["trainer_s"] - pair["baseline_s"]) / pair["injected"] for pair in pairs if pair["injected"]]
    return {
        "baseline_cpu_seconds_per_sample": spread([pair["baseline_s"] / pair["samples"] for pair in pairs]),
        "trainer_cpu_seconds_per_sample": spread([pair["trainer_s"] / pair["samples"] for pair in pairs]),
        "ratio": spread([pair["trainer_s"] / pair["baseline_s"] for pair in pairs]),
        "carrying_share": sum(pair["carrying"] for pair in pairs) / samples,
        "injected_share": sum(pair["injected"] for pair in pairs) / samples,
        "cpu_seconds_per_injected_sample": spread(injected) if injected else None,
        "pairs": list(pairs),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and range of repetitions, of which there is at least one."""
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
