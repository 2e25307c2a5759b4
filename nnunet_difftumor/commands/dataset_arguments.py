"""How commands are told a data set and a fold: as nnU-Net's are, or by a folder and a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_difftumor.errors import DatasetError

SPLITS = "splits_final.json (default: that of -d in nnUNet_preprocessed, see difftumor splits)"


def add_raw_dataset(parser: argparse.ArgumentParser, what: str, *, several: bool = False) -> None:
    """Add `-d`, whose words are in `options.data` until `find_dataset` makes paths of them."""
    told = f"{what}: number or full name in nnUNet_raw, or a folder"
    parser.add_argument(
        "-d", "--dataset", dest="data", nargs="+" if several else 1, required=True, metavar="ID", help=told
    )


def add_label_names(parser: argparse.ArgumentParser, *, organ: bool) -> None:
    """Add `--tumor-label` and, if asked for, `--organ-label`: names or values of a data set's labels."""
    told = "name or value of the %s's label (default: found by the names in dataset.json)"
    if organ:
        parser.add_argument("--organ-label", metavar="LABEL", help=told % "organ")
    parser.add_argument("--tumor-label", metavar="LABEL", help=told % "tumour")


def raw_folder(word: str) -> Path:
    """Find the folder of a raw data set by number or full name in nnUNet_raw, or as a path.

    Raises:
        ConfigurationError: If nnU-Net's folders are not set and are needed.
        DatasetError: If nnU-Net's folders have no such data set.
    """
    from nnunet_difftumor.cases.nnunet_folders import find_dataset_name, require_nnunet_folders

    folder = Path(word)
    if folder.exists() or not (word.isdigit() or (word.startswith("Dataset") and folder.name == word)):
        return folder
    raw_root, _ = require_nnunet_folders()
    return raw_root / find_dataset_name(word)


def find_dataset(options: argparse.Namespace, *, needs_splits: bool) -> None:
    """Make paths of what was typed after `-d`, and take the splits of the first data set where none are given.

    Args:
        options: `data` and `splits` are changed.
        needs_splits: A fold is meant.

    Raises:
        ConfigurationError: If nnU-Net's folders are not set and are needed.
        DatasetError: If there is no such data set, or no such file of splits.
    """
    options.data = [raw_folder(word) for word in options.data]
    if needs_splits and options.splits is None:
        options.splits = _own_splits(options.data[0])


def _own_splits(raw: Path) -> Path:
    from nnunet_difftumor.cases.nnunet_folders import require_nnunet_folders
    from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME

    _, preprocessed_root = require_nnunet_folders()
    splits = preprocessed_root / raw.resolve().name / SPLITS_FILE_NAME
    if not splits.is_file():
        number = raw.resolve().name.removeprefix("Dataset").partition("_")[0]
        make = f"Run difftumor splits -d {number}" if number.isdigit() else "Split the data set first"
        raise DatasetError(f"{splits} does not exist, so there is no fold. {make}, or give --splits FILE.")
    return splits
