"""Figures over all cases of a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnunet_difftumor.evaluation.scoring.curves import (
    FROC_RATES,
    FrocCurve,
    PatientCurve,
    froc_curve,
    patient_curve,
    wilson_interval,
)
from nnunet_difftumor.evaluation.scoring.records import CaseScores, LabelScores, TumorScore
from nnunet_difftumor.evaluation.scoring.rules import SIZE_BINS_MM, size_bin
from nnunet_difftumor.evaluation.statistics.intervals import or_none
from nnunet_difftumor.evaluation.statistics.roc import clustered_auc


def summarize(cases: Sequence[CaseScores]) -> dict[str, dict[str, Any]]:
    """Sum up the cases, label by label.

    Args:
        cases: At least one case; all have the same labels.

    Returns:
        JSON values by label name. What cannot be said is None.
    """
    names = [label.label for label in cases[0].labels] if cases else []
    return {name: _summarize_label(cases, [case.of_label(name) for case in cases]) for name in names}


def froc_of_label(cases: Sequence[CaseScores], name: str) -> FrocCurve | None:
    """Free-response curve of a tumour label; None without probabilities."""
    return _froc([case.of_label(name) for case in cases])


def volume_curve(cases: Sequence[CaseScores], name: str) -> PatientCurve:
    """Sensitivity and specificity of scans whose largest predicted tumour has at least a volume in mm3."""
    return _patient_curve(cases, name, lambda label: label.largest_prediction_mm3, lowest=0.0)


def score_curve(cases: Sequence[CaseScores], name: str) -> PatientCurve | None:
    """Sensitivity and specificity over the patient score; None without probabilities."""
    if any(math.isnan(case.of_label(name).patient_score) for case in cases):
        return None
    return _patient_curve(cases, name, lambda label: label.patient_score)


def _patient_curve(
    cases: Sequence[CaseScores], name: str, value: Callable[[LabelScores], float], lowest: float = -math.inf
) -> PatientCurve:
    labels = [(case.is_healthy, case.of_label(name)) for case in cases]
    sick = [value(label) for _, label in labels if label.tumors]
    well = [value(label) for is_healthy, label in labels if is_healthy]
    return patient_curve(sick, well, lowest)


def _summarize_label(cases: Sequence[CaseScores], labels: Sequence[LabelScores]) -> dict[str, Any]:
    defined = [label.dice for label in labels if not math.isnan(label.dice)]
    summary: dict[str, Any] = {
        "is_tumor": labels[0].is_tumor,
        "cases": len(labels),
        "dice_mean": _mean(defined),
        "dice_cases": len(defined),
        "dice_mean_both_empty_as_1": _mean([1.0 if math.isnan(label.dice) else label.dice for label in labels]),
        "nsd_1mm_mean": _mean([label.nsd_1mm for label in labels]),
        "nsd_2mm_mean": _mean([label.nsd_2mm for label in labels]),
        "reference_ml_mean": _mean([label.reference_ml for label in labels]),
        "predicted_ml_mean": _mean([label.predicted_ml for label in labels]),
    }
    if labels[0].is_tumor:
        summary |= _summarize_tumors(labels)
        summary["healthy"] = _summarize_healthy(cases, labels)
        summary |= _summarize_scores(cases, labels)
    return summary


def _summarize_tumors(labels: Sequence[LabelScores]) -> dict[str, Any]:
    tumors = [tumor for label in labels for tumor in label.tumors]
    predictions = [prediction for label in labels for prediction in label.predictions]
    wrong = sum(label.false_positives for label in labels)
    wrong_any = sum(not prediction.touches_tumor for prediction in predictions)
    matched = [tumor.iou for tumor in tumors if tumor.detected]
    size = (len(tumors) + len(predictions)) / 2.0
    with_reference = [label for label in labels if label.reference_ml > 0]
    return {
        "dice_mean_with_reference": _mean([label.dice for label in with_reference]),
        "cases_with_reference": len(with_reference),
        **_summarize_bin(tumors),
        "predicted_tumors": len(predictions),
        "false_positives": wrong,
        "false_positives_per_case": wrong / len(labels),
        "false_positives_any_overlap": wrong_any,
        "false_positives_any_overlap_per_case": wrong_any / len(labels),
        "precision": wilson_interval(len(matched), len(predictions)).to_json(),
        "f1": len(matched) / size if size else None,
        "panoptic_quality": sum(matched) / size if size else None,
        "panoptic_quality_mean": _mean([label.panoptic_quality for label in labels]),
        "by_equivalent_diameter": _by_size(tumors, lambda tumor: tumor.equivalent_diameter_mm),
        "by_axial_diameter": _by_size(tumors, lambda tumor: tumor.axial_diameter_mm),
    }


def _by_size(tumors: Sequence[TumorScore], diameter: Callable[[TumorScore], float]) -> dict[str, Any]:
    return {
        name: _summarize_bin([tumor for tumor in tumors if size_bin(diameter(tumor)) == name])
        for name, _, _ in SIZE_BINS_MM
    }


def _summarize_bin(tumors: Sequence[TumorScore]) -> dict[str, Any]:
    detected, touched = sum(tumor.detected for tumor in tumors), sum(tumor.touched for tumor in tumors)
    return {
        "tumors": len(tumors),
        "detected": detected,
        "sensitivity": wilson_interval(detected, len(tumors)).to_json(),
        "touched": touched,
        "sensitivity_any_overlap": wilson_interval(touched, len(tumors)).to_json(),
        "tumor_dice_mean": _mean([tumor.dice for tumor in tumors]),
    }


def _summarize_healthy(cases: Sequence[CaseScores], labels: Sequence[LabelScores]) -> dict[str, Any]:
    healthy = [label for case, label in zip(cases, labels, strict=True) if case.is_healthy]
    wrong = sum(label.false_positives for label in healthy)
    return {
        "scans": len(healthy),
        "without_prediction": sum(not label.predictions for label in healthy),
        "specificity": wilson_interval(sum(not label.predictions for label in healthy), len(healthy)).to_json(),
        "false_positives_per_scan": wrong / len(healthy) if healthy else None,
    }


def _summarize_scores(cases: Sequence[CaseScores], labels: Sequence[LabelScores]) -> dict[str, Any]:
    """What needs probabilities."""
    froc = _froc(labels)
    if froc is None:
        return {"froc": None, "average_precision": None, "patient": None}
    at_rates = [froc.sensitivity_at(rate) for rate in FROC_RATES]
    return {
        "froc": {
            "sensitivity_at": {f"{rate:g}": or_none(value) for rate, value in zip(FROC_RATES, at_rates, strict=True)},
            "mean": _mean(at_rates),
            "last": {
                "false_positives_per_case": float(froc.false_positives_per_case[-1]),
                "sensitivity": or_none(float(froc.sensitivity[-1])),
            },
        },
        "average_precision": or_none(froc.average_precision),
        "patient": _summarize_patients(cases, labels),
    }


def _summarize_patients(cases: Sequence[CaseScores], labels: Sequence[LabelScores]) -> dict[str, Any]:
    """Area under the ROC curve of the patient score: scans with a tumour against healthy ones."""
    known = [label for case, label in zip(cases, labels, strict=True) if label.tumors or case.is_healthy]
    scores = np.array([label.patient_score for label in known])
    has_tumor = np.array([len(label.tumors) > 0 for label in known], dtype=bool)
    area = clustered_auc(scores, has_tumor, np.arange(len(known)))  # each scan a patient of its own
    with_tumor = int(has_tumor.sum())
    return {"auroc": area.to_json(), "with_tumor": with_tumor, "healthy": len(known) - with_tumor}


def _froc(labels: Sequence[LabelScores]) -> FrocCurve | None:
    if any(math.isnan(label.patient_score) for label in labels):
        return None
    tumors = [tumor for label in labels for tumor in label.tumors]
    predictions = [prediction for label in labels for prediction in label.predictions]
    return froc_curve(
        [tumor.score for tumor in tumors if tumor.detected],
        [prediction.score for prediction in predictions if prediction.matched_tumor is None],
        len(tumors),
        len(labels),
    )


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else None
