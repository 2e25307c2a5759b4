"""`difftumor calibrate`: fewer false alarms of a trained network, measured on healthy scans."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

DESCRIPTION = """Choose how certain a trained network must be of a tumour, by its false alarms in healthy scans.

Synthetic tumours make a network find more, and raise more false alarms. Many of those are tumours that it is not
sure of. Take scans without any tumour that did not train it, predict them, and say how many false alarms a scan
you accept:

  nnUNetv2_predict -d 7 -c 3d_fullres -f 0 -tr nnUNetTrainerDiffTumor -i healthy -o predicted --save_probabilities
  difftumor calibrate --model $nnUNet_results/Dataset007_Pancreas/nnUNetTrainerDiffTumor__nnUNetPlans__3d_fullres \\
    -f 0 --predictions predicted --false-positives 0.25
  nnUNetv2_predict -d 7 -c 3d_fullres -f 0 -tr nnUNetTrainerDiffTumor -chk checkpoint_calibrated.pth -i IMAGES -o OUT

Writes fold_K/checkpoint_calibrated.pth: the same network, with a lower constant for the tumour in its last layer,
so that stock nnU-Net predicts with it at no cost. Fainter tumours are lost with the false alarms: compare both
checkpoints on annotated scans (difftumor compare), and use more healthy scans where few false alarms decide.

nnU-Net's checkpoints are pickles, and are read as nnU-Net reads them: calibrate only what you trained or trust."""
EXAMPLE = "difftumor calibrate --model $M -f 0 --predictions healthy_predicted --false-positives 0.25"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="folder TRAINER__PLANS__CONFIGURATION")
    add("-f", "--folds", nargs="+", metavar="K", help="folds that predicted (default: all that have the checkpoint)")
    predictions = "what these folds predict in scans without any tumour, with --save_probabilities"
    add("--predictions", type=Path, required=True, metavar="DIR", help=predictions)
    most = "most false alarms a scan that may be left (default 0.25)"
    add("--false-positives", type=float, default=0.25, metavar="N", help=most)
    tumor_label = "names or values of the tumour labels (default: all whose names say so)"
    add("--tumor-label", nargs="+", default=[], metavar="LABEL", help=tumor_label)
    checkpoint = "which checkpoint predicted (default checkpoint_final.pth)"
    add("--checkpoint", default="checkpoint_final.pth", metavar="NAME", help=checkpoint)
    add("--overwrite", action="store_true", help="replace checkpoint_calibrated.pth")


def run(options: argparse.Namespace) -> int:
    """Measure, choose, write."""
    from nnunet_difftumor.errors import ConfigurationError
    from nnunet_difftumor.evaluation.operating_point import choose_operating_point, measure_operating_points
    from nnunet_difftumor.evaluation.scoring.scheme import read_label_scheme
    from nnunet_difftumor.trainer.export.calibration import CALIBRATED_CHECKPOINT, write_shifted
    from nnunet_difftumor.trainer.export.trained_model import find_folds

    if not options.false_positives >= 0:
        raise ConfigurationError(f"--false-positives must be a number from 0 on, got {options.false_positives}.")
    folds = find_folds(options.model, options.folds, options.checkpoint)
    scheme = read_label_scheme(options.model / "dataset.json", options.tumor_label)
    points = measure_operating_points(options.predictions, scheme)
    chosen = choose_operating_point(points, options.false_positives)
    print(f"{'shift':>6s}{'false alarms a scan':>21s}{'scans without':>15s}")
    last = None
    for point in points:
        if point is chosen or (point.false_positives, point.clear) != last:
            mark = "  <- chosen" if point is chosen else ""
            rate = point.false_positives / point.scans
            print(f"{point.shift:6.2f}{rate:21.2f}{f'{point.clear} of {point.scans}':>15s}{mark}")
        last = point.false_positives, point.clear
    channels = sorted({label.channel for label in scheme.tumors})
    for fold in folds:
        written = write_shifted(
            options.model / f"fold_{fold}",
            options.checkpoint,
            channels,
            chosen.shift,
            of=scheme.channels,
            overwrite=options.overwrite,
        )
        print(f"Wrote {written}.")
    words = ["nnUNetv2_predict_from_modelfolder", "-m", str(options.model), "-f", *folds]
    print(f"Predict: {shlex.join([*words, '-chk', CALIBRATED_CHECKPOINT, '-i', 'IMAGES', '-o', 'PREDICTIONS'])}")
    return 0
