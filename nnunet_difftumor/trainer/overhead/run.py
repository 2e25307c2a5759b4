"""The whole measurement and its table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_difftumor import __version__
from nnunet_difftumor.trainer.overhead.measurement import measure_epochs, measure_loaders
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, surroundings


def measure_overhead(
    choice: TrainingChoice, *, samples: int, repeats: int, iterations: int, epochs: int, device: str
) -> dict[str, Any]:
    """Measure loaders and epochs of a training; nothing is written into the user's nnUNet_results.

    Args:
        iterations: Training iterations of a short epoch; 0 measures no epoch.

    Returns:
        The content of benchmark_overhead.json: all figures, and on what they were measured.
    """
    with surroundings():
        loader, trainer = measure_loaders(choice, samples=samples, repeats=repeats)
        pair = measure_epochs(choice, device=device, iterations=iterations, epochs=epochs) if iterations else None
    versions = {name: importlib.metadata.version(name) for name in ("nnunetv2", "torch")}
    used = None if pair is None else torch.cuda.get_device_name() if device == "cuda" else device
    return {
        "versions": {"nnunet-difftumor": __version__, **versions},
        "machine": {"cpu": _cpu_name(), "cores": _cores(), "device": used},
        "training": asdict(choice),
        "batch_size": trainer.batch_size,
        "patch_size": list(map(int, trainer.configuration_manager.patch_size)),
        "loader": loader,
        "epoch": pair,
        "workers": get_allowed_n_proc_DA(),
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
