"""The whole measurement and its table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_difftumor import __version__
from nnunet_difftumor.trainer.overhead.epochs import EpochCosts, measure_epochs
from nnunet_difftumor.trainer.overhead.loaders import LoaderCosts, measure_loaders
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, surroundings


@dataclass(frozen=True)
class Overhead:
    """All that was measured, and on what; as a dict the content of benchmark_overhead.json.

    Attributes:
        patch_size: The network's patch in voxels. (D, H, W).
        epoch: Short epochs of baseline and trainer; None if they were not measured.
        workers: nnU-Net's workers in the epochs.
    """

    versions: dict[str, str]
    machine: dict[str, str | int | None]
    training: TrainingChoice
    batch_size: int
    patch_size: tuple[int, ...]
    loader: LoaderCosts
    epoch: tuple[EpochCosts, EpochCosts] | None
    workers: int


def measure_overhead(
    choice: TrainingChoice, *, samples: int, repeats: int, iterations: int, epochs: int, device: str
) -> Overhead:
    """Measure loaders and epochs of a training; nothing is written into the user's nnUNet_results.

    Args:
        iterations: Training iterations of a short epoch; 0 measures no epoch.
    """
    with surroundings():
        loader, batch_size, patch_size = measure_loaders(choice, samples=samples, repeats=repeats)
        pair = measure_epochs(choice, device=device, iterations=iterations, epochs=epochs) if iterations else None
    versions = {name: importlib.metadata.version(name) for name in ("nnunetv2", "torch")}
    used = None if pair is None else torch.cuda.get_device_name() if device == "cuda" else device
    return Overhead(
        versions={"nnunet-difftumor": __version__, **versions},
        machine={"cpu": _cpu_name(), "cores": _cores(), "device": used},
        training=choice,
        batch_size=batch_size,
        patch_size=patch_size,
        loader=loader,
        epoch=pair,
        workers=get_allowed_n_proc_DA(),
    )


def describe(overhead: Overhead) -> str:
    """Return the figures as a table for the screen."""
    loader, choice, machine = overhead.loader, overhead.training, overhead.machine
    samples = sum(pair.samples for pair in loader.pairs)
    lines = [
        f"{choice.configuration}, {choice.plans}: patch {' x '.join(map(str, overhead.patch_size))}, "
        f"batch {overhead.batch_size}; {machine['cpu']}, {machine['cores']} cores",
        "",
        f"Loader, CPU-seconds per sample on one thread: median (range) of {len(loader.pairs)} pairs in turns, "
        f"{samples} samples each",
        f"  {choice.baseline:32s}{loader.baseline_cpu_seconds_per_sample!s:>24s}",
        f"  {choice.trainer:32s}{loader.trainer_cpu_seconds_per_sample!s:>24s}",
        f"  {'ratio':32s}{loader.ratio!s:>24s}",
        f"  {'per injected sample':32s}{loader.cpu_seconds_per_injected_sample or 'no sample was injected'!s:>24s}",
        f"  tumours in {loader.injected_share:.1%} of the samples, in the case of {loader.carrying_share:.1%}",
    ]
    if overhead.epoch is None:
        return "\n".join(lines)
    lines += [
        "",
        f"Epoch of {overhead.epoch[0].iterations} training iterations on {machine['device']}, "
        f"{overhead.workers} workers, seconds: median (range) of {overhead.epoch[0].epochs}",
        f"  {'':32s}{'epoch':>24s}{'waited for batches':>24s}{'share':>8s}",
    ]
    for name, epochs in zip((choice.baseline, choice.trainer), overhead.epoch, strict=True):
        lines.append(
            f"  {name:32s}{epochs.epoch_seconds!s:>24s}{epochs.waited_seconds!s:>24s}{epochs.waited_share:>8.1%}"
        )
    if machine["device"] == "cpu":
        lines.append("  On a CPU the training takes the workers' cores; this says nothing about a GPU.")
    return "\n".join(lines)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
