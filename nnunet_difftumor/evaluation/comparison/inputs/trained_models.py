"""What the folder of a trained nnU-Net model says about its data: no model is measured on its training cases."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME, read_splits
from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.ct.reading import file_ending
from nnunet_difftumor.errors import LeakError
from nnunet_difftumor.evaluation.comparison.inputs.plan import Hospital, Model
from nnunet_difftumor.trainer.output_record import SPLIT_RECORD_NAME

_PREPROCESSED_VARIABLE = "nnUNet_preprocessed"


def dataset_of(trained: Path) -> str:
    """Name of the data set that a model was trained on, as its plans have it; else that of the folder it lies in."""
    name = _read_object(trained / "plans.json").get("dataset_name")
    return name if isinstance(name, str) and name else trained.resolve().parent.name


def cases_in(folder: Path) -> set[str]:
    """Cases of the label maps in a folder, which need not exist."""
    return {path.name[: -len(ending)] for path in folder.glob("*") if (ending := file_ending(path))}


def refuse_training_cases(model: Model, hospitals: Sequence[Hospital], *, acknowledged: bool) -> tuple[str, ...]:
    """Refuse to measure a model on cases that are named like its training cases (see `refuse_shared_names`).

    Looked at are the lists that DiffTumor trainers leave in a fold's folder; for folds without one, the splits of
    the data set in nnUNet_preprocessed, where they are; and the validation cases of all folds: those of one fold
    trained the others.
    """
    if model.trained is None:
        return ()
    training = _training_cases(model.trained, {str(fold) for fold in model.folds})
    return refuse_shared_names(f"{model.name} was trained", training, hospitals, acknowledged=acknowledged)


def refuse_shared_names(
    who_trains: str, training: Collection[str], hospitals: Sequence[Hospital], *, acknowledged: bool
) -> tuple[str, ...]:
    """Refuse hospitals that have cases of the same names as training cases.

    Args:
        who_trains: Start of the message, like "nnU-Net was trained".
        acknowledged: The user knows that they are other scans of the same name.

    Returns:
        A note for the report; empty without an overlap.

    Raises:
        LeakError: If there is an overlap that is not acknowledged.
    """
    labels = {hospital.name: hospital.labels for hospital in hospitals if hospital.labels is not None}
    shared = {name: sorted(find_label_maps(folder).keys() & set(training)) for name, folder in labels.items()}
    listed = "; ".join(f"{name}: {', '.join(cases[:5])} ({len(cases)})" for name, cases in shared.items() if cases)
    if not listed:
        return ()
    if not acknowledged:
        raise LeakError(
            f"{who_trains} on cases of these names: {listed}. On its training cases, a model looks better "
            "than it is. Leave them out (remove their label maps), or write acknowledge_identifier_matches: "
            "true if they are other scans."
        )
    return (f"{who_trains} on other scans that have the same names, as was acknowledged: {listed}.",)


def _training_cases(trained: Path, used: set[str]) -> set[str]:
    """Cases that the used folds were trained on, as far as it is known."""
    cases: set[str] = set()
    for name in used:
        record = trained / f"fold_{name}" / SPLIT_RECORD_NAME
        if record.is_file():
            cases.update(json.loads(record.read_text(encoding="utf-8")).get("train", ()))
        else:
            cases.update(_training_cases_of_splits(trained, name))
    for fold in trained.glob("fold_*"):
        name = fold.name.removeprefix("fold_")
        is_trained_on = name in used if name == "all" else used - {name}  # "all" validates on its training cases
        if is_trained_on:
            cases |= cases_in(fold / "validation")
    return cases


def _training_cases_of_splits(trained: Path, fold: str) -> Iterator[str]:
    """Training cases of a fold by the splits that nnU-Net keeps beside the preprocessed data, where they are at hand.

    They are looked for in the folder that nnU-Net noted in the fold's debug.json, then in nnUNet_preprocessed.
    """
    path = next((path for path in _places_of_splits(trained, fold) if path.is_file()), None)
    for number, split in enumerate(read_splits(path) if path is not None else ()):
        if fold in ("all", str(number)):
            yield from split.train
        if fold == "all":
            yield from split.val


def _places_of_splits(trained: Path, fold: str) -> Iterator[Path]:
    noted = Path(str(_read_object(trained / f"fold_{fold}" / "debug.json").get("preprocessed_dataset_folder_base", "")))
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
