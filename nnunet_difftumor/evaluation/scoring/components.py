"""Connected tumours of a mask: numbered, measured, specks set apart, and paired with those of another mask.

Masks are (D, H, W), and spacings in mm are ordered alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from nnunet_difftumor.ct.components import label_components
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules


@dataclass(frozen=True, eq=False)
class Components:
    """Connected components of a mask.

    Attributes:
        numbers: 1 to N in the components that count, -1 in specks, 0 elsewhere. Shape (D, H, W).
        voxels: Voxels of each component that counts. Shape (N,).
        is_mostly_ignored: True where half or more of a component lies under the ignore label. Shape (N,).
    """

    numbers: NDArray[np.int32]
    voxels: NDArray[np.int64]
    is_mostly_ignored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.voxels)


def find_components(
    mask: NDArray[np.bool_], voxel_mm3: float, rules: ScoringRules, is_ignored: NDArray[np.bool_] | None = None
) -> Components:
    """Find the components of a mask with 26 neighbours, numbered in the order in which they are met.

    Args:
        is_ignored: Voxels under the ignore label; they join parts, but belong to no component. Shape (D, H, W).
    """
    numbers, count = label_components(mask)
    whole = left = np.bincount(numbers.ravel(), minlength=count + 1)
    if is_ignored is not None:
        numbers[is_ignored] = 0
        left = np.bincount(numbers.ravel(), minlength=count + 1)
    does_count = (left >= rules.smallest_voxels) & (left * voxel_mm3 >= rules.smallest_mm3) & (left > 0)
    does_count[0] = False
    new_numbers = np.where(does_count, np.cumsum(does_count), -1).astype(np.int32)
    new_numbers[0] = 0
    return Components(new_numbers[numbers], left[does_count], 2 * left[does_count] <= whole[does_count])


def axial_diameter_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float], axial_axis: int) -> float:
    """Largest diameter of a mask within one axial slice, as a reader would measure it; 0 for an empty mask.

    A diameter runs between the middles of the outer faces of two voxels of the slice: a row of n voxels is n
    spacings long.

    Args:
        axial_axis: The axis that runs from slice to slice.
    """
    row_mm, column_mm = np.delete(spacing_mm, axial_axis).tolist()
    longest_mm = 0.0
    for section in np.moveaxis(mask, axial_axis, 0):
        rows = np.flatnonzero(section.any(axis=1))
        first = section[rows].argmax(axis=1)  # only the ends of each row can be farthest apart
        last = section.shape[1] - 1 - section[rows, ::-1].argmax(axis=1)
        ends_mm = np.concatenate([rows, rows]) * row_mm, np.concatenate([first, last]) * column_mm
        apart_rows, apart_columns = (np.abs(each[:, None] - each) for each in ends_mm)
        across_rows = np.hypot(apart_rows + row_mm, apart_columns).max(initial=0.0)
        across_columns = np.hypot(apart_rows, apart_columns + column_mm).max(initial=0.0)
        longest_mm = max(longest_mm, float(across_rows), float(across_columns))
    return longest_mm


@dataclass(frozen=True, eq=False)
class Matching:
    """Overlaps of N reference tumours and M predicted ones, and the pairs that belong together.

    Attributes:
        iou: Intersection over union, above 0 where two share a voxel. Shape (N, M).
        match_of_reference: Index of the predicted tumour of each reference tumour, -1 without one. Shape (N,).
        match_of_prediction: Index of the reference tumour of each predicted tumour, -1 without one. Shape (M,).
        touches_speck: True where a predicted tumour overlaps a reference component too small to count. Shape (M,).
    """

    iou: NDArray[np.float64]
    match_of_reference: NDArray[np.int64]
    match_of_prediction: NDArray[np.int64]
    touches_speck: NDArray[np.bool_]


def match_components(reference: Components, prediction: Components, smallest_iou: float) -> Matching:
    """Pair reference and predicted tumours on one grid one to one.

    Of all pairings whose pairs reach the smallest overlap, the one with the largest sum of overlaps is taken
    (Hungarian method).
    """
    is_shared = (reference.numbers != 0) & (prediction.numbers > 0)
    shape = len(reference) + 1, len(prediction) + 1
    rows = np.maximum(reference.numbers[is_shared], 0)  # 0 is a speck: no shared voxel is outside the reference
    pairs = np.ravel_multi_index((rows, prediction.numbers[is_shared]), shape)
    voxels = np.bincount(pairs, minlength=math.prod(shape)).reshape(shape)[:, 1:]
    shared, touches_speck = voxels[1:], voxels[0] > 0
    iou = shared / (reference.voxels[:, None] + prediction.voxels - shared)
    rows, columns = linear_sum_assignment(np.where(iou >= smallest_iou, iou, 0.0), maximize=True)
    is_pair = iou[rows, columns] >= smallest_iou
    match_of_reference = np.full(len(reference), -1, dtype=np.int64)
    match_of_prediction = np.full(len(prediction), -1, dtype=np.int64)
    match_of_reference[rows[is_pair]] = columns[is_pair]
    match_of_prediction[columns[is_pair]] = rows[is_pair]
    return Matching(iou, match_of_reference, match_of_prediction, touches_speck)


def panoptic_quality(matched_ious: NDArray[np.float64], reference_tumors: int, predicted_tumors: int) -> float:
    """Panoptic quality, in [0, 1]: overlap of the pairs, over pairs and half of what is left over on both sides.

    NaN with no tumour on either side.

    Source:
        Kirillov et al., "Panoptic Segmentation", CVPR 2019.
    """
    size = (reference_tumors + predicted_tumors) / 2.0  # pairs + (missed + false positives) / 2
    return float(matched_ious.sum() / size) if size else math.nan
