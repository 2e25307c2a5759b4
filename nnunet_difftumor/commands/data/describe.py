"""`difftumor describe`: where the visible edge of annotated tumours lies against their labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_difftumor.commands.dataset_arguments import add_label_names, add_raw_dataset, find_dataset

DESCRIPTION = """Measure the annotated tumours of an nnU-Net raw data set against their labels: readers do not draw the
outline where the contrast has fallen to a half, and each data set has its own habit. A network learns it from the
labels, so synthetic tumours should have it too.

For each tumour, a model of host, tumour and the edge between them is fitted to the CT, with the thickness of the slices
in it; neighbouring organs, fat, vessels and other tumours are left out. Pooled by diameter (below 10, 10 to 20, 20 mm
and more), with 95% intervals over patients:
  offset  signed distance from the label's outline at which half of the depth is reached; negative: the visible edge
          lies inside the label (a generous reader)
  width   distance over which the depth falls from three quarters to a quarter, blur of the scanner within a slice
          included
  depth   HU in the middle of the tumour minus HU of the host (median over patients)
Tumours that differ from their host by less than 5 HU or five standard errors are listed, and tell nothing of this.

Writes into --output: sizes.csv, profile.csv (contrast by millimetre), tumors.csv, edges.json and profile.png."""
EXAMPLE = "difftumor describe -d 901 --output edges_901"

_FEW_PATIENTS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add_raw_dataset(parser, "nnU-Net data set")
    add("--output", type=Path, required=True, metavar="DIR", help="new folder for tables and plot")
    add_label_names(parser, organ=True)
    pattern = "regular expression that finds the patient in the case identifier (default: every case is a patient)"
    add("--group-pattern", metavar="REGEX", help=pattern)


def run(args: argparse.Namespace) -> int:
    """Measure, write and print."""
    from nnunet_difftumor.ct.datasets import load_raw_dataset
    from nnunet_difftumor.ct.label_roles import LabelRoles, resolve_label_roles
    from nnunet_difftumor.description.tumors import describe_dataset, write_description
    from nnunet_difftumor.errors import OutputExistsError

    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise OutputExistsError(f"--output {args.output} exists already; choose another name or remove it first.")
    find_dataset(args, needs_splits=False)
    dataset = load_raw_dataset(args.data[0], needs_labels=False)
    labels = dataset.options["labels"]
    roles = LabelRoles.of_dataset(labels, *resolve_label_roles(labels, args.organ_label, args.tumor_label))
    description = describe_dataset(dataset, roles, args.group_pattern)
    write_description(description, dataset, roles, args.output)
    measured, patients = len(description.tumors), len(set(description.tumors["patient"]))
    clear = sum(description.tumors["is_clear"])
    print(
        f"{measured} of {description.annotated} annotated tumours measured, in {patients} patients; {clear} stand out."
    )
    print(f"{'diameter':17} {'tumours':>7} {'clear':>5} {'patients':>8}  {'offset mm':22} {'width mm':20} depth HU")
    rows: list[dict[str, Any]] = description.sizes.to_dict("records")
    for row in rows:
        print(
            f"{row['size']:17} {row['tumors']:7} {row['clear_tumors']:5} {row['patients']:8}  "
            f"{row['offset_mm']:+.1f} ({row['offset_low_mm']:+.1f} to {row['offset_high_mm']:+.1f})    "
            f"{row['width_mm']:.1f} ({row['width_low_mm']:.1f} to {row['width_high_mm']:.1f})   "
            + (f"{row['depth_hu']:+.0f}" if row["clear_tumors"] else "-")
        )
    print("Only clear tumours tell their edge. A size with few of them borrows from all sizes together.")
    if patients < _FEW_PATIENTS:
        print(f"{patients} patients are few: the intervals are too narrow.")
    print(f"Wrote {args.output}; look at {args.output / 'profile.png'}.")
    return 0
