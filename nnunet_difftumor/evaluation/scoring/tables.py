"""The tables of scores: the records that are their rows, the folder that holds them whole or not at all, their reader.

The fields of a record are the columns of its table, with their types; an empty cell is no value (NaN, None).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.support.files.atomic_files import results_folder

SUMMARY_FILE = "summary.json"
CASES_FILE, TUMORS_FILE, PREDICTIONS_FILE = "cases.csv", "tumors.csv", "predictions.csv"
ERRORS_FILE = "errors.csv"
FROC_FILE, SPECIFICITY_FILE, ROC_FILE = "froc.csv", "specificity.csv", "roc.csv"
FILTERED_FOLDER = "organ_filter"

Frame = Any
"""A pandas.DataFrame. Whether a selection of one is a frame, a column or a value, pandas' annotations do not tell."""

_DTYPES = {bool: "bool", float: "float64", int: "Int64", int | None: "Int64", str: "object"}
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True, kw_only=True)
class TumorScore:
    """One reference tumour: a row of tumors.csv.

    Attributes:
        tumor: Number within case and label, from 1.
        axial_diameter_mm: Largest diameter in an axial slice.
        size_bin: Bin of the equivalent diameter (see `rules.SIZE_BINS_MM`).
        detected: A predicted tumour is paired with it.
        touched: A predicted tumour shares a voxel with it.
        iou: Intersection over union with its pair, or without one with the predicted tumour that overlaps most.
        dice: Dice with the same predicted tumour.
        score: Score of the pair; NaN without a pair or without probabilities.
    """

    case: str
    label: str
    tumor: int
    volume_mm3: float
    equivalent_diameter_mm: float
    axial_diameter_mm: float
    size_bin: str
    detected: bool
    touched: bool
    iou: float
    dice: float
    score: float


@dataclass(frozen=True, kw_only=True)
class PredictionScore:
    """One predicted tumour: a row of predictions.csv.

    Attributes:
        component: Number within case and label, from 1.
        matched_tumor: Number of its reference tumour; None for a false positive.
        iou: Intersection over union with its pair, or without one with the reference tumour that overlaps most.
        score: Largest or mean probability; NaN without probabilities.
        touches_tumor: It shares a voxel with a reference tumour.
    """

    case: str
    label: str
    component: int
    volume_mm3: float
    matched_tumor: int | None
    iou: float
    score: float
    touches_tumor: bool


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """One label of one case: a row of cases.csv, and the tumours and predicted tumours that count.

    Dice and surface distances are NaN if the label is in neither map; a label that is no tumour has no numbers of
    tumours (None).

    Attributes:
        label: Name in dataset.json.
        detected_tumors: Reference tumours with a pair.
        touched_tumors: Reference tumours that share a voxel with a predicted one.
        false_positives: Predicted tumours without a pair.
        panoptic_quality: NaN without any tumour and for a label that is no tumour.
        patient_score: Largest tumour probability in the scan; NaN without probabilities.
    """

    case: str
    label: str
    is_healthy: bool
    dice: float
    nsd_1mm: float
    nsd_2mm: float
    reference_ml: float
    predicted_ml: float
    reference_tumors: int | None = None
    detected_tumors: int | None = None
    touched_tumors: int | None = None
    predicted_tumors: int | None = None
    false_positives: int | None = None
    panoptic_quality: float = math.nan
    patient_score: float
    tumors: tuple[TumorScore, ...] = ()
    predictions: tuple[PredictionScore, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """All labels of one case, in the order of dataset.json.

    It is healthy if the reference has no voxel of any tumour label, not even a speck, and none of the ignore label.
    """

    case: str
    is_healthy: bool
    labels: tuple[LabelScores, ...]

    def of_label(self, name: str) -> LabelScores:
        """Return the scores of a label; KeyError if the case has no such label."""
        scores = {each.label: each for each in self.labels}
        if name not in scores:
            raise KeyError(f"{self.case} has no label {name!r}; it has {', '.join(scores)}.")
        return scores[name]


@dataclass(frozen=True)
class CaseError:
    """Why a case has no scores: a row of errors.csv."""

    case: str
    error: str
    message: str


RECORDS = {CASES_FILE: LabelScores, TUMORS_FILE: TumorScore, PREDICTIONS_FILE: PredictionScore}
_OUR_FILES = (*RECORDS, ERRORS_FILE, FROC_FILE, SPECIFICITY_FILE, ROC_FILE, FILTERED_FOLDER, SUMMARY_FILE)


def columns_of(record: type) -> dict[str, Any]:
    """Columns of a table with their types; tuples of other records are none."""
    return {name: kind for name, kind in get_type_hints(record).items() if kind in _DTYPES}


def table_of(record: type, rows: Iterable[Any]) -> Frame:
    """Put records of one kind below one another."""
    columns = columns_of(record)
    table = pd.DataFrame([vars(row) for row in rows], columns=list(columns))
    return table.astype({name: _DTYPES[kind] for name, kind in columns.items()})


def score_tables(cases: Sequence[CaseScores]) -> dict[str, Frame]:
    """Tables of cases, tumours and predicted tumours by file name."""
    labels = [label for case in cases for label in case.labels]
    return {
        CASES_FILE: table_of(LabelScores, labels),
        TUMORS_FILE: table_of(TumorScore, (tumor for label in labels for tumor in label.tumors)),
        PREDICTIONS_FILE: table_of(PredictionScore, (each for label in labels for each in label.predictions)),
    }


def read_scores(path: Path, columns: Sequence[str]) -> Frame:
    """Read some columns of a file of one of the names in `RECORDS`.

    Truth values, texts (numbers of tumours among them: they are names) and, for all other numbers, floats.

    Raises:
        DatasetError: If the file cannot be read, a column is missing, or a value is of another type.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. `difftumor score` writes it.") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise DatasetError(f"{path} lacks the columns {', '.join(missing)}. Write it with `difftumor score`.")
    types = columns_of(RECORDS[path.name])
    return pd.DataFrame({name: _parsed(table[name], types[name], path) for name in columns})


def _parsed(written: Any, kind: Any, path: Path) -> pd.Series:
    if kind in (str, int):
        return written
    texts = written.str.lower()
    values: Any = texts.map(_TRUTH) if kind is bool else pd.to_numeric(texts.mask(texts == ""), errors="coerce")
    is_wrong = values.isna() if kind is bool else values.isna() & ~texts.isin(["", "nan", "none"])
    if is_wrong.any():
        row, expected = int(is_wrong.to_numpy().argmax()), "True or False" if kind is bool else "a number"
        raise DatasetError(f"{path}, row {row + 2}: {written.name} must be {expected}, got {written.iloc[row]!r}.")
    return values.astype(bool if kind is bool else float)


def new_output_folder(output: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """Give the folder that a scoring is written to (see `results_folder`)."""
    return results_folder(output, _OUR_FILES, overwrite=overwrite)
