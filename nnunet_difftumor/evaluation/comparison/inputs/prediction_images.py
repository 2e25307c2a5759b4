"""Which images predictions were made from, so that a prediction of an image that was replaced since is made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_difftumor.ct.reading import IMAGE_ENDINGS
from nnunet_difftumor.errors import DatasetError, OutputExistsError
from nnunet_difftumor.evaluation.comparison.inputs.plan import Hospital, Model
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.files.fact_cache import stamp_of

_IMAGES_FILE = "images.json"
_ENDINGS_OF_A_PREDICTION = (*IMAGE_ENDINGS, ".npz", ".pkl")


def images_of(model: Model, hospital: Hospital, cases: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Files of the images of some cases, one a channel, under the names that the model expects; they need not exist."""
    assert model.trained is not None
    assert hospital.images is not None
    dataset = json.loads((model.trained / "dataset.json").read_text(encoding="utf-8"))
    names = [f"{channel:04d}{dataset['file_ending']}" for channel in range(len(dataset["channel_names"]))]
    return {case: tuple(hospital.images / f"{case}_{name}" for name in names) for case in cases}


def refuse_missing_images(model: Model, images: Mapping[str, Sequence[Path]]) -> None:
    """Raise a DatasetError that names the images that a model needs and that are not there."""
    files = [file for of_case in images.values() for file in of_case]
    lacking = [file.name for file in files if not file.is_file()]
    if lacking:
        ending = files[0].name[len(next(iter(images))) :]
        raise DatasetError(
            f"{files[0].parent} lacks {len(lacking)} of the {len(files)} images that {model.name} needs: "
            f"{', '.join(lacking[:5])}. They must be named <case>{ending}, as for its training."
        )


def cases_of_replaced_images(model: Model, hospital: Hospital, folder: Path) -> tuple[str, ...]:
    """Cases whose images have changed since their prediction was started, if the folder of predictions exists.

    A case whose image is gone has not changed: its prediction is all that is left of it.
    """
    recorded = _read_record(folder)
    now = _stamps(images_of(model, hospital, list(recorded))) if recorded else {}
    return tuple(case for case, stamps in recorded.items() if now.get(case, stamps) != stamps)


def record_images(folder: Path, images: Mapping[str, Sequence[Path]]) -> None:
    """Record the images that predictions are about to be made from; what is recorded of other cases stays.

    A case whose files are not all there is left out.
    """
    if new := _stamps(images):
        write_json(folder / _IMAGES_FILE, {**_read_record(folder), **new}, overwrite=True)


def refuse_unrecorded(folder: Path, predicted: Sequence[str]) -> None:
    """Raise an OutputExistsError that names the predicted cases that do not say which images they were made from."""
    recorded = _read_record(folder)
    unknown = [case for case in predicted if case not in recorded]
    if unknown:
        raise OutputExistsError(
            f"{folder} does not say which images {len(unknown)} of its predictions were made from: "
            f"{', '.join(unknown[:5])}. Move them away to predict anew."
        )


def remove_predictions(folder: Path, cases: Sequence[str]) -> None:
    """Remove what a folder holds of the predictions of some cases."""
    for case in cases:
        for ending in _ENDINGS_OF_A_PREDICTION:
            (folder / f"{case}{ending}").unlink(missing_ok=True)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / _IMAGES_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _stamps(images: Mapping[str, Sequence[Path]]) -> dict[str, list[list[int]]]:
    """Stamps of the images of the cases whose files are all there."""
    return {
        case: [stamp_of(file) for file in files]
        for case, files in images.items()
        if all(file.is_file() for file in files)
    }
