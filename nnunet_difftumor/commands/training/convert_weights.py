"""`difftumor convert-weights`: a generator folder from the weights that DiffTumor's authors publish."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from diffusion.generator.folder_check import COMPOSITES

_IMAGE_ENDINGS = (".nii", ".gz", ".nrrd", ".mha", ".json", "_0000")

DESCRIPTION = """Make a generator folder from weights that were published with DiffTumor (CVPR 2024), which you have:
the autoencoder, the diffusion model of early tumours of an organ, and perhaps that of larger ones. Nothing is
downloaded, and nothing in the files is run: they are read for numbers alone.

The folder works wherever a generator does: in `difftumor synthesize`, in "generator" of difftumor.json, in the audit.
It holds the files' SHA-256 and what is known of their licences.

It draws every tumour in a crop of 96 voxels at 1 mm, which takes seconds of a CPU; a generator of your own
(`difftumor train-diffusion`) takes tenths of a second. Which cases trained it is not in the files: without
--training-cases the trainer warns that it may know your validation cases."""
EXAMPLE = (
    "difftumor convert-weights --autoencoder AutoencoderModel.ckpt --diffusion liver_early.pt --late liver_noearly.pt "
    "--organ liver --output published_liver"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--autoencoder", type=Path, required=True, metavar="FILE", help="AutoencoderModel.ckpt")
    add("--diffusion", type=Path, required=True, metavar="FILE", help="ORGAN_early.pt, of 4 time steps")
    late = "ORGAN_noearly.pt, of 200 time steps, for tumours of more than 11 mm radius (default: the early one)"
    add("--late", type=Path, metavar="FILE", help=late)
    add("--organ", required=True, choices=("liver", "pancreas", "kidney"), help="organ of the diffusion models")
    composite = (
        "own: tissue blended as that of any generator, at its edge, with the scan's noise (default); published: by a "
        "blurred mask, as DiffTumor does, which changes voxels up to 16 mm around along each axis"
    )
    add("--composite", choices=COMPOSITES, default=COMPOSITES[0], help=composite)
    cases = "text file with the identifiers of the cases that trained the diffusion models, one a line"
    add("--training-cases", type=Path, metavar="FILE", help=cases)
    add("--output", type=Path, required=True, metavar="DIR", help="new folder of the generator")
    add("--overwrite", action="store_true", help="replace the generator in --output")


def run(options: argparse.Namespace) -> int:
    """Convert, print what comes next."""
    output = Path(options.output).resolve()  # a link is followed, and stays
    _check_files(output, [options.autoencoder, options.diffusion, options.late], overwrite=options.overwrite)
    cases = _training_cases(options.training_cases) if options.training_cases else ()
    from diffusion.published.conversion import LICENCES, PublishedFiles, convert
    from nnunet_difftumor.commands.training.next_steps import as_list, typed

    files = PublishedFiles(autoencoder=options.autoencoder, early=options.diffusion, late=options.late)
    convert(
        files,
        options.organ,
        output,
        training_cases=cases,
        composite=options.composite,
        replace=options.overwrite,
    )
    print(f"Wrote {options.output}, a generator of {options.organ} tumours.")
    for line in LICENCES:
        print(f"  {line}")
    look = ["--ct", "ct.nii.gz", "--organ-mask", "organ.nii.gz", "--generator", options.output, "--output", "look"]
    print(as_list([typed("difftumor", "synthesize", *look)]))
    return 0


def _check_files(output: Path, given: Sequence[Path | None], *, overwrite: bool) -> None:
    """Refuse files that are not there, and to replace what this command did not make, or what it reads."""
    from diffusion.generator.folder_check import MODEL_INDEX_FILE, is_converted
    from nnunet_difftumor.errors import DatasetError, OutputExistsError

    files = [path for path in given if path is not None]
    if missing := [path for path in files if not path.is_file()]:
        raise DatasetError(f"{missing[0]} is no file. Give the path of the downloaded file.")
    if not output.exists():
        return
    if not (overwrite and (output / MODEL_INDEX_FILE).is_file() and is_converted(output)):
        raise OutputExistsError(
            f"--output {output} exists already. Choose another folder, or add --overwrite to replace a converted "
            "generator."
        )
    if inside := [path for path in files if path.resolve().is_relative_to(output)]:
        raise OutputExistsError(f"{inside[0]} lies in --output {output}, which would be replaced. Move it elsewhere.")


def _training_cases(path: Path) -> tuple[str, ...]:
    """Identifiers as nnU-Net knows cases; lines that can be none are refused, since they would protect nothing."""
    from nnunet_difftumor.errors import DatasetError, list_some
    from nnunet_difftumor.generator_training.case_selection import read_identifiers

    cases = sorted(read_identifiers(path, "--training-cases"))
    odd = [case for case in cases if not re.fullmatch(r"[\w.+-]+", case) or case.endswith(_IMAGE_ENDINGS)]
    if odd:
        raise DatasetError(
            f"{path} holds lines that are no case identifiers: {list_some(odd)!a}. Write one a line, as in "
            "labelsTr: without folder, channel suffix and ending."
        )
    return tuple(cases)
