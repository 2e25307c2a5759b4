"""`difftumor calibrate`: how certain a network must be of a tumour, measured on healthy scans."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Choose how certain a trained network must be of a tumour, by its false alarms in scans without any.

Synthetic tumours make a network find more, and raise more false alarms. Many of those are tumours that it is less
sure of than of true ones. Predict scans without any tumour that did not train the network, and say how many false
alarms a scan you accept:

  nnUNetv2_predict -d 7 -c 3d_fullres -f 0 -tr nnUNetTrainerDiffTumor -i healthy -o predicted --save_probabilities
  difftumor calibrate --predictions predicted --false-positives 0.25 --output certainty.json

Writes --output, from which `difftumor drop-uncertain` takes the certainty. It belongs to this network, or to this
ensemble of folds."""
EXAMPLE = "difftumor calibrate --predictions healthy_predicted --false-positives 0.25 --output certainty.json"

_STEPS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    predictions = "what the network predicts in scans without any tumour: nnUNetv2_predict --save_probabilities"
    add("--predictions", type=Path, required=True, metavar="DIR", help=predictions)
    most = "most false alarms a scan that may be left (default 0.25)"
    add("--false-positives", type=float, default=0.25, metavar="N", help=most)
    tumor_label = "names or values of the tumour labels (default: all whose names say so)"
    add("--tumor-label", nargs="+", default=[], metavar="LABEL", help=tumor_label)
    add("--output", type=Path, required=True, metavar="FILE", help="certainty.json")
    add("--overwrite", action="store_true", help="replace --output")


def run(options: argparse.Namespace) -> int:
    """Measure, choose, write."""
    from tqdm import tqdm

    from nnunet_difftumor.errors import ConfigurationError, OutputExistsError
    from nnunet_difftumor.evaluation.scoring.certainty import PredictionFolder, choose_certainty
    from nnunet_difftumor.support.files.atomic_files import write_json

    if not options.false_positives >= 0:
        raise ConfigurationError(f"--false-positives must be a number from 0 on, got {options.false_positives}.")
    if options.output.exists() and not options.overwrite:
        raise OutputExistsError(f"{options.output} exists already. Choose another --output, or add --overwrite.")
    predictions = PredictionFolder(options.predictions, options.tumor_label)
    found = [predictions.certainties(case) for case in tqdm(predictions.maps, unit="scan")]
    chosen, scans = choose_certainty(found, options.false_positives), len(found)
    every = sorted(value for scan in found for value in scan)
    steps = sorted({0.0, chosen, *every[:: max(1, len(every) // _STEPS)]})
    print(f"{'certainty':>9s}{'false alarms a scan':>21s}{'scans without':>15s}")
    for step in steps:
        left, clear = sum(value > step for value in every), sum(not any(v > step for v in scan) for scan in found)
        mark = "  <- chosen" if step == chosen else ""
        print(f"{step:9.2f}{left / scans:21.2f}{f'{clear} of {scans}':>15s}{mark}")
    content = {
        "certainty": chosen,
        "tumor_labels": [label.name for label in predictions.scheme.tumors],
        "false_positives_wanted": options.false_positives,
        "false_positives_left": sum(value > chosen for value in every) / scans,
        "scans": scans,
    }
    write_json(options.output, content, overwrite=options.overwrite)
    print(f"Wrote {options.output}. Next: difftumor drop-uncertain --certainty {options.output} --predictions DIR ...")
    return 0
