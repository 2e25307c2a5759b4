"""`difftumor score`: score predicted label maps against reference ones."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_difftumor.commands.dataset_arguments import raw_folder
from nnunet_difftumor.evaluation.scoring.rules import CONFIDENCES

DESCRIPTION = """Score predicted label maps against reference ones, case by case and tumour by tumour.

Writes into --output:
  summary.json     figures of every label: Dice, surface distance; for tumours sensitivity by size with
                   Wilson intervals, false positives per case, precision, F1, panoptic quality, specificity
                   on healthy scans; with --probabilities FROC, average precision, patient-level AUROC
  cases.csv        one row a case and label
  tumors.csv       one row a reference tumour
  predictions.csv  one row a predicted tumour
  specificity.csv, roc.csv, froc.csv  the whole curves
  errors.csv       cases that could not be scored, and why; the exit status is 1 then

Every rule is in docs/how-to/score.md."""
EXAMPLE = (
    "difftumor score -d 7 --reference labelsTs --prediction predictions --probabilities predictions --output scores"
)

_ROW = "{:20s}{:>9s}{:>10s}{:>26s}{:>12s}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    dataset = "nnU-Net data set whose dataset.json names the labels: number or full name in nnUNet_raw, or a folder"
    add("-d", "--dataset", metavar="ID", help=dataset)
    reference = "reference label maps (default: labelsTr of -d; a folder that is not here is looked for in -d)"
    add("--reference", type=Path, metavar="DIR", help=reference)
    add("--prediction", type=Path, required=True, metavar="DIR", help="predicted label maps")
    probabilities = (
        "tumour probabilities: CASE.npz of nnUNetv2_predict --save_probabilities (may be the folder of "
        "--prediction), or images CASE.nii.gz or CASE_LABEL.nii.gz"
    )
    add("--probabilities", type=Path, metavar="DIR", help=probabilities)
    labels = "dataset.json that names the labels (default: that of -d, else the one beside --reference)"
    add("--labels", type=Path, metavar="FILE", help=labels)
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    tumor_label = "names or values of the tumour labels (default: all whose names say so)"
    add("--tumor-label", nargs="+", default=[], metavar="LABEL", help=tumor_label)
    add("--organ-label", metavar="LABEL", help="name or value of the organ for --organ-filter (default: inferred)")
    organ_filter = (
        "score a second time, into organ_filter/, without predicted tumours that lie outside the organ of "
        "the reference, of the prediction, or of the masks in a folder (default: no filter)"
    )
    add("--organ-filter", metavar="SOURCE", help=organ_filter)
    confidence = "score of a predicted tumour from its probabilities (default max)"
    add("--confidence", choices=CONFIDENCES, default=CONFIDENCES[0], help=confidence)
    add("--only-predicted", action="store_true", help="leave out cases without a prediction, and list them")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a core)")
    add("--overwrite", action="store_true", help="replace results in --output")


def run(options: argparse.Namespace) -> int:
    """Score; 1 unless every case was scored."""
    from nnunet_difftumor.errors import ConfigurationError
    from nnunet_difftumor.evaluation.scoring.case import OrganFilter
    from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
    from nnunet_difftumor.evaluation.scoring.run import ScoringRequest, score_folders

    if options.workers < 1:
        raise ConfigurationError(f"--workers must be 1 or more, got {options.workers}.")
    reference, labels = _reference(options)
    request = ScoringRequest(
        reference=reference,
        prediction=options.prediction,
        labels=labels,
        probabilities=options.probabilities,
        tumor_labels=tuple(options.tumor_label),
        organ_label=options.organ_label,
        organ_filter=OrganFilter(options.organ_filter) if options.organ_filter else None,
        only_predicted=options.only_predicted,
        rules=ScoringRules(confidence=options.confidence),
    )
    scores = score_folders(
        request, options.output, workers=options.workers, overwrite=options.overwrite, show_progress=True
    )
    for name, figures in scores.summary["labels"].items():
        _print_label(name, figures)
    print(f"{len(scores.cases)} cases scored; look at {options.output / 'summary.json'}.")
    if scores.errors:
        print(f"{len(scores.errors)} cases could not be scored ({options.output / 'errors.csv'}):")
        for error in scores.errors[:5]:
            print(f"  {error.case}: {error.error}: {error.message}")
    return 1 if scores.errors else 0


def _reference(options: argparse.Namespace) -> tuple[Path, Path]:
    """The reference label maps, and the file that names their labels."""
    from nnunet_difftumor.errors import ConfigurationError

    reference, labels = options.reference, options.labels
    if options.dataset is not None:
        dataset = raw_folder(options.dataset)
        reference = dataset / "labelsTr" if reference is None else reference
        if not reference.exists() and (dataset / reference).exists():
            reference = dataset / reference
        return reference, labels or dataset / "dataset.json"
    if reference is None:
        raise ConfigurationError("What are the reference label maps? Give -d ID, or --reference DIR.")
    return reference, labels or reference.absolute().parent / "dataset.json"


def _print_label(name: str, figures: Mapping[str, Any]) -> None:
    print(
        f"{name}: Dice {_show(figures['dice_mean'])} over {figures['dice_cases']} of {figures['cases']} cases, surface "
        f"distance {_show(figures['nsd_1mm_mean'])} at 1 mm, {_show(figures['nsd_2mm_mean'])} at 2 mm"
    )
    if not figures["is_tumor"]:
        return
    print(_ROW.format("  diameter", "tumours", "found", "sensitivity (95%)", "touched"))
    for size, row in {**figures["by_equivalent_diameter"], "all": figures}.items():
        share = row["sensitivity"]
        shown = f"{share['value']:.3f} ({share['low']:.3f}-{share['high']:.3f})" if row["tumors"] else "-"
        print(_ROW.format(f"  {size}", str(row["tumors"]), str(row["detected"]), shown, str(row["touched"])))
    healthy = figures["healthy"]
    print(
        f"  false positives per case {_show(figures['false_positives_per_case'])}, precision "
        f"{_show(figures['precision']['value'])}, F1 {_show(figures['f1'])}, panoptic quality "
        f"{_show(figures['panoptic_quality'])}; {healthy['without_prediction']} of {healthy['scans']} healthy scans "
        "clear"
    )
    if figures["patient"] is not None:
        print(
            f"  average precision {_show(figures['average_precision'])}, FROC mean {_show(figures['froc']['mean'])}, "
            f"patient-level AUROC {_show(figures['patient']['auroc']['value'])}"
        )


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
