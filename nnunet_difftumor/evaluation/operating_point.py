"""How certain a trained network must be of a tumour: measured on scans that have none.

nnU-Net writes a tumour wherever it is the most probable label, so that a network which saw more tumours in its training
also raises more false alarms. A shift lowers the logit of the tumour everywhere, as another constant of the network's
last layer does: what is left are the tumours that exceed the other labels by more than the shift. Logits are averaged
and resampled linearly by nnU-Net (windows, mirrored copies, folds), so a shift of the layer is one of the prediction.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_difftumor.ct.boxes import box_of
from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.ct.reading import read_labels
from nnunet_difftumor.errors import CorruptImageError, DatasetError, DiffTumorError, list_some
from nnunet_difftumor.evaluation.scoring.components import find_components
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme

SHIFTS = tuple(0.25 * step for step in range(29))
"""Shifts that are tried, in logits: up to 7, odds of about 1000 to 1."""

_RULES = ScoringRules()
_LEAST = 1e-12


@dataclass(frozen=True)
class OperatingPoint:
    """False alarms of a shift.

    Attributes:
        shift: In logits.
        false_positives: Predicted tumours in all scans; specks are left out, as in `difftumor score`.
        clear: Scans without one.
        scans: All scans.
    """

    shift: float
    false_positives: int
    clear: int
    scans: int


def measure_operating_points(predictions: Path, scheme: LabelScheme) -> list[OperatingPoint]:
    """Count the false alarms of every shift in scans without tumours.

    Args:
        predictions: Folder that nnUNetv2_predict --save_probabilities wrote, of scans without any tumour.

    Returns:
        One point a shift.

    Raises:
        DatasetError: If the probabilities of a case are missing.
        CorruptImageError: If they cannot be read, or are of another model.
    """
    maps = find_label_maps(predictions, "--predictions")
    missing = [case for case in maps if not (predictions / f"{case}.npz").is_file()]
    if missing:
        raise DatasetError(
            f"{predictions} holds no probabilities (<case>.npz) of {list_some(missing)}. Predict with "
            "nnUNetv2_predict --save_probabilities."
        )
    counts = [_count(predictions / f"{case}.npz", path, scheme) for case, path in tqdm(maps.items(), unit="scan")]
    return [
        OperatingPoint(shift, sum(each), sum(not count for count in each), len(each))
        for shift, each in zip(SHIFTS, zip(*counts, strict=True), strict=True)
    ]


def choose_operating_point(points: Sequence[OperatingPoint], most_a_scan: float) -> OperatingPoint:
    """Return the smallest shift that leaves no more false alarms a scan than that.

    Raises:
        DiffTumorError: If none does.
    """
    for point in points:
        if point.false_positives <= most_a_scan * point.scans:
            return point
    left = points[-1].false_positives / points[-1].scans
    raise DiffTumorError(
        f"Even a shift of {points[-1].shift:g} leaves {left:.2f} false alarms a scan, and at most {most_a_scan:g} are "
        "wanted. The network takes something in these scans for a tumour without doubt: look at the predictions, and "
        "make sure that the scans have no tumour."
    )


def _count(probabilities: Path, label_map: Path, scheme: LabelScheme) -> list[int]:
    _, grid = read_labels(label_map)
    voxel_mm3 = abs(float(np.linalg.det(grid.affine[:3, :3])))
    margin = tumor_margin(probabilities, scheme)
    margin = margin[box_of(margin > 0)]
    return [len(find_components(margin > shift, voxel_mm3, _RULES)) for shift in SHIFTS]


def tumor_margin(path: Path, scheme: LabelScheme) -> NDArray[np.float32]:
    """By how much the logit of a tumour exceeds those of all other labels. Shape (D, H, W).

    Args:
        path: nnU-Net's probabilities of a case (.npz).
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = archive["probabilities"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CorruptImageError(
            f"{path} cannot be read as nnU-Net's probabilities ({error}). Predict again with --save_probabilities."
        ) from error
    if values.ndim != 4 or len(values) != scheme.channels:
        raise CorruptImageError(
            f"{path} should hold probabilities of {scheme.channels} channels, but has shape {values.shape}. It is of "
            "another model: predict with the one that --model names."
        )
    logs = np.log(np.maximum(values.astype(np.float32), _LEAST))
    tumors = sorted({label.channel for label in scheme.tumors})
    if scheme.has_regions:
        others = np.log(np.maximum(1.0 - values[tumors].astype(np.float32), _LEAST))
        return np.max(logs[tumors] - others, axis=0)
    others = np.delete(logs, tumors, axis=0)
    return logs[tumors].max(axis=0) - others.max(axis=0)
