"""Predicting what is missing with trained nnU-Net models; what is there is kept while its images are the same."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.ct.reading import file_ending, read_labels
from nnunet_difftumor.errors import CorruptImageError, LeakError, OutputExistsError
from nnunet_difftumor.evaluation.comparison.inputs.plan import Hospital, Model, PredictionSettings
from nnunet_difftumor.evaluation.comparison.inputs.prediction_images import (
    cases_of_replaced_images,
    images_of,
    record_images,
    refuse_missing_images,
    refuse_unrecorded,
    remove_predictions,
)
from nnunet_difftumor.evaluation.comparison.inputs.trained_models import training_cases_of_splits
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.files.file_stamps import stamp_of
from nnunet_difftumor.support.processes.logged_command import program, run_logged
from nnunet_difftumor.support.processes.steps import RunCommand, RunError, run_or_raise
from nnunet_difftumor.trainer.discovery import trainer_search_environment
from nnunet_difftumor.trainer.output_record import SPLIT_RECORD_NAME

_PROGRAM = "nnUNetv2_predict_from_modelfolder"
_BFLOAT16_PROGRAM = "nnunet_difftumor.evaluation.comparison.inputs.cpu_prediction"
_SOURCE_FILE, _LOG_FILE = "source.json", "predict.log"
_INPUT_FOLDER, _UNFINISHED_FOLDER = ".input", ".unfinished"


def missing_predictions(hospital: Hospital, folder: Path) -> tuple[str, ...]:
    """Cases with a reference that have no prediction in a folder, which need not exist."""
    assert hospital.labels is not None
    references = find_label_maps(hospital.labels)
    there = {path.name[: -len(file_ending(path) or "")] for path in folder.glob("*") if file_ending(path)}
    return tuple(case for case in references if case not in there)


def cases_to_predict(model: Model, hospital: Hospital, folder: Path) -> tuple[str, ...]:
    """Find the cases with a reference whose prediction is missing, or was made from images that were replaced since."""
    assert hospital.labels is not None
    wanted = {*missing_predictions(hospital, folder), *cases_of_replaced_images(model, hospital, folder)}
    return tuple(case for case in find_label_maps(hospital.labels) if case in wanted)


def predict_missing(
    model: Model, hospital: Hospital, settings: PredictionSettings, folder: Path, *, run: RunCommand = run_logged
) -> tuple[str, ...]:
    """Predict the cases of a hospital that have a reference and no prediction of their images yet.

    Predictions appear whole: nnU-Net writes into a folder of its own, from which they are moved. What an
    interrupted run finished is kept.

    Returns:
        The cases that were predicted.

    Raises:
        OutputExistsError: If the folder holds predictions of another model or other settings, or some that do not say
            which images they were made from.
        DatasetError: If an image is missing.
        RunError: If nnU-Net ends with an error or leaves a case out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(model, settings, folder)
    _collect(folder)
    missing = cases_to_predict(model, hospital, folder)
    assert hospital.labels is not None
    refuse_unrecorded(folder, [case for case in find_label_maps(hospital.labels) if case not in missing])
    if not missing:
        return ()
    images = images_of(model, hospital, missing)
    refuse_missing_images(model, images)
    remove_predictions(folder, missing)
    record_images(folder, images)
    _link_images(images, folder / _INPUT_FOLDER)
    words = prediction_command(model, settings, folder / _INPUT_FOLDER, folder / _UNFINISHED_FOLDER)
    run_or_raise(
        words,
        trainer_search_environment(),
        folder / _LOG_FILE,
        run,
        typed=shlex.join(words),
        who=f"{model.name} predicts {hospital.name}: nnU-Net",
        advice="Correct the cause and run the comparison again: what is done is kept.",
    )
    _collect(folder)
    shutil.rmtree(folder / _INPUT_FOLDER)
    left = missing_predictions(hospital, folder)
    if left:
        raise RunError(
            f"nnU-Net ended well but left out {len(left)} cases of {hospital.name}: {', '.join(left[:5])}. See "
            f"{folder / _LOG_FILE}."
        )
    return missing


def prediction_command(model: Model, settings: PredictionSettings, images: Path, output: Path) -> list[str]:
    """Words of nnU-Net's command for a folder of images."""
    in_bfloat16 = settings.cpu_bfloat16 and settings.device == "cpu"
    words = [sys.executable, "-m", _BFLOAT16_PROGRAM] if in_bfloat16 else [program(_PROGRAM)]
    words += ["-i", str(images), "-o", str(output)]
    words += ["-m", str(model.trained), "-f", *map(str, model.folds), "-chk", model.checkpoint]
    words += ["-device", settings.device, "-step_size", f"{settings.step_size:g}"]
    words += ["-npp", str(settings.processes), "-nps", str(settings.processes)]
    words += [] if settings.mirroring else ["--disable_tta"]
    return [*words, "--save_probabilities"] if settings.probabilities else words


def refuse_training_cases(model: Model, hospitals: Sequence[Hospital], *, acknowledged: bool) -> tuple[str, ...]:
    """Refuse to measure a model on cases that are named like its training cases.

    Looked at are the lists that DiffTumor trainers leave in a fold's folder; for folds without one, the splits of
    the data set in nnUNet_preprocessed, where they are; and the validation cases of all folds: those of one fold
    trained the others.

    Returns:
        A note for the report; empty without an overlap.

    Raises:
        LeakError: If there is an overlap that is not acknowledged.
    """
    if model.trained is None:
        return ()
    who_trains = f"{model.name} was trained"
    return refuse_shared_names(who_trains, _training_cases(model), hospitals, acknowledged=acknowledged)


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
    overlap = {name: cases for name, cases in shared.items() if cases}
    if not overlap:
        return ()
    listed = "; ".join(f"{name}: {', '.join(cases[:5])} ({len(cases)})" for name, cases in overlap.items())
    if not acknowledged:
        raise LeakError(
            f"{who_trains} on cases of these names: {listed}. On its training cases, a model looks better "
            "than it is. Leave them out (remove their label maps), or write acknowledge_identifier_matches: "
            "true if they are other scans."
        )
    return (f"{who_trains} on other scans that have the same names, as was acknowledged: {listed}.",)


def _training_cases(model: Model) -> set[str]:
    assert model.trained is not None
    used = {str(fold) for fold in model.folds}
    lists_unknown = [fold for fold in used if not (model.trained / f"fold_{fold}" / SPLIT_RECORD_NAME).is_file()]
    cases = training_cases_of_splits(model.trained, lists_unknown)
    for fold in model.trained.glob("fold_*"):
        name = fold.name.removeprefix("fold_")
        record = fold / SPLIT_RECORD_NAME
        if name in used and record.is_file():
            cases |= set(json.loads(record.read_text(encoding="utf-8")).get("train", ()))
        if name == "all" and name not in used:
            continue
        if name == "all" or used - {name}:  # validated here, trained in the other folds; "all" validates on training
            files = fold.joinpath("validation").glob("*")
            cases |= {path.name[: -len(ending)] for path in files if (ending := file_ending(path))}
    return cases


def _claim(model: Model, settings: PredictionSettings, folder: Path) -> None:
    """Record whose predictions a folder holds, or refuse if they are another's.

    The stamps of the checkpoints tell models apart; a model that was moved is the same one.
    """
    assert model.trained is not None
    checkpoints = [model.trained / f"fold_{fold}" / model.checkpoint for fold in model.folds]
    source = {
        "trained": str(model.trained),
        "folds": list(model.folds),
        "checkpoint": model.checkpoint,
        "checkpoint_stamps": [stamp_of(path) for path in checkpoints],
        "mirroring": settings.mirroring,
        "step_size": settings.step_size,
        "probabilities": settings.probabilities,
        "cpu_bfloat16": settings.cpu_bfloat16,
    }
    path = folder / _SOURCE_FILE
    if not path.is_file():
        write_json(path, source)
        return
    recorded = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{key}: {recorded.get(key)!r}, now {value!r}"
        for key, value in source.items()
        if key != "trained" and recorded.get(key) != value
    ]
    if changed:
        raise OutputExistsError(
            f"{folder} holds predictions of another model or other settings:\n  " + "\n  ".join(changed) + "\n"
            "Move that folder away to predict anew, or give the model another name."
        )


def _collect(folder: Path) -> None:
    """Move finished predictions out of the folder that nnU-Net writes into; a torn file is removed."""
    unfinished = folder / _UNFINISHED_FOLDER
    if not unfinished.is_dir():
        return
    for path in sorted(unfinished.iterdir()):
        if file_ending(path) is not None and not _is_whole(path):
            path.unlink()
        else:
            os.replace(path, folder / path.name)
    unfinished.rmdir()


def _is_whole(path: Path) -> bool:
    try:
        read_labels(path)
    except CorruptImageError:
        return False
    return True


def _link_images(images: Mapping[str, Sequence[Path]], folder: Path) -> None:
    """Fill a folder with links to images."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in (file for files in images.values() for file in files):
        (folder / file.name).symlink_to(file.resolve())
