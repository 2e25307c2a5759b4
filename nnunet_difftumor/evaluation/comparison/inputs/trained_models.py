"""What the folder of a trained nnU-Net model says about its data set, wherever that folder lies or is linked from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME, read_splits

_PREPROCESSED_VARIABLE = "nnUNet_preprocessed"
_PLANS_FILE, _DEBUG_FILE = "plans.json", "debug.json"


def dataset_of(trained: Path) -> str:
    """Name of the data set that a model was trained on, as its plans have it; else that of the folder it lies in."""
    name = _read_object(trained / _PLANS_FILE).get("dataset_name")
    return name if isinstance(name, str) and name else trained.resolve().parent.name


def training_cases_of_splits(trained: Path, folds: Sequence[str]) -> set[str]:
    """Training cases of folds by the splits that nnU-Net keeps beside the preprocessed data, where they are at hand.

    They are looked for in the folder that nnU-Net noted in the fold's debug.json, then in nnUNet_preprocessed.

    Returns:
        The cases; none where no splits are found.
    """
    cases: set[str] = set()
    for fold in folds:
        path = next((path for path in _places_of_splits(trained, fold) if path.is_file()), None)
        splits = read_splits(path) if path is not None else ()
        if fold == "all":
            cases.update(case for split in splits for case in (*split.train, *split.val))
        elif fold.isdigit() and int(fold) < len(splits):
            cases.update(splits[int(fold)].train)
    return cases


def _places_of_splits(trained: Path, fold: str) -> Iterator[Path]:
    noted = Path(str(_read_object(trained / f"fold_{fold}" / _DEBUG_FILE).get("preprocessed_dataset_folder_base", "")))
    if noted.is_absolute():
        yield noted / SPLITS_FILE_NAME
    if preprocessed := os.environ.get(_PREPROCESSED_VARIABLE):
        yield Path(preprocessed) / dataset_of(trained) / SPLITS_FILE_NAME


def _read_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file; nothing where there is none, or it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
