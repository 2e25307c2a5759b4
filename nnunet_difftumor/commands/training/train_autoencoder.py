"""`difftumor train-autoencoder`: stage one."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from nnunet_difftumor.commands.dataset_arguments import add_raw_dataset, find_dataset
from nnunet_difftumor.commands.training.next_steps import after_autoencoder
from nnunet_difftumor.commands.training.training_arguments import add_training_arguments

DESCRIPTION = """Train the autoencoder whose latents the tumours are made in. Any CT helps; no label is needed.

-d takes nnU-Net data sets and folders of CTs in HU (one file or folder a case, masks left out by their names).
Train one for each fold (-f): a generator that knows the validation cases is refused by the trainer.
Writes into --output:
  autoencoder/       the model, for train-diffusion
  heldout.json       reconstruction error in HU on held-out cases, beside 2x and 4x average pooling
  provenance.json    hashes of the cases that trained it, for the leak guard; cases.json: their names
  history.csv, heldout_history.csv, tensorboard/, checkpoints/

Interrupt it at any time; the same command with --c goes on."""
EXAMPLE = "difftumor train-autoencoder -d 901 -f 0 --preset tiny --output ae_fold0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_raw_dataset(parser, "nnU-Net data sets or folders of CTs", several=True)
    weights = "add a perceptual term: weights of torchvision's squeezenet1_1 as safetensors (extra: perceptual)"
    add("--perceptual-weights", type=Path, metavar="FILE", help=weights)
    add_training_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Train stage one."""
    find_dataset(options, needs_splits=options.fold is not None)
    from nnunet_difftumor.generator_training import autoencoder_run, runs

    with runs.resume_hint():
        is_heldout = autoencoder_run.train(options)
        if runs.is_main_process():
            print(_report(options, is_heldout=is_heldout))
    return 0


def _report(options: argparse.Namespace, *, is_heldout: bool) -> str:
    output = options.output
    errors = json.loads((output / "heldout.json").read_text(encoding="utf-8"))
    lines = [
        f"\nReconstruction error on {'held-out' if is_heldout else 'training'} cases, mean absolute, in HU:",
        f"{'':8s}{'autoencoder':>12s}{'2x pooling':>12s}{'4x pooling':>12s}",
    ]
    for name, row in errors.items():
        lines.append(f"{name:8s}{row['mae_hu']:12.1f}{row['mae_pool2_hu']:12.1f}{row['mae_pool4_hu']:12.1f}")
    body = errors.get("body", errors["all"])  # most of a scan is air, which any network knows
    if body["mae_hu"] > body["mae_pool2_hu"]:
        lines.append("It does not beat 2x pooling, with which it started: train longer (--steps) before you go on.")
    lines.append(f"Pictures: tensorboard --logdir {shlex.quote(str(output / 'tensorboard'))}")
    return "\n".join([*lines, after_autoencoder(options)])
