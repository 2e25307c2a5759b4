"""`difftumor phantom`: a CT phantom as an nnU-Net raw data set."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Make a CT phantom of the upper abdomen: an nnU-Net raw data set (imagesTr, labelsTr, dataset.json)
with the labels background 0, liver 1 and tumor 2; with several --organs, each has its own tumour label. Tumours of the
kidney may grow out of it.

--hospital chooses scanner, kernel, slice thickness and contrast phase, so that training and test can differ as
hospitals do:
  standard      portal venous, mixed slice thickness, soft kernel
  thin-sharp    portal venous, thin slices, sharp and noisy kernel
  thick-smooth  portal venous, thick slices, little noise
  arterial      late arterial phase
  low-dose      unenhanced CT of a PET/CT, thick slices, much noise

--tumors chooses what the tumours look like:
  mixed         tiny to medium and well visible, 1 to 3 in an affected organ
  early         5 to 12 mm radius, of low contrast, varied in texture, core and edge, one in an affected organ

--edge-offset-mm X draws the labels as another reader would, in the same images: half of a tumour's contrast is reached
at X mm from the label's outline, inside for X < 0 (a generous reader), outside for X > 0 (a tight one, who marks at
least the voxel at the centre). So the answer to `difftumor describe` is known.

It is drawn by formulas, not taken from patients. Good for trying commands, tests and teaching;
no number measured on it says anything about patients."""
EXAMPLE = "difftumor phantom --output nnUNet_raw/Dataset901_Phantom --cases 12 --healthy 6"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="RAW_DATASET", help="new folder, e.g. Dataset901_Phantom")
    add("--cases", type=int, default=12, metavar="N", help="cases with tumours (default 12)")
    add("--healthy", type=int, default=6, metavar="M", help="cases without tumours (default 6)")
    organs = "organs that are labelled and carry tumours (default liver)"
    add("--organs", nargs="+", choices=("liver", "pancreas", "kidney"), default=["liver"], help=organs)
    hospitals = ("standard", "thin-sharp", "thick-smooth", "arterial", "low-dose")
    hospital = "style of the scans; patients come from several in turn (default standard)"
    add("--hospital", nargs="+", choices=hospitals, default=["standard"], help=hospital)
    add("--tumors", choices=("mixed", "early"), default="mixed", help="what the tumours look like (default mixed)")
    reader = "where the visible edge lies against the labels' outlines, -5 to 5 (default 0: on them)"
    add("--edge-offset-mm", type=float, default=0.0, metavar="X", help=reader)
    add("--seed", type=int, default=0, help="the same seed gives the same voxels (default 0)")
    size = "small: about 45 x 90 x 120 voxels, 2 s a case; full: a clinical grid, half a minute a case"
    add("--size", choices=("small", "full"), default="small", help=size)


def run(args: argparse.Namespace) -> int:
    """Write the data set."""
    from nnunet_difftumor.phantom.dataset import write_phantom_dataset
    from nnunet_difftumor.phantom.styles import PhantomStyle

    style = PhantomStyle.named(
        organs=args.organs,
        hospitals=args.hospital,
        size=args.size,
        tumors=args.tumors,
        edge_offset_mm=args.edge_offset_mm,
    )
    written = write_phantom_dataset(args.output, cases=args.cases, healthy=args.healthy, seed=args.seed, style=style)
    total = args.cases + args.healthy
    for number, (identifier, patient) in enumerate(written, start=1):
        shape = " x ".join(map(str, patient.image_hu.shape))
        spacing = " x ".join(f"{value:g}" for value in patient.spacing_mm)
        tumors = {0: "healthy", 1: "1 tumour"}.get(patient.tumor_count, f"{patient.tumor_count} tumours")
        print(f"[{number}/{total}] {identifier}: {shape} voxels of {spacing} mm, {tumors}", flush=True)
    print(f"Wrote {args.output}")
    return 0
