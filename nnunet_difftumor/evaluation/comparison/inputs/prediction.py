"""Predicting what is missing with trained nnU-Net models; what is there is kept while its images are the same."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.ct.reading import IMAGE_ENDINGS, file_ending, read_labels
from nnunet_difftumor.errors import CorruptImageError, DatasetError, OutputExistsError
from nnunet_difftumor.evaluation.comparison.inputs.plan import Hospital, Model, PredictionSettings
from nnunet_difftumor.evaluation.comparison.inputs.trained_models import cases_in
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.files.fact_cache import stamp_of
from nnunet_difftumor.support.processes.logged_command import program, run_logged
from nnunet_difftumor.support.processes.steps import RunCommand, RunError, run_or_raise
from nnunet_difftumor.trainer.discovery import trainer_search_environment

_PROGRAM = "nnUNetv2_predict_from_modelfolder"
_BFLOAT16_PROGRAM = "nnunet_difftumor.evaluation.comparison.inputs.cpu_prediction"
_SOURCE_FILE, _IMAGES_FILE, _LOG_FILE = "source.json", "images.json", "predict.log"
_INPUT_FOLDER, _UNFINISHED_FOLDER = ".input", ".unfinished"
_ENDINGS_OF_A_PREDICTION = (*IMAGE_ENDINGS, ".npz", ".pkl")


def cases_to_predict(model: Model, hospital: Hospital, folder: Path) -> tuple[str, ...]:
    """Find the cases with a reference whose prediction is missing, or was made from images that were replaced since.

    A case whose image is gone has not changed: its prediction is all that is left of it.
    """
    recorded = _read_record(folder)
    now = _stamps(_images_of(model, hospital, recorded)) if recorded else {}
    replaced = {case for case, stamps in recorded.items() if now.get(case, stamps) != stamps}
    good = cases_in(folder) - replaced
    return tuple(case for case in _references(hospital) if case not in good)


def predict_missing(
    model: Model, hospital: Hospital, settings: PredictionSettings, folder: Path, *, run: RunCommand = run_logged
) -> tuple[str, ...]:
    """Predict the cases of a hospital that have a reference and no prediction of their images yet, and return them.

    Predictions appear whole: nnU-Net writes into a folder of its own, from which they are moved. What an
    interrupted run finished is kept.

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
    _refuse_unrecorded(folder, [case for case in _references(hospital) if case not in missing])
    if not missing:
        return ()
    images = _images_of(model, hospital, missing)
    _refuse_missing_images(model, images)
    for path in (folder / f"{case}{ending}" for case in missing for ending in _ENDINGS_OF_A_PREDICTION):
        path.unlink(missing_ok=True)
    write_json(folder / _IMAGES_FILE, {**_read_record(folder), **_stamps(images)}, overwrite=True)
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
    left = [case for case in missing if case not in cases_in(folder)]
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


def _references(hospital: Hospital) -> Iterable[str]:
    assert hospital.labels is not None
    return find_label_maps(hospital.labels)


def _claim(model: Model, settings: PredictionSettings, folder: Path) -> None:
    """Record whose predictions a folder holds, or refuse if they are another's.

    The stamps of the checkpoints tell models apart; a model that was moved is the same one.
    """
    assert model.trained is not None
    source = {
        "trained": str(model.trained),
        "folds": list(model.folds),
        "checkpoint": model.checkpoint,
        "checkpoint_stamps": [stamp_of(model.trained / f"fold_{fold}" / model.checkpoint) for fold in model.folds],
        **settings.model_dump(include={"mirroring", "step_size", "probabilities", "cpu_bfloat16"}),
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
        try:
            if file_ending(path) is not None:
                read_labels(path)
            os.replace(path, folder / path.name)
        except CorruptImageError:
            path.unlink()
    unfinished.rmdir()


def _images_of(model: Model, hospital: Hospital, cases: Iterable[str]) -> dict[str, list[Path]]:
    """Files of the images of some cases, one a channel, under the names that the model expects; they need not exist."""
    assert model.trained is not None
    assert hospital.images is not None
    dataset = json.loads((model.trained / "dataset.json").read_text(encoding="utf-8"))
    names = [f"{channel:04d}{dataset['file_ending']}" for channel in range(len(dataset["channel_names"]))]
    return {case: [hospital.images / f"{case}_{name}" for name in names] for case in cases}


def _refuse_missing_images(model: Model, images: Mapping[str, Sequence[Path]]) -> None:
    files = [file for of_case in images.values() for file in of_case]
    lacking = [file.name for file in files if not file.is_file()]
    if lacking:
        ending = files[0].name[len(next(iter(images))) :]
        raise DatasetError(
            f"{files[0].parent} lacks {len(lacking)} of the {len(files)} images that {model.name} needs: "
            f"{', '.join(lacking[:5])}. They must be named <case>{ending}, as for its training."
        )


def _refuse_unrecorded(folder: Path, predicted: Iterable[str]) -> None:
    recorded = _read_record(folder)
    unknown = [case for case in predicted if case not in recorded]
    if unknown:
        raise OutputExistsError(
            f"{folder} does not say which images {len(unknown)} of its predictions were made from: "
            f"{', '.join(unknown[:5])}. Move them away to predict anew."
        )


def _read_record(folder: Path) -> dict[str, Any]:
    """Stamps of the images that predictions were made from, by case."""
    path = folder / _IMAGES_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _stamps(images: Mapping[str, Sequence[Path]]) -> dict[str, list[list[int]]]:
    """Stamps of the images of the cases whose files are all there."""
    return {
        case: [stamp_of(file) for file in files]
        for case, files in images.items()
        if all(file.is_file() for file in files)
    }


def _link_images(images: Mapping[str, Sequence[Path]], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in (file for files in images.values() for file in files):
        (folder / file.name).symlink_to(file.resolve())
