"""`difftumor synthesize`: put tumours into one CT."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_difftumor.synthesis.tissue.generator_names import DEFAULT_GENERATOR, default_target, resolve_generator
from nnunet_difftumor.tumor.published_contrasts import TARGETS

DESCRIPTION = """Put synthetic tumours into one CT, inside an organ.

Writes into --output:
  ct.nii.gz     the CT with the tumours; every voxel outside them keeps its stored value
  label.nii.gz  the organ mask with the tumours as one more label
  tumors.json   a record per tumour: size, shape, seed, contrast; enough to replay it (--replay)
  montage.png   before, after and label in three planes"""
_REASONS = {
    "no_room": "without room in the organ",
    "overlap": "overlapping",
    "outside_organ": "outside the organ",
    "out_of_view": "outside the scan",
    "invisible": "not visible against the surroundings",
    "cut_off": "hidden by the window",
}
EXAMPLE = (
    "difftumor synthesize --ct ct.nii.gz --organ-mask liver.nii.gz --target liver --count 3 --radius-mm 6 12 "
    "--output out"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--ct", type=Path, required=True, metavar="FILE", help="CT in HU (NIfTI, NRRD or MHA)")
    add("--organ-mask", type=Path, required=True, metavar="FILE", help="mask on the CT's grid")
    add("--organ-label", type=int, metavar="N", help="value of the organ if the mask holds several")
    add("--tumor-mask", type=Path, metavar="FILE", help="use this mask as the tumour, as it is")
    generator = f"generator folder, or the name of one that comes with this package (default {DEFAULT_GENERATOR})"
    add("--generator", default=DEFAULT_GENERATOR, metavar="DIR", help=generator)
    add("--output", type=Path, required=True, metavar="DIR", help="new folder for the results")
    add("--count", type=int, default=3, metavar="N", help="number of tumours (default 3)")
    radius_mm = (
        "range of radii in mm (default: those of the paper: 3-5 and 6-10 mm in 40%% each, 12-20 and 24-64 mm in "
        "10%% each); beyond 0.4 of the scan's shortest side they are limited to it"
    )
    add("--radius-mm", type=float, nargs=2, metavar=("LO", "HI"), help=radius_mm)
    target = (
        "where contrasts come from: liver or pancreas (published values), training (the generator's training "
        "tumours; default for a generator of your own), hypodense (those of them that are darker than their "
        "surroundings; default for builtin:...)"
    )
    add("--target", choices=TARGETS, help=target)
    contrast_hu = "range of contrasts in HU, tumour minus surroundings, in place of --target"
    add("--contrast-hu", type=float, nargs=2, metavar=("LO", "HI"), help=contrast_hu)
    heterogeneity_hu = (
        "range of standard deviations inside a tumour, without noise, in HU (default: those of the training tumours)"
    )
    add("--heterogeneity-hu", type=float, nargs=2, metavar=("LO", "HI"), help=heterogeneity_hu)
    add("--steps", type=int, metavar="T", help="denoising steps (default 4; with --replay those of the file)")
    edge = "where the visible edge lies against the label (negative: inside) and its width in mm, in place of that of "
    edge += "the generator's training tumours"
    add("--edge-mm", type=float, nargs=2, metavar=("OFFSET", "WIDTH"), help=edge)
    add("--seed", type=int, default=0, metavar="S", help="seed of places, shapes and tissue")
    add("--replay", type=Path, metavar="FILE", help="make the tumours of this tumors.json again")
    add("--overwrite", action="store_true", help="replace results in --output")


def run(options: argparse.Namespace) -> int:
    """Place the tumours; 1 if none could be."""
    from diffusion.generator_folder import read_generator_info
    from nnunet_difftumor.synthesis.request import ScanRequest, check_request

    request = ScanRequest(
        ct_path=options.ct,
        organ_mask_path=options.organ_mask,
        organ_label=options.organ_label,
        tumor_mask_path=options.tumor_mask,
        generator_folder=resolve_generator(options.generator),
        count=options.count,
        radius_mm=tuple(options.radius_mm) if options.radius_mm else None,
        target=options.target or default_target(options.generator),
        contrast_hu=tuple(options.contrast_hu) if options.contrast_hu else None,
        heterogeneity_hu=tuple(options.heterogeneity_hu) if options.heterogeneity_hu else None,
        edge_mm=tuple(options.edge_mm) if options.edge_mm else None,
        steps=options.steps,
        seed=options.seed,
        replay_path=options.replay,
    )
    check_request(request, options.output, overwrite=options.overwrite)
    from nnunet_difftumor.synthesis.scan import describe, synthesize_scan  # what reads images takes a second to import

    result = synthesize_scan(request, options.output, overwrite=options.overwrite)
    limits, output = request.contrast_hu, options.output
    contrasts = f"contrasts from {limits[0]:g} to {limits[1]:g} HU" if limits else f"target {request.target}"
    print(f"Generator {options.generator}, {contrasts}.")
    if note := read_generator_info(request.generator_folder).data_note:
        print(f"It learned from {note.partition(' (')[0]}.")
    reasons = ", ".join(f"{count} {_REASONS.get(why, why)}" for why, count in sorted(result.rejected.items()))
    wanted = f" of {request.count}" if request.replay_path is None and request.tumor_mask_path is None else ""
    print(f"{len(result.tumors)}{wanted} tumours placed{f'; attempts given up: {reasons}' if reasons else ''}.")
    for tumor in result.tumors:
        print(f"  radius {tumor.record.spec.radius_mm:.1f} mm: {describe(tumor.record)}")
    if not result.tumors:
        print("Nothing was written. Try smaller radii (--radius-mm), another seed, or a stronger --contrast-hu.")
        return 1
    print(
        f"Look at {output / 'montage.png'}; the CT is {output / 'ct.nii.gz'} (synthetic: keep it apart from patients)."
    )
    return 0
