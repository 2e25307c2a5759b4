"""`difftumor benchmark-overhead`: what synthetic tumours cost a training on this machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DESCRIPTION = """Measure what synthetic tumours cost nnU-Net's training, on your preprocessed data and machine.

First the training loaders of stock nnU-Net and of the trainer, in one process with one thread and in turns, from
the same random numbers: CPU-seconds per sample, and what an injected sample costs more. Then short epochs of both
trainers with nnU-Net's workers on --device: their time, and how much of it the training loop waited for batches.

Settings are those that the trainer would take; --injection-probability takes another one. Nothing is written into
nnUNet_results, and no split is made: both trainers get the same cases. Keep the machine free meanwhile."""
EXAMPLE = "difftumor benchmark-overhead -d 7 -c 3d_fullres --device cuda --output benchmark"

RESULT_NAME = "benchmark_overhead.json"
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    trainer, stock = "nnUNetTrainerDiffTumor", "nnUNetTrainer"
    add("-d", "--dataset", required=True, metavar="ID", help="nnU-Net data set: number or full name")
    add("-c", "--configuration", default="3d_fullres", metavar="NAME", help="default 3d_fullres")
    add("-p", "--plans", default="nnUNetPlans", metavar="NAME", help="default nnUNetPlans")
    add("-f", "--fold", default="0", metavar="K", help="fold, a number or all (default 0)")
    add("-tr", "--trainer", default=trainer, metavar="NAME", help=f"with tumours (default {trainer})")
    add("--baseline", default=stock, metavar="NAME", help=f"compared with (default {stock})")
    add("--samples", type=int, default=40, metavar="N", help="samples a loader and pair (default 40)")
    add("--repeats", type=int, default=5, metavar="R", help="pairs in turns (default 5)")
    iterations = "training iterations of a short epoch (default 30; 0 measures the loaders only)"
    add("--iterations", type=int, default=30, metavar="N", help=iterations)
    add("--epochs", type=int, default=2, metavar="E", help="short epochs of each trainer (default 2)")
    add("--device", default="cuda", choices=["cuda", "cpu", "mps"], help="of the epochs (default cuda)")
    add("--injection-probability", type=float, metavar="P", help="in place of the one in your settings")
    add("--output", type=Path, metavar="DIR", help=f"write {RESULT_NAME} into this folder")
    add("--overwrite", action="store_true", help=f"replace {RESULT_NAME} in --output")


def run(options: argparse.Namespace) -> int:
    """Measure, print and write."""
    for name in _ONE_THREAD:  # before numpy is imported: threads that wait for one another cost CPU-seconds too
        os.environ.setdefault(name, "1")
    from dataclasses import fields

    import torch

    from nnunet_difftumor.errors import ConfigurationError, OutputExistsError
    from nnunet_difftumor.support.files.atomic_files import write_json
    from nnunet_difftumor.trainer.overhead.measurement import describe, measure_overhead
    from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice

    for name, least in (("samples", 1), ("repeats", 1), ("epochs", 1), ("iterations", 0)):
        if getattr(options, name) < least:
            raise ConfigurationError(f"--{name} must be {least} or more, got {getattr(options, name)}.")
    if options.iterations and options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("There is no GPU that PyTorch can use. Take --device cpu, or --iterations 0.")
    path = None if options.output is None else options.output / RESULT_NAME
    if path is not None and path.exists() and not options.overwrite:
        raise OutputExistsError(f"{path} exists already; name another folder, or replace it with --overwrite.")
    amounts = {name: getattr(options, name) for name in ("samples", "repeats", "iterations", "epochs", "device")}
    choice = TrainingChoice(**{field.name: getattr(options, field.name) for field in fields(TrainingChoice)})
    figures = measure_overhead(choice, **amounts)
    print(describe(figures))
    if path is not None:
        write_json(path, figures, overwrite=options.overwrite)
        print(f"\nWrote {path}")
    return 0
