"""CPU-seconds of two training loaders for the same samples, measured in turns in one process."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunet_difftumor.injection.data_loader import REPORT_KEY
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, quiet, torch_threads


@dataclass(frozen=True)
class Spread:
    """Median and range of repetitions."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise repetitions, of which there is at least one."""
        return cls(float(np.median(values)), float(min(values)), float(max(values)))

    def __str__(self) -> str:
        """Median with the range in brackets."""
        return f"{self.median:.3f} ({self.lowest:.3f}-{self.highest:.3f})"


@dataclass(frozen=True)
class LoaderPair:
    """CPU-seconds of one repetition: the same random numbers with and without synthetic tumours.

    Attributes:
        healthy: Samples of the trainer that were drawn from healthy cases.
        carrying: Samples whose case carries synthetic tumours, whether the crop shows one or not.
        injected: Samples whose target shows a tumour that was injected.
    """

    samples: int
    baseline_s: float
    trainer_s: float
    healthy: int
    carrying: int
    injected: int


@dataclass(frozen=True)
class LoaderCosts:
    """What repetitions of both loaders cost; the ratio is that of each pair.

    Attributes:
        cpu_seconds_per_injected_sample: What an injected sample costs more, attempts that failed included; None if
            there is none.
    """

    baseline_cpu_seconds_per_sample: Spread
    trainer_cpu_seconds_per_sample: Spread
    ratio: Spread
    carrying_share: float
    injected_share: float
    cpu_seconds_per_injected_sample: Spread | None
    pairs: tuple[LoaderPair, ...]

    @classmethod
    def of(cls, pairs: Sequence[LoaderPair]) -> LoaderCosts:
        """Summarise the pairs."""
        samples = sum(pair.samples for pair in pairs)
        injected = [(pair.trainer_s - pair.baseline_s) / pair.injected for pair in pairs if pair.injected]
        return cls(
            Spread.of([pair.baseline_s / pair.samples for pair in pairs]),
            Spread.of([pair.trainer_s / pair.samples for pair in pairs]),
            Spread.of([pair.trainer_s / pair.baseline_s for pair in pairs]),
            sum(pair.carrying for pair in pairs) / samples,
            sum(pair.injected for pair in pairs) / samples,
            Spread.of(injected) if injected else None,
            tuple(pairs),
        )


def measure_loaders(choice: TrainingChoice, *, samples: int, repeats: int) -> tuple[LoaderCosts, int, tuple[int, ...]]:
    """Measure both loaders in this process with one thread, within `surroundings`.

    Both loaders of a pair start from the same random numbers, so that they draw the same cases and augmentations;
    only samples with tumours have other crops. Which loader comes first alternates. One pair more is made at the
    start and not counted.

    Args:
        samples: Samples of each loader in a pair, rounded up to whole batches.

    Returns:
        The costs, the samples in a batch, and the network's patch in voxels (D, H, W).
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
    configuration: Any = trainer.configuration_manager
    return LoaderCosts.of(pairs[1:]), trainer.batch_size, tuple(map(int, configuration.patch_size))


def _measure_pair(loaders: Sequence[Any], batches: int, batch_size: int, repeat: int) -> LoaderPair:
    seconds = [0.0, 0.0]
    counts: Counter[str] = Counter()
    for index in (0, 1) if repeat % 2 == 0 else (1, 0):
        _seed_everything(repeat)
        for _ in range(batches):
            started = time.process_time()
            batch = next(loaders[index])
            seconds[index] += time.process_time() - started
            counts.update(batch.get(REPORT_KEY, {}).get("counts", {}))
    healthy, carrying, injected = (counts[name] for name in ("healthy_samples", "carrying", "injected"))
    return LoaderPair(batches * batch_size, seconds[0], seconds[1], healthy, carrying, injected)


def _seed_everything(seed: int) -> None:
    """Seed the global streams that nnU-Net's loader and transforms draw from; the injection has its own."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
