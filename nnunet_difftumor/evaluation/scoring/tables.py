"""The tables of a scoring, and how they are read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.evaluation.scoring.jobs import CaseError

SUMMARY_FILE = "summary.json"
CASES_FILE = "cases.csv"
TUMORS_FILE = "tumors.csv"
PREDICTIONS_FILE = "predictions.csv"
ERRORS_FILE = "errors.csv"
FROC_FILE = "froc.csv"
SPECIFICITY_FILE = "specificity.csv"
ROC_FILE = "roc.csv"
FILTERED_FOLDER = "organ_filter"

CASE_COLUMNS = tuple(
    "case label is_healthy dice nsd_1mm nsd_2mm reference_ml predicted_ml reference_tumors detected_tumors "
    "touched_tumors predicted_tumors false_positives panoptic_quality patient_score".split()
)
COUNT_COLUMNS = CASE_COLUMNS[8:13]
"""Columns of `CASE_COLUMNS` that are empty for a label that is no tumour."""

_COLUMN_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("case", "label", "size_bin", "error", "message"), str),
    **dict.fromkeys(("is_healthy", "detected", "touched", "touches_tumor"), bool),
    **dict.fromkeys((*COUNT_COLUMNS, "tumor", "component", "matched_tumor"), "Int64"),
}


@dataclass(frozen=True, eq=False)
class Scores:
    """What `difftumor score` wrote.

    Attributes:
        cases: One row a case and label.
        tumors: One row a reference tumour.
        predictions: One row a predicted tumour.
        errors: One row a case without scores.
        summary: The content of summary.json.
    """

    cases: pd.DataFrame
    tumors: pd.DataFrame
    predictions: pd.DataFrame
    errors: pd.DataFrame
    summary: Mapping[str, Any]


def load_scores(folder: Path) -> Scores:
    """Read an output folder of `difftumor score`.

    Args:
        folder: The folder, or its `organ_filter`.

    Returns:
        Tables and summary. What is empty in a file is missing (NaN) in the table.

    Raises:
        DatasetError: If the folder is not such a folder.
    """
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        tables = [_read_table(folder / name) for name in (CASES_FILE, TUMORS_FILE, PREDICTIONS_FILE)]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder} is no output folder of `difftumor score` ({error}).") from error
    errors = pd.DataFrame(columns=[each.name for each in fields(CaseError)])
    if (folder / ERRORS_FILE).is_file():
        errors = _read_table(folder / ERRORS_FILE)
    return Scores(tables[0], tables[1], tables[2], errors, summary)


def _read_table(path: Path) -> pd.DataFrame:
    """Read a table by `_COLUMN_TYPES`, other columns as numbers; only what is empty is missing (a case may be NA)."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    for name in table.columns:
        kind = _COLUMN_TYPES.get(name, float)
        if kind is bool:
            table[name] = table[name] == "True"
        elif kind is not str:
            table[name] = table[name].astype(float).astype(kind)
    return table
