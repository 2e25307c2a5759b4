"""`difftumor drop-uncertain`: predictions without the tumours that the network is not certain of."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Write predictions again, without the tumours that the network is not certain enough of.

A predicted tumour stays or goes as a whole: it stays if its most certain voxel is more certain than what `difftumor
calibrate` found to be needed. Where one goes, the next probable label takes its place.

  nnUNetv2_predict -d 7 -c 3d_fullres -f 0 -tr nnUNetTrainerDiffTumor -i imagesTs -o predicted --save_probabilities
  difftumor drop-uncertain --predictions predicted --certainty certainty.json --output final"""
EXAMPLE = "difftumor drop-uncertain --predictions predicted --certainty certainty.json --output final"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    predictions = "predictions of nnUNetv2_predict --save_probabilities, by the network that was calibrated"
    add("--predictions", type=Path, required=True, metavar="DIR", help=predictions)
    add("--certainty", type=Path, required=True, metavar="FILE", help="what difftumor calibrate wrote")
    add("--output", type=Path, required=True, metavar="DIR", help="new folder for the label maps")


def run(options: argparse.Namespace) -> int:
    """Drop them."""
    from nnunet_difftumor.evaluation.scoring.certainty import PredictionFolder, drop_uncertain, read_certainty

    certainty, tumor_labels = read_certainty(options.certainty)
    predictions = PredictionFolder(options.predictions, tumor_labels)
    kept, dropped = drop_uncertain(predictions, certainty, options.output)
    print(f"Wrote {options.output}: {len(predictions.maps)} scans, {kept} tumours kept, {dropped} dropped.")
    return 0
