"""`difftumor compare`: several models in several hospitals, with statistics and a report."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Compare models over hospitals, with the patient as the unit.

EXPERIMENT.yaml names hospitals (folders of images and labels) and models (trained nnU-Net folders, or folders
of predictions or of scores). What is missing is predicted and scored; an interrupted run goes on where it was.
Writes into --output:
  report.html      tables, forest plots, a draft methods paragraph, tables to copy; one self-contained page
  arms.csv, differences.csv, seeds.csv  every figure, unrounded
  cases.csv, tumors.csv  the scans and tumours that they are computed from
  tables/          the tables of the report as CSV and LaTeX
  figures/         its pictures as PNG
  summary.json     what was compared and how
  predictions/, scores/  kept, so that nothing is done twice

A small experiment:

  hospitals:
    - {name: Aachen, images: aachen/imagesTs, labels: aachen/labelsTs}
    - {name: Bern, images: bern/imagesTs, labels: bern/labelsTs}
  models:
    - {arm: nnU-Net, trained: nnUNet_results/Dataset007_Pancreas/nnUNetTrainer__nnUNetPlans__3d_fullres}
    - {arm: with synthetic tumours, predictions: "predictions/{hospital}"}
  metadata: patients.csv    # case, patient, hospital, age, sex, phase, scanner"""
EXAMPLE = "difftumor compare experiment.yaml --output comparison"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("experiment", type=Path, metavar="EXPERIMENT.yaml", help="what to compare")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--check", action="store_true", help="check the experiment, say what is to predict, and stop")
    add("--overwrite", action="store_true", help="replace report and tables in --output")


def run(args: argparse.Namespace) -> int:
    """Run the comparison."""
    from nnunet_difftumor.errors import list_some
    from nnunet_difftumor.evaluation.comparison.report.page import REPORT_FILE
    from nnunet_difftumor.evaluation.comparison.run import compare, plan
    from nnunet_difftumor.evaluation.comparison.text import show_estimate, show_p_value

    if args.check:
        for (model, hospital), cases in plan(args.experiment, args.output).items():
            print(f"{model}, {hospital}: {len(cases)} scans to predict{f' ({list_some(cases)})' if cases else ''}")
        print(f"{args.experiment} is well formed.")
        return 0
    for figure in compare(args.experiment, args.output, overwrite=args.overwrite):
        text = show_estimate(figure.estimate, signed=bool(figure.baseline))
        p_value = f"; p after Holm {show_p_value(figure.p_holm)}" if figure.baseline else ""
        print(f"{figure.measure.title}, {figure.label}, {figure.name}: {text}{p_value}")
    print(f"Look at {args.output / REPORT_FILE}.")
    return 0
