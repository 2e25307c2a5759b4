"""Train and measure a generator with one thing changed at a time; writes ablation.csv and ablation.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_difftumor.ablation import TRAININGS, AblationData, run_ablation


def main() -> int:
    """Run the ablation."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} Run it again to go on after an interruption.",
        epilog="example: python scripts/ablate_generator.py --data nnUNet_raw/Dataset902_SoftTissue --autoencoder ae "
        "--splits splits_final.json --fold 0 --output ablation --steps 600",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="RAW_DATASET", help="annotated tumours")
    parser.add_argument("--autoencoder", type=Path, required=True, metavar="DIR", help="--output of train-autoencoder")
    parser.add_argument("--splits", type=Path, required=True, metavar="FILE", help="splits_final.json")
    parser.add_argument("--fold", type=int, required=True, metavar="K", help="its validation cases are measured")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for everything")
    parser.add_argument("--preset", default="tiny", help="preset of the diffusion model (default tiny)")
    parser.add_argument("--steps", type=int, default=600, metavar="N", help="training steps of each (default 600)")
    parser.add_argument(
        "--classifier-steps", type=int, default=0, metavar="N", help="of the classifier (default: none)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of training and evaluation")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(training.name for training in TRAININGS))
    options = parser.parse_args()
    data = AblationData(
        dataset=options.data,
        autoencoder=options.autoencoder,
        splits=options.splits,
        fold=options.fold,
        preset=options.preset,
        training_steps=options.steps,
        seed=options.seed,
    )
    table = run_ablation(data, options.output, names=options.only, classifier_steps=options.classifier_steps)
    print(table.to_string(index=False))
    print(f"Written to {options.output / 'ablation.md'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
