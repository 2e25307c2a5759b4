"""Figures and curves over all cases of a folder, and the files that hold them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_difftumor.evaluation.scoring.curves import (
    FROC_RATES,
    average_precision,
    froc_curve,
    patient_curve,
    sensitivity_at,
)
from nnunet_difftumor.evaluation.scoring.rules import SIZE_BINS_MM, bin_of
from nnunet_difftumor.evaluation.scoring.tables import (
    ERRORS_FILE,
    FROC_FILE,
    ROC_FILE,
    SPECIFICITY_FILE,
    SUMMARY_FILE,
    CaseError,
    CaseScores,
    Frame,
    score_tables,
    table_of,
)
from nnunet_difftumor.evaluation.statistics.intervals import or_none, wilson_interval
from nnunet_difftumor.evaluation.statistics.roc import clustered_auc
from nnunet_difftumor.support.files.atomic_files import write_json


def write_scores(
    folder: Path, cases: Sequence[CaseScores], errors: Sequence[CaseError], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write tables, curves, errors if there are any, and summary.json, which says `about` beside the figures.

    Returns:
        The content of summary.json.
    """
    summary = {**about, "cases": len(cases), "labels": summarize(cases)}
    tables = score_tables(cases) | curve_tables(cases) | ({ERRORS_FILE: table_of(CaseError, errors)} if errors else {})
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / name, index=False, float_format="%.8g", lineterminator="\r\n")
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def summarize(cases: Sequence[CaseScores]) -> dict[str, dict[str, Any]]:
    """Sum up cases of the same labels: JSON values by label name. What cannot be said is None."""
    return {name: _summarize_label(*tables) for name, tables in _by_label(cases).items()}


def curve_tables(cases: Sequence[CaseScores]) -> dict[str, Frame]:
    """Trace the curves of the tumour labels: tables by file name, labels below one another; none without a curve."""
    found: dict[str, list[Frame]] = defaultdict(list)
    for name, (rows, tumors, predictions) in _by_label(cases).items():
        if rows["reference_tumors"].isna().any():
            continue
        volumes_mm3 = rows["case"].map(predictions.groupby("case")["volume_mm3"].max()).fillna(0.0)
        curves = {SPECIFICITY_FILE: _patient_curve(rows, volumes_mm3, "smallest_volume_mm3", lowest=0.0)}
        if _has_scores(rows):
            curves[ROC_FILE] = _patient_curve(rows, rows["patient_score"], "smallest_score")
            curves[FROC_FILE] = _froc(rows, tumors, predictions).drop(columns="precision")
        for file, curve in curves.items():
            curve.insert(0, "label", name)
            found[file].append(curve)
    return {file: pd.concat(curves) for file, curves in found.items()}


def _by_label(cases: Sequence[CaseScores]) -> dict[str, list[Frame]]:
    """Tables of cases, tumours and predicted tumours of each label."""
    tables = score_tables(cases).values()
    names = [label.label for label in cases[0].labels] if cases else []
    return {name: [table[table["label"] == name] for table in tables] for name in names}


def _summarize_label(cases: Frame, tumors: Frame, predictions: Frame) -> dict[str, Any]:
    summary = {
        "is_tumor": bool(cases["reference_tumors"].notna().all()),
        "cases": len(cases),
        "dice_mean": _mean(cases["dice"]),
        "dice_cases": int(cases["dice"].notna().sum()),
        "dice_mean_both_empty_as_1": _mean(cases["dice"].fillna(1.0)),
        **{f"{name}_mean": _mean(cases[name]) for name in ("nsd_1mm", "nsd_2mm", "reference_ml", "predicted_ml")},
    }
    if summary["is_tumor"]:
        summary |= _summarize_tumors(cases, tumors, predictions)
        summary["healthy"] = _summarize_healthy(cases[cases["is_healthy"]])
        summary |= _summarize_scores(cases, tumors, predictions)
    return summary


def _summarize_tumors(cases: Frame, tumors: Frame, predictions: Frame) -> dict[str, Any]:
    wrong, wrong_any = int(cases["false_positives"].sum()), int((~predictions["touches_tumor"]).sum())
    matched = tumors["iou"][tumors["detected"]].tolist()
    size = (len(tumors) + len(predictions)) / 2.0
    with_reference = cases[cases["reference_ml"] > 0]
    return {
        "dice_mean_with_reference": _mean(with_reference["dice"]),
        "cases_with_reference": len(with_reference),
        **_summarize_bin(tumors),
        "predicted_tumors": len(predictions),
        "false_positives": wrong,
        "false_positives_per_case": wrong / len(cases),
        "false_positives_any_overlap": wrong_any,
        "false_positives_any_overlap_per_case": wrong_any / len(cases),
        "precision": wilson_interval(len(matched), len(predictions)).to_json(),
        "f1": len(matched) / size if size else None,
        "panoptic_quality": sum(matched) / size if size else None,
        "panoptic_quality_mean": _mean(cases["panoptic_quality"]),
        "by_equivalent_diameter": _by_size(tumors, "equivalent_diameter_mm"),
        "by_axial_diameter": _by_size(tumors, "axial_diameter_mm"),
    }


def _by_size(tumors: Frame, diameter: str) -> dict[str, Any]:
    bins = tumors[diameter].map(lambda diameter_mm: bin_of(diameter_mm, SIZE_BINS_MM))
    return {name: _summarize_bin(tumors[bins == name]) for name, _, _ in SIZE_BINS_MM}


def _summarize_bin(tumors: Frame) -> dict[str, Any]:
    detected, touched = int(tumors["detected"].sum()), int(tumors["touched"].sum())
    return {
        "tumors": len(tumors),
        "detected": detected,
        "sensitivity": wilson_interval(detected, len(tumors)).to_json(),
        "touched": touched,
        "sensitivity_any_overlap": wilson_interval(touched, len(tumors)).to_json(),
        "tumor_dice_mean": _mean(tumors["dice"]),
    }


def _summarize_healthy(healthy: Frame) -> dict[str, Any]:
    clear = int((healthy["predicted_tumors"] == 0).sum())
    return {
        "scans": len(healthy),
        "without_prediction": clear,
        "specificity": wilson_interval(clear, len(healthy)).to_json(),
        "false_positives_per_scan": int(healthy["false_positives"].sum()) / len(healthy) if len(healthy) else None,
    }


def _has_scores(cases: Frame) -> bool:
    return bool(cases["patient_score"].notna().all())


def _summarize_scores(cases: Frame, tumors: Frame, predictions: Frame) -> dict[str, Any]:
    """What needs probabilities."""
    if not _has_scores(cases):
        return {"froc": None, "average_precision": None, "patient": None}
    froc = _froc(cases, tumors, predictions)
    at_rates = pd.Series({f"{rate:g}": sensitivity_at(froc, rate) for rate in FROC_RATES})
    last = froc.iloc[-1]
    known = cases[(cases["reference_tumors"] > 0) | cases["is_healthy"]]
    has_tumor = (known["reference_tumors"] > 0).to_numpy(dtype=bool)
    scores = known["patient_score"].to_numpy(dtype=float)
    area = clustered_auc(scores, has_tumor, np.arange(len(known)))  # each scan a patient of its own
    return {
        "froc": {
            "sensitivity_at": {rate: or_none(value) for rate, value in at_rates.items()},
            "mean": _mean(at_rates),
            "last": {name: or_none(last[name]) for name in ("false_positives_per_case", "sensitivity")},
        },
        "average_precision": or_none(average_precision(froc)),
        "patient": {
            "auroc": area.to_json(),
            "with_tumor": int(has_tumor.sum()),
            "healthy": int((~has_tumor).sum()),
        },
    }


def _patient_curve(cases: Frame, values: Any, name: str, **options: float) -> Frame:
    sick, healthy = values[cases["reference_tumors"] > 0].tolist(), values[cases["is_healthy"]].tolist()
    return patient_curve(sick, healthy, **options).rename(columns={"threshold": name})


def _froc(cases: Frame, tumors: Frame, predictions: Frame) -> Frame:
    pairs, wrong = tumors["score"][tumors["detected"]], predictions["score"][predictions["matched_tumor"].isna()]
    return froc_curve(pairs.tolist(), wrong.tolist(), len(tumors), len(cases))


def _mean(values: Any) -> float | None:
    known = values.dropna().to_numpy()
    return float(np.mean(known)) if len(known) else None
