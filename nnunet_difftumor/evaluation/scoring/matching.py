"""Which predicted tumour finds which reference tumour."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from nnunet_difftumor.evaluation.scoring.components import SPECK, Components


@dataclass(frozen=True, eq=False)
class Matching:
    """Overlaps of N reference tumours and M predicted ones, and the pairs that belong together.

    Attributes:
        iou: Intersection over union. Shape (N, M).
        match_of_reference: Index of the predicted tumour of each reference tumour, -1 without one. Shape (N,).
        match_of_prediction: Index of the reference tumour of each predicted tumour, -1 without one. Shape (M,).
        touches_speck: True where a predicted tumour overlaps a reference component too small to count. Shape (M,).
    """

    iou: NDArray[np.float64]
    match_of_reference: NDArray[np.int64]
    match_of_prediction: NDArray[np.int64]
    touches_speck: NDArray[np.bool_]

    @property
    def touched_references(self) -> NDArray[np.bool_]:
        """True where a reference tumour shares a voxel with a predicted one. Shape (N,)."""
        return np.asarray((self.iou > 0).any(axis=1))

    @property
    def touching_predictions(self) -> NDArray[np.bool_]:
        """True where a predicted tumour shares a voxel with a reference one. Shape (M,)."""
        return np.asarray((self.iou > 0).any(axis=0))


def match_components(reference: Components, prediction: Components, smallest_iou: float) -> Matching:
    """Pair reference and predicted tumours one to one.

    Of all pairings whose pairs reach the smallest overlap, the one with the largest sum of overlaps is taken
    (Hungarian method).

    Args:
        reference: Reference tumours.
        prediction: Predicted tumours on the same grid.
        smallest_iou: Smallest intersection over union of a pair.

    Returns:
        The pairs.
    """
    shared, touches_speck = _count_shared_voxels(reference, prediction)
    union = reference.voxels[:, None] + prediction.voxels[None, :] - shared
    iou = shared / union
    rows, columns = linear_sum_assignment(np.where(iou >= smallest_iou, iou, 0.0), maximize=True)
    is_pair = iou[rows, columns] >= smallest_iou
    match_of_reference = np.full(len(reference), -1, dtype=np.int64)
    match_of_prediction = np.full(len(prediction), -1, dtype=np.int64)
    match_of_reference[rows[is_pair]] = columns[is_pair]
    match_of_prediction[columns[is_pair]] = rows[is_pair]
    return Matching(iou, match_of_reference, match_of_prediction, touches_speck)


def panoptic_quality(matched_ious: NDArray[np.float64], reference_tumors: int, predicted_tumors: int) -> float:
    """Panoptic quality: overlap of the pairs, over pairs and half of what is left over on both sides.

    Args:
        matched_ious: Intersection over union of each pair. Shape (pairs,).
        reference_tumors: Number of reference tumours, paired or not.
        predicted_tumors: Number of predicted tumours, paired or not.

    Returns:
        A value in [0, 1]; NaN with no tumour on either side.

    Source:
        Kirillov et al., "Panoptic Segmentation", CVPR 2019.
    """
    size = (reference_tumors + predicted_tumors) / 2.0  # pairs + (missed + false positives) / 2
    return float(matched_ious.sum() / size) if size else math.nan


def _count_shared_voxels(reference: Components, prediction: Components) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Voxels shared by each pair, shape (N, M), and whether predictions overlap a speck, shape (M,)."""
    is_shared = (reference.numbers != 0) & (prediction.numbers > 0)
    rows = reference.numbers[is_shared].astype(np.int64)
    rows[rows == SPECK] = 0  # 0 is free: no shared voxel is outside the reference
    columns = prediction.numbers[is_shared].astype(np.int64) - 1
    shape = (len(reference) + 1, len(prediction))
    counts = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    return counts[1:], counts[0] > 0
