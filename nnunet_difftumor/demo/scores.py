"""Dice of predicted label maps, case by case."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.support.files.atomic_files import write_json


@dataclass(frozen=True)
class CaseScore:
    """How well one case was segmented.

    Attributes:
        tumor_dice: Dice of the tumour; None for a case without a tumour, where Dice says nothing.
        organ_dice: Dice of organ and tumour together.
        true_ml: Volume of the true tumour in ml.
        predicted_ml: Volume of the predicted tumour in ml; in a healthy case, all of it is a false alarm.
    """

    identifier: str
    tumor_dice: float | None
    organ_dice: float | None
    true_ml: float
    predicted_ml: float


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float | None:
    """Dice coefficient of two masks; None if both are empty.

    Args:
        second: A mask of the same shape.

    Returns:
        2 |A and B| / (|A| + |B|).
    """
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else None


def score_predictions(predictions: Path, truth: Path, tumor_label: int) -> tuple[CaseScore, ...]:
    """Compare predicted with true label maps.

    Args:
        predictions: Folder of predicted label maps (.nii.gz).
        truth: Folder of true label maps under the same names.

    Returns:
        One score a case, sorted by identifier.
    """
    scores = []
    for path in sorted(predictions.glob("*.nii.gz")):
        predicted, voxel_ml = _read(path)
        true, _ = _read(truth / path.name)
        is_tumor, is_predicted = true == tumor_label, predicted == tumor_label
        scores.append(
            CaseScore(
                path.name.removesuffix(".nii.gz"),
                dice(is_tumor, is_predicted) if is_tumor.any() else None,
                dice(true > 0, predicted > 0),
                round(float(is_tumor.sum() * voxel_ml), 3),
                round(float(is_predicted.sum() * voxel_ml), 3),
            )
        )
    return tuple(scores)


def write_scores(path: Path, scores: tuple[CaseScore, ...]) -> None:
    """Write scores as JSON.

    Args:
        path: File; replaced if it exists.
    """
    write_json(path, [asdict(score) for score in scores], overwrite=True)


def read_scores(path: Path) -> tuple[CaseScore, ...]:
    """Read what `write_scores` wrote; a missing file has no scores."""
    if not path.is_file():
        return ()
    return tuple(CaseScore(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))


def _read(path: Path) -> tuple[NDArray[np.int16], float]:
    """Labels and the volume of a voxel in ml."""
    image = nib.Nifti1Image.from_filename(path)
    voxel_ml = float(np.prod(image.header.get_zooms()[:3])) / 1000.0
    return np.asarray(image.dataobj).astype(np.int16), voxel_ml
