"""Curves over thresholds: free-response ROC, average precision, patient ROC, specificity on healthy scans."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per case at which the sensitivity is reported."""


def froc_curve(pair_scores: ArrayLike, false_scores: ArrayLike, tumors: int, cases: int) -> pd.DataFrame:
    """Trace sensitivity against false positives when only predicted tumours from some score on are kept.

    Pairs are not made anew at each threshold: a pair whose prediction falls below it is lost.

    Args:
        pair_scores: Score of the pair of each reference tumour that has one.
        false_scores: Score of each predicted tumour without a pair.

    Returns:
        `smallest_score` in descending order, infinity first, `false_positives_per_case`, `sensitivity` (NaN without
        tumours), and `precision`, the share of what is kept that has a pair.
    """
    pairs, wrong = np.sort(pair_scores), np.sort(false_scores)
    threshold = np.concatenate([[math.inf], np.unique(np.concatenate([pairs, wrong]))[::-1]])
    found = len(pairs) - np.searchsorted(pairs, threshold)
    false = len(wrong) - np.searchsorted(wrong, threshold)
    return pd.DataFrame(
        {
            "smallest_score": threshold,
            "false_positives_per_case": false / cases,
            "sensitivity": found / tumors if tumors else math.nan,
            "precision": found / np.maximum(found + false, 1),
        }
    )


def sensitivity_at(froc: Any, rate: float) -> float:
    """Largest sensitivity with at most `rate` false positives per case."""
    return float(froc["sensitivity"][froc["false_positives_per_case"] <= rate].iloc[-1])


def average_precision(froc: Any) -> float:
    """Area under the precision-recall steps: precision at a threshold times the recall it adds; NaN without tumours."""
    sensitivity = froc["sensitivity"].to_numpy()
    if math.isnan(sensitivity[0]):
        return math.nan
    return float((np.diff(sensitivity) * froc["precision"].to_numpy()[1:]).sum())


def patient_curve(with_tumor: ArrayLike, healthy: ArrayLike, lowest: float = -math.inf) -> pd.DataFrame:
    """Trace sensitivity and specificity of scans that count as positive from some value on.

    Args:
        with_tumor: Value of each scan with a tumour.
        lowest: Values of `lowest` or less never make a scan positive.

    Returns:
        `threshold` in descending order, infinity first, `specificity` (NaN without healthy scans) and `sensitivity`
        (NaN without scans with a tumour).
    """
    sick, well = np.sort(with_tumor), np.sort(healthy)
    values = np.unique(np.concatenate([sick, well]))
    threshold = np.concatenate([[math.inf], values[values > lowest][::-1]])
    return pd.DataFrame(
        {
            "threshold": threshold,
            "specificity": np.searchsorted(well, threshold) / (len(well) or math.nan),
            "sensitivity": 1.0 - np.searchsorted(sick, threshold) / (len(sick) or math.nan),
        }
    )
