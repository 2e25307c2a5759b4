"""The whole measurement, its table and its file."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_difftumor import __version__
from nnunet_difftumor.trainer.overhead.epochs import EpochCosts, measure_epochs
from nnunet_difftumor.trainer.overhead.loaders import LoaderCosts, measure_loaders
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, surroundings
from nnunet_difftumor.trainer.overhead.verdict import Verdict, judge

RESULT_NAME = "benchmark_overhead.json"


@dataclass(frozen=True)
class Overhead:
    """All that was measured.

    Attributes:
        choice: Which training.
        injection_probability: What was set in place of the user's settings; None: theirs.
        device: Device of the epochs, where they were measured.
        workers: nnU-Net's workers in the epochs.
        loaders: Costs of the loaders.
        epochs: Costs of baseline and trainer in short epochs; None if they were not measured.
        verdict: Whether the workers keep up; None without epochs.
    """

    choice: TrainingChoice
    injection_probability: float | None
    device: str
    workers: int
    loaders: LoaderCosts
    epochs: tuple[EpochCosts, EpochCosts] | None
    verdict: Verdict | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for benchmark_overhead.json."""
        loaders = self.loaders
        injected = loaders.injected
        return {
            "versions": {
                "nnunet-difftumor": __version__,
                **{name: importlib.metadata.version(name) for name in ("nnunetv2", "torch")},
            },
            "machine": {
                "cpu": _cpu_name(),
                "cores": _cores(),
                "device": None if self.epochs is None else _device_name(self.device),
            },
            "training": {**asdict(self.choice), "injection_probability": self.injection_probability},
            "batch_size": loaders.batch_size,
            "patch_size": list(loaders.patch_size),
            "loader": {
                "baseline_cpu_seconds_per_sample": asdict(loaders.baseline),
                "trainer_cpu_seconds_per_sample": asdict(loaders.trainer),
                "ratio": asdict(loaders.ratio),
                "carrying_share": loaders.carrying_share,
                "injected_share": loaders.injected_share,
                "cpu_seconds_per_injected_sample": None if injected is None else asdict(injected),
                "pairs": [asdict(pair) for pair in loaders.pairs],
            },
            "epoch": None if self.epochs is None else [_epoch_json(epochs) for epochs in self.epochs],
            "workers": self.workers,
            "verdict": None if self.verdict is None else asdict(self.verdict),
        }


def measure_overhead(
    choice: TrainingChoice,
    *,
    samples: int,
    repeats: int,
    iterations: int,
    epochs: int,
    device: str,
    injection_probability: float | None = None,
) -> Overhead:
    """Measure loaders and epochs of a training; nothing is written into the user's nnUNet_results.

    Args:
        choice: Which training.
        samples: Samples of each loader in a pair.
        repeats: Pairs.
        iterations: Training iterations of a short epoch; 0 measures no epoch.
        epochs: Short epochs of each trainer.
        device: Torch device of the epochs.
        injection_probability: In place of the one in the user's settings.

    Returns:
        The figures.
    """
    with surroundings(injection_probability=injection_probability):
        loaders = measure_loaders(choice, samples=samples, repeats=repeats)
        pair = measure_epochs(choice, device=device, iterations=iterations, epochs=epochs) if iterations else None
    workers = get_allowed_n_proc_DA()
    verdict = None if pair is None else judge(loaders, *pair, workers=workers, cores=_cores())
    return Overhead(choice, injection_probability, device, workers, loaders, pair, verdict)


def describe(overhead: Overhead) -> str:
    """Return the figures as a table for the screen."""
    loaders, choice = overhead.loaders, overhead.choice
    samples = sum(pair.samples for pair in loaders.pairs)
    lines = [
        f"{choice.configuration}, {choice.plans}: patch {_times(loaders.patch_size)}, batch {loaders.batch_size}; "
        f"{_cpu_name()}, {_cores()} cores",
        "",
        f"Loader, CPU-seconds per sample on one thread: median (range) of {len(loaders.pairs)} pairs in turns, "
        f"{samples} samples each",
        f"  {choice.baseline:32s}{loaders.baseline!s:>24s}",
        f"  {choice.trainer:32s}{loaders.trainer!s:>24s}",
        f"  {'ratio':32s}{loaders.ratio!s:>24s}",
        f"  {'per injected sample':32s}{loaders.injected or 'no sample was injected'!s:>24s}",
        f"  tumours in {loaders.injected_share:.1%} of the samples, in the case of {loaders.carrying_share:.1%}",
    ]
    if overhead.epochs is not None and overhead.verdict is not None:
        lines += ["", *_epoch_lines(overhead, overhead.epochs), "", *overhead.verdict.lines]
    return "\n".join(lines)


def _epoch_lines(overhead: Overhead, pair: tuple[EpochCosts, EpochCosts]) -> list[str]:
    iterations, count = pair[0].iterations, len(pair[0].epochs)
    lines = [
        f"Epoch of {iterations} training iterations on {_device_name(overhead.device)}, {overhead.workers} workers, "
        f"seconds: median (range) of {count}",
        f"  {'':32s}{'epoch':>24s}{'waited for batches':>24s}{'share':>8s}",
    ]
    for name, epochs in zip((overhead.choice.baseline, overhead.choice.trainer), pair, strict=True):
        lines.append(f"  {name:32s}{epochs.epoch!s:>24s}{epochs.waited!s:>24s}{epochs.waited_share:>8.1%}")
    if overhead.device == "cpu":
        lines.append("  On a CPU the training takes the workers' cores; this says nothing about a GPU.")
    return lines


def _epoch_json(epochs: EpochCosts) -> dict[str, Any]:
    return {
        "iterations": epochs.iterations,
        "epoch_seconds": asdict(epochs.epoch),
        "waited_seconds": asdict(epochs.waited),
        "waited_share": epochs.waited_share,
        "step_seconds": epochs.step_s,
    }


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device
