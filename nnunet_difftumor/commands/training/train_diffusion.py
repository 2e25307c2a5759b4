"""`difftumor train-diffusion`: stage two."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from nnunet_difftumor.commands.dataset_arguments import add_label_names, add_raw_dataset, find_dataset
from nnunet_difftumor.commands.training.next_steps import after_diffusion
from nnunet_difftumor.commands.training.training_arguments import add_training_arguments

DESCRIPTION = """Train the diffusion model that draws tumours, from CTs with annotated tumours.

-d takes nnU-Net data sets whose labels name a tumour. Train one generator for each fold (-f): a generator that
knows the validation cases is refused by the trainer.
Writes into --output:
  generator/         both stages, for nnUNetTrainerDiffTumor and difftumor synthesize
  heldout.json       HU inside held-out tumours, real and generated, beside the network's input decoded: no diffusion
  provenance.json    hashes of the cases that trained both stages, for the leak guard; cases.json: names
  history.csv, heldout_history.csv, tensorboard/, checkpoints/

Interrupt it at any time; the same command with --c goes on."""
EXAMPLE = "difftumor train-diffusion -d 901 -f 0 --autoencoder ae_fold0 --preset tiny --output dm_fold0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add_raw_dataset(parser, "nnU-Net data sets with annotated tumours", several=True)
    autoencoder = "--output of train-autoencoder, a generator, or builtin:NAME"
    add("--autoencoder", type=Path, required=True, metavar="DIR", help=autoencoder)
    add_label_names(parser, organ=False)
    add("--early-only", action="store_true", help="learn from tumours of at most 10 mm radius only")
    objective = "what the denoiser predicts: rectified flow (default), v, or the paper's epsilon in plain latents"
    add("--objective", choices=("flow", "v", "epsilon"), default="flow", help=objective)
    add("--plain-latents", action="store_true", help="let the noise run in latents, not in differences from the fill")
    spacing_mm = "finest and coarsest spacing of the crops (default 1.5 6); LO = HI switches the variation off"
    add("--spacing-mm", type=float, nargs=2, metavar=("LO", "HI"), help=spacing_mm)
    add("--data-note", default="", metavar="TEXT", help="what the data are, for the model card")
    add_training_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Train stage two."""
    find_dataset(options, needs_splits=options.fold is not None)
    from nnunet_difftumor.generator_training import diffusion_run, runs

    with runs.resume_hint():
        is_heldout = diffusion_run.train(options)
        if runs.is_main_process():
            print(_report(options, is_heldout=is_heldout))
    return 0


def _report(options: argparse.Namespace, *, is_heldout: bool) -> str:
    output = options.output
    generator = output / "generator"
    statistics = json.loads((output / "heldout.json").read_text(encoding="utf-8"))
    lines = [
        f"\nHU inside the real tumours' masks, {'held-out' if is_heldout else 'training'} cases, no compositing:",
        f"{'':16s}{'mean':>8s}{'sd in a tumour':>16s}{'Wasserstein to real':>21s}",
    ]
    for kind, row in statistics.items():
        name = {"fill_only": "no diffusion", "reconstruction": "autoencoder"}.get(kind, kind)
        lines.append(f"{name:16s}{row['mean_hu']:8.1f}{row['crop_sd_hu']:16.1f}{row['wasserstein_hu']:21.1f}")
    lines.append(f"Generator: {generator}")
    lines.append(f"Pictures: tensorboard --logdir {shlex.quote(str(output / 'tensorboard'))}")
    return "\n".join([*lines, after_diffusion(options)])
