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
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from nnunet_difftumor.injection.data_loader import REPORT_KEY
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, quiet


@dataclass(frozen=True)
class Spread:
    """Median and range of repetitions.

    Attributes:
        median: Median.
        lowest: Smallest repetition.
        highest: Largest repetition.
    """

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
    """One repetition: the same random numbers with and without synthetic tumours.

    Attributes:
        samples: Samples of each loader.
        baseline_s: CPU-seconds of the baseline's loader.
        trainer_s: CPU-seconds of the trainer's loader.
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
    """Cost of both loaders.

    Attributes:
        batch_size: Samples in a batch.
        patch_size: The network's patch in voxels. (D, H, W).
        pairs: Repetitions.
    """

    batch_size: int
    patch_size: tuple[int, ...]
    pairs: tuple[LoaderPair, ...]

    @property
    def baseline(self) -> Spread:
        """CPU-seconds per sample of the baseline."""
        return Spread.of([pair.baseline_s / pair.samples for pair in self.pairs])

    @property
    def trainer(self) -> Spread:
        """CPU-seconds per sample of the trainer."""
        return Spread.of([pair.trainer_s / pair.samples for pair in self.pairs])

    @property
    def ratio(self) -> Spread:
        """Trainer over baseline, by pair."""
        return Spread.of([pair.trainer_s / pair.baseline_s for pair in self.pairs])

    @property
    def injected_share(self) -> float:
        """Share of the samples that show an injected tumour."""
        return sum(pair.injected for pair in self.pairs) / sum(pair.samples for pair in self.pairs)

    @property
    def carrying_share(self) -> float:
        """Share of the samples whose case carries synthetic tumours."""
        return sum(pair.carrying for pair in self.pairs) / sum(pair.samples for pair in self.pairs)

    @property
    def injected(self) -> Spread | None:
        """CPU-seconds that an injected sample costs more, attempts that failed included; None if there is none."""
        costs = [(pair.trainer_s - pair.baseline_s) / pair.injected for pair in self.pairs if pair.injected]
        return Spread.of(costs) if costs else None


def measure_loaders(choice: TrainingChoice, *, samples: int, repeats: int) -> LoaderCosts:
    """Measure both loaders in this process with one thread, within `surroundings`.

    Both loaders of a pair start from the same random numbers, so that they draw the same cases and augmentations;
    only samples with tumours have other crops. Which loader comes first alternates. One pair more is made at the
    start and not counted.

    Args:
        choice: Which training.
        samples: Samples of each loader in a pair, rounded up to whole batches.
        repeats: Pairs.

    Returns:
        The costs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with temporary_environment(nnUNet_n_proc_DA="0"):
            baseline, trainer = make_trainers(choice, "cpu")
            _seed_everything(0)  # a first batch is made at once
            with quiet():
                loaders = [each.get_dataloaders()[0] for each in (baseline, trainer)]
        batches = -(-samples // trainer.batch_size)
        bar = tqdm(range(repeats + 1), desc="loaders, in turns")
        pairs = [_measure_pair(loaders, batches, trainer.batch_size, repeat) for repeat in bar]
    finally:
        torch.set_num_threads(threads)
    return LoaderCosts(trainer.batch_size, patch_size_of(trainer), tuple(pairs[1:]))


def patch_size_of(trainer: nnUNetTrainer) -> tuple[int, ...]:
    """Return the patch that a trainer's network sees, in voxels."""
    configuration: Any = trainer.configuration_manager
    return tuple(int(size) for size in configuration.patch_size)


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
    return LoaderPair(
        samples=batches * batch_size,
        baseline_s=seconds[0],
        trainer_s=seconds[1],
        healthy=counts["healthy_samples"],
        carrying=counts["carrying"],
        injected=counts["injected"],
    )


def _seed_everything(seed: int) -> None:
    """Seed the global streams that nnU-Net's loader and transforms draw from; the injection has its own."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
