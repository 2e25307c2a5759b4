"""Scores of one case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_difftumor.ct.boxes import box_of
from nnunet_difftumor.ct.components import NEIGHBOURS_26, equivalent_diameter_mm, label_components
from nnunet_difftumor.evaluation.scoring.case_maps import CaseFiles, CaseMaps, read_case_maps
from nnunet_difftumor.evaluation.scoring.components import (
    Components,
    Matching,
    axial_diameter_mm,
    find_components,
    match_components,
    panoptic_quality,
)
from nnunet_difftumor.evaluation.scoring.rules import SIZE_BINS_MM, TOLERANCES_MM, ScoringRules, bin_of
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme, ScoredLabel
from nnunet_difftumor.evaluation.scoring.surfaces import surface_agreement
from nnunet_difftumor.evaluation.scoring.tables import CaseScores, LabelScores, PredictionScore, TumorScore

DEFAULT_RULES = ScoringRules()

_REFERENCE, _PREDICTION = "reference", "prediction"

Mask = NDArray[np.bool_]
Values = NDArray[np.float32] | None


@dataclass(frozen=True)
class OrganFilter:
    """Drops predicted tumours outside the organ.

    Its source is "reference" (the reference's organ and its tumours), "prediction" (the predicted organ), or a folder
    of masks in which everything above 0 is organ.
    """

    source: str

    @property
    def folder(self) -> Path | None:
        """The folder of masks, or None."""
        return None if self.source in (_REFERENCE, _PREDICTION) else Path(self.source)

    def reach(self, maps: CaseMaps, label: ScoredLabel) -> Mask:
        """Organ of a tumour label and the voxels next to it. Shape (D, H, W)."""
        if self.source == _PREDICTION:
            organ = np.isin(maps.prediction, label.organ_values)
        elif self.source == _REFERENCE:
            organ = np.isin(maps.reference, (*label.organ_values, *label.values))
        else:
            assert maps.organ_mask is not None  # reading a case without its mask has failed before
            organ = maps.organ_mask
        return np.asarray(ndimage.binary_dilation(organ, structure=NEIGHBOURS_26), dtype=bool)


def score_case(
    reference: Path,
    prediction: Path,
    scheme: LabelScheme,
    *,
    case: str | None = None,
    probabilities: Mapping[str, Path] | None = None,
    organ_filter: OrganFilter | None = None,
    organ_mask: Path | None = None,
    rules: ScoringRules = DEFAULT_RULES,
) -> CaseScores:
    """Score one predicted label map.

    Args:
        prediction: Predicted label map on the same grid; flipped or permuted axes are turned back.
        case: Case identifier; the reference's file name up to the first dot by default.
        probabilities: File by tumour label: nnU-Net's .npz or a probability map.
        organ_mask: The organ's mask, for a filter that takes it from files.

    Raises:
        DiffTumorError: If a file cannot be read, the grids differ or are sheared, or the values are not those of the
            scheme.
    """
    files = CaseFiles(
        case=case or Path(reference).name.split(".")[0],
        reference=Path(reference),
        prediction=Path(prediction),
        probabilities=probabilities or {},
        organ_mask=organ_mask,
    )
    return score_maps(read_case_maps(files, scheme), scheme, organ_filter=organ_filter, rules=rules)


def score_maps(
    maps: CaseMaps, scheme: LabelScheme, *, organ_filter: OrganFilter | None = None, rules: ScoringRules = DEFAULT_RULES
) -> CaseScores:
    """Score a case that was read."""
    is_ignored = np.zeros(maps.reference.shape, bool) if scheme.ignore is None else maps.reference == scheme.ignore
    known = {*scheme.tumor_values, scheme.ignore} - {None}
    is_healthy = scheme.is_healthy([value for value in known if (maps.reference == value).any()])
    labels = (_score_label(maps, label, is_ignored, organ_filter, rules) for label in scheme.labels)
    scores = tuple(LabelScores(case=maps.case, is_healthy=is_healthy, **fields) for fields in labels)
    return CaseScores(case=maps.case, is_healthy=is_healthy, labels=scores)


def _score_label(
    maps: CaseMaps, label: ScoredLabel, is_ignored: Mask, organ_filter: OrganFilter | None, rules: ScoringRules
) -> dict[str, Any]:
    """Fields of `LabelScores` but the case's own."""
    reference, found = (np.isin(labels, label.values) for labels in (maps.reference, maps.prediction))
    values = maps.probabilities.get(label.name)
    patient_score = maps.largest_probability.get(label.name, math.nan)
    if organ_filter is not None and label.is_tumor:
        reach = organ_filter.reach(maps, label)
        found = _keep_near_organ(found, reach)
        if values is not None:
            patient_score = float(values.max(where=(reach | found) & ~is_ignored, initial=0.0))
    box = box_of(reference, found)
    reference, found, is_ignored = reference[box], found[box], is_ignored[box]
    counted = found & ~is_ignored
    voxels, predicted, shared = (int(np.count_nonzero(mask)) for mask in (reference, counted, reference & counted))
    nsd_1mm, nsd_2mm = surface_agreement(reference, counted, maps.spacing_mm, TOLERANCES_MM)
    scores: dict[str, Any] = {
        "label": label.name,
        "dice": 2.0 * shared / (voxels + predicted) if voxels + predicted else math.nan,
        "nsd_1mm": nsd_1mm,
        "nsd_2mm": nsd_2mm,
        "reference_ml": voxels * maps.voxel_mm3 / 1000.0,
        "predicted_ml": predicted * maps.voxel_mm3 / 1000.0,
        "patient_score": patient_score,
    }
    if label.is_tumor:
        values = None if values is None else values[box]
        scores |= _score_tumors(maps, label.name, reference, found, is_ignored, values, rules)
    return scores


def _keep_near_organ(prediction: Mask, reach: Mask) -> Mask:
    """Drop the predicted components that have no voxel in the organ or next to it.

    A component is kept or dropped as a whole: cutting it at the organ's border would correct its outline too.
    """
    numbers, count = label_components(prediction)
    is_kept = np.zeros(count + 1, dtype=bool)
    is_kept[numbers[reach]] = True
    is_kept[0] = False
    return is_kept[numbers]


def _score_tumors(
    maps: CaseMaps, label: str, reference: Mask, prediction: Mask, is_ignored: Mask, values: Values, rules: ScoringRules
) -> dict[str, Any]:
    """Fields of `LabelScores` that only tumours have; predictions that are neither right nor wrong are left out."""
    true = find_components(reference, maps.voxel_mm3, rules)
    found = find_components(prediction, maps.voxel_mm3, rules, is_ignored)
    matching = match_components(true, found, rules.match_iou)
    touches_tumor = np.asarray(matching.iou.any(axis=0))
    is_known = ~(matching.touches_speck | found.is_mostly_ignored) | touches_tumor
    scores = np.full(len(found), math.nan)
    if values is not None:
        measure = ndimage.maximum if rules.confidence == "max" else ndimage.mean
        scores[:] = measure(values, found.numbers, np.arange(1, len(found) + 1))
    tumors = tuple(_tumor_scores(maps, label, true, matching, scores))
    predictions = tuple(
        PredictionScore(
            case=maps.case,
            label=label,
            component=number,
            volume_mm3=float(found.voxels[index] * maps.voxel_mm3),
            matched_tumor=int(partner) + 1 if (partner := matching.match_of_prediction[index]) >= 0 else None,
            iou=_overlap(matching.iou[:, index], partner),
            score=float(scores[index]),
            touches_tumor=bool(touches_tumor[index]),
        )
        for number, index in enumerate(np.flatnonzero(is_known), start=1)
    )
    matched = np.array([tumor.iou for tumor in tumors if tumor.detected])
    return {
        "reference_tumors": len(tumors),
        "detected_tumors": len(matched),
        "touched_tumors": sum(tumor.touched for tumor in tumors),
        "predicted_tumors": len(predictions),
        "false_positives": sum(each.matched_tumor is None for each in predictions),
        "panoptic_quality": panoptic_quality(matched, len(tumors), len(predictions)),
        "tumors": tumors,
        "predictions": predictions,
    }


def _tumor_scores(
    maps: CaseMaps, label: str, true: Components, matching: Matching, scores: NDArray[np.float64]
) -> Iterator[TumorScore]:
    for index, box in enumerate(ndimage.find_objects(true.numbers)):
        volume_mm3 = float(true.voxels[index] * maps.voxel_mm3)
        diameter_mm = equivalent_diameter_mm(volume_mm3)
        partner = int(matching.match_of_reference[index])
        iou = _overlap(matching.iou[index], partner)
        yield TumorScore(
            case=maps.case,
            label=label,
            tumor=index + 1,
            volume_mm3=volume_mm3,
            equivalent_diameter_mm=diameter_mm,
            axial_diameter_mm=axial_diameter_mm(true.numbers[box] == index + 1, maps.spacing_mm, maps.axial_axis),
            size_bin=bin_of(diameter_mm, SIZE_BINS_MM),
            detected=partner >= 0,
            touched=bool(matching.iou[index].any()),
            iou=iou,
            dice=2.0 * iou / (1.0 + iou),
            score=float(scores[partner]) if partner >= 0 else math.nan,
        )


def _overlap(iou: NDArray[np.float64], partner: int) -> float:
    """Overlap with the pair, or without one the largest. Shape (N,)."""
    return float(iou[partner] if partner >= 0 else iou.max(initial=0.0))
