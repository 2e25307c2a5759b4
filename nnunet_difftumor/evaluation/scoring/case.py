"""Scores of one case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.evaluation.scoring.case_maps import CaseFiles, CaseMaps, box_of, read_case_maps
from nnunet_difftumor.evaluation.scoring.components import (
    Components,
    Matching,
    axial_diameter_mm,
    find_components,
    match_components,
    panoptic_quality,
)
from nnunet_difftumor.evaluation.scoring.organ_filter import OrganFilter, keep_near_organ
from nnunet_difftumor.evaluation.scoring.records import CaseScores, LabelScores, PredictionScore, TumorScore
from nnunet_difftumor.evaluation.scoring.rules import SIZE_BINS_MM, TOLERANCES_MM, ScoringRules, bin_of
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme, ScoredLabel
from nnunet_difftumor.evaluation.scoring.surfaces import surface_agreement

DEFAULT_RULES = ScoringRules()

Mask = NDArray[np.bool_]


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
        organ_filter: Drop predicted tumours outside the organ.
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
    """Score a case that was read; `organ_filter` drops predicted tumours outside the organ."""
    is_partly_unknown = scheme.ignore is not None and bool((maps.reference == scheme.ignore).any())
    is_ignored = maps.reference == scheme.ignore if is_partly_unknown else None
    has_tumor = bool(np.isin(maps.reference, sorted(scheme.tumor_values)).any())
    is_healthy = not has_tumor and not is_partly_unknown
    labels = (_score_label(maps, label, is_ignored, organ_filter, rules) for label in scheme.labels)
    scores = tuple(LabelScores(case=maps.case, is_healthy=is_healthy, **fields) for fields in labels)
    return CaseScores(case=maps.case, is_healthy=is_healthy, labels=scores)


def _score_label(
    maps: CaseMaps, label: ScoredLabel, is_ignored: Mask | None, organ_filter: OrganFilter | None, rules: ScoringRules
) -> dict[str, Any]:
    """Fields of `LabelScores` but the case's own."""
    reference, whole = (np.isin(labels, label.values) for labels in (maps.reference, maps.prediction))
    patient_score = maps.largest_probability.get(label.name, math.nan)
    if organ_filter is not None and label.is_tumor:
        reach = organ_filter.reach(maps, label)
        whole = keep_near_organ(whole, reach)
        if label.name in maps.probabilities:
            counts = reach | whole if is_ignored is None else (reach | whole) & ~is_ignored
            patient_score = float(maps.probabilities[label.name].max(where=counts, initial=0.0))
    prediction = whole if is_ignored is None else whole & ~is_ignored
    voxels = [int(np.count_nonzero(mask)) for mask in (reference, prediction)]
    box = box_of(reference, whole)
    reference, prediction, whole = reference[box], prediction[box], whole[box]
    shared = int(np.count_nonzero(reference & prediction))
    near, far = surface_agreement(reference, prediction, maps.spacing_mm, TOLERANCES_MM)
    scores: dict[str, Any] = {
        "label": label.name,
        "dice": 2.0 * shared / sum(voxels) if sum(voxels) else math.nan,
        "nsd_1mm": near,
        "nsd_2mm": far,
        "reference_ml": voxels[0] * maps.voxel_mm3 / 1000.0,
        "predicted_ml": voxels[1] * maps.voxel_mm3 / 1000.0,
        "panoptic_quality": math.nan,
        "patient_score": patient_score,
    }
    if label.is_tumor:
        values = maps.probabilities[label.name][box] if label.name in maps.probabilities else None
        ignored = None if is_ignored is None else is_ignored[box]
        scores |= _score_tumors(maps, label.name, reference, whole, values, ignored, rules)
    return scores


def _score_tumors(
    maps: CaseMaps,
    label: str,
    reference: Mask,
    prediction: Mask,
    values: NDArray[np.float32] | None,
    is_ignored: Mask | None,
    rules: ScoringRules,
) -> dict[str, Any]:
    """Fields of `LabelScores` that only tumours have; predictions that are neither right nor wrong are left out."""
    true = find_components(reference, maps.voxel_mm3, rules)
    found = find_components(prediction, maps.voxel_mm3, rules, is_ignored)
    matching = match_components(true, found, rules.match_iou)
    is_unknown = (matching.touches_speck | found.is_mostly_ignored) & ~matching.touching_predictions
    scores = _component_scores(found, values, rules)
    tumors = _tumor_scores(maps, label, true, matching, scores)
    predictions = tuple(
        PredictionScore(
            case=maps.case,
            label=label,
            component=number,
            volume_mm3=float(found.voxels[index] * maps.voxel_mm3),
            matched_tumor=int(partner) + 1 if (partner := matching.match_of_prediction[index]) >= 0 else None,
            iou=_overlap(matching.iou[:, index], partner),
            score=float(scores[index]),
            touches_tumor=bool(matching.touching_predictions[index]),
        )
        for number, index in enumerate(np.flatnonzero(~is_unknown), start=1)
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
) -> tuple[TumorScore, ...]:
    tumors = []
    for index, box in enumerate(ndimage.find_objects(true.numbers)):
        volume_mm3 = float(true.voxels[index] * maps.voxel_mm3)
        diameter_mm = equivalent_diameter_mm(volume_mm3)
        partner = int(matching.match_of_reference[index])
        iou = _overlap(matching.iou[index], partner)
        tumors.append(
            TumorScore(
                case=maps.case,
                label=label,
                tumor=index + 1,
                volume_mm3=volume_mm3,
                equivalent_diameter_mm=diameter_mm,
                axial_diameter_mm=axial_diameter_mm(true.numbers[box] == index + 1, maps.spacing_mm, maps.axial_axis),
                size_bin=bin_of(diameter_mm, SIZE_BINS_MM),
                detected=partner >= 0,
                touched=bool(matching.touched_references[index]),
                iou=iou,
                dice=2.0 * iou / (1.0 + iou),
                score=float(scores[partner]) if partner >= 0 else math.nan,
            )
        )
    return tuple(tumors)


def _overlap(iou: NDArray[np.float64], partner: int) -> float:
    """Overlap with the pair, or without one the largest. Shape (N,)."""
    return float(iou[partner] if partner >= 0 else iou.max(initial=0.0))


def _component_scores(
    found: Components, values: NDArray[np.float32] | None, rules: ScoringRules
) -> NDArray[np.float64]:
    """Largest or mean probability of each predicted tumour; NaN without probabilities. Shape (M,)."""
    if values is None or not len(found):
        return np.full(len(found), math.nan)
    measure = ndimage.maximum if rules.confidence == "max" else ndimage.mean
    return np.asarray(measure(values, found.numbers, np.arange(1, len(found) + 1)), dtype=np.float64)
