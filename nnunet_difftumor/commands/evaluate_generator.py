"""`difftumor evaluate-generator`: compare generated with real tumours."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "compare generated with real tumours on cases that it never saw"
DESCRIPTION = """Replace the real tumours of held-out cases by generated ones and compare their HU.

Neither the tissue inside the tumour nor its noise reaches the generated one. Writes into --output:
  inplace.json  mean, standard deviation and Wasserstein distance in HU, beside the same fill without
                diffusion and a constant
  inplace.png   real and generated, in three planes"""
EXAMPLE = (
    "difftumor evaluate-generator --generator dm/generator --data nnUNet_raw/Dataset901_Phantom "
    "--splits splits_final.json --fold 0 --output evaluation"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: Parser of the subcommand.
    """
    parser.add_argument("--generator", type=Path, required=True, metavar="DIR", help="generator folder")
    parser.add_argument("--data", type=Path, required=True, metavar="RAW_DATASET", help="nnU-Net raw data set")
    parser.add_argument("--splits", type=Path, metavar="FILE", help="splits_final.json")
    parser.add_argument("--fold", type=int, metavar="K", help="evaluate the validation cases of this fold")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--steps", type=int, default=4, metavar="T", help="denoising steps (default 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the generated tumours")
    parser.add_argument("--overwrite", action="store_true", help="replace results in --output")


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Args:
        options: Parsed arguments.

    Returns:
        0.
    """
    from nnunet_difftumor.generator_evaluation import evaluate_generator

    summary = evaluate_generator(
        options.generator,
        options.data,
        options.output,
        splits_path=options.splits,
        fold=options.fold,
        steps=options.steps,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    print(f"{'':36s}{'mean HU':>9s}{'sd in case':>12s}{'Wasserstein':>13s}")
    for name, row in summary["rows"].items():
        print(f"{name:36s}{row['mean_hu']:9.1f}{row['within_case_sd_hu']:12.1f}{row['wasserstein_hu']:13.1f}")
    print(f"Look at {options.output / 'inplace.png'}.")
    return 0
