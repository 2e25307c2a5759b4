"""The tables of scores: their columns, how they become files, whole or not at all, and how they are read again."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from nnunet_difftumor.errors import DatasetError, DiffTumorError, OutputExistsError
from nnunet_difftumor.evaluation.scoring.records import CaseError, CaseScores, LabelScores, PredictionScore, TumorScore
from nnunet_difftumor.support.files.atomic_files import write_json

SUMMARY_FILE = "summary.json"
CASES_FILE, TUMORS_FILE, PREDICTIONS_FILE = "cases.csv", "tumors.csv", "predictions.csv"
ERRORS_FILE = "errors.csv"
FROC_FILE, SPECIFICITY_FILE, ROC_FILE = "froc.csv", "specificity.csv", "roc.csv"
FILTERED_FOLDER = "organ_filter"

RECORDS = {CASES_FILE: LabelScores, TUMORS_FILE: TumorScore, PREDICTIONS_FILE: PredictionScore}
"""What a row of each table is: its fields are the columns, with their types; an empty cell is no value (NaN, None)."""

Frame = Any
"""A pandas.DataFrame. Whether a selection of one is a frame, a column or a value, pandas' annotations do not tell."""

_OUR_FILES = (*RECORDS, ERRORS_FILE, FROC_FILE, SPECIFICITY_FILE, ROC_FILE, FILTERED_FOLDER, SUMMARY_FILE)
_DTYPES = {bool: "bool", float: "float64", int: "Int64", int | None: "Int64", str: "object"}
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def columns_of(record: type) -> dict[str, Any]:
    """Columns of a table by the record that is its row, with their types; tuples of other records are none."""
    return {name: kind for name, kind in get_type_hints(record).items() if kind in _DTYPES}


def table_of(record: type, rows: Iterable[Any]) -> pd.DataFrame:
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


def write_tables(
    folder: Path, tables: Mapping[str, pd.DataFrame], errors: Sequence[CaseError], summary: Mapping[str, Any]
) -> None:
    """Write the files of a scoring into a folder of their own: tables by file name, errors if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in {**tables, **({ERRORS_FILE: table_of(CaseError, errors)} if errors else {})}.items():
        table.to_csv(folder / name, index=False, float_format="%.8g", lineterminator="\r\n")
    write_json(folder / SUMMARY_FILE, summary)


def read_scores(path: Path, columns: Sequence[str]) -> Frame:
    """Read some columns of a file of one of the names in `RECORDS`.

    Returns:
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
    values = texts.map(_TRUTH) if kind is bool else pd.to_numeric(texts.mask(texts == ""), errors="coerce")
    is_wrong = values.isna() if kind is bool else values.isna() & ~texts.isin(["", "nan", "none"])
    if is_wrong.any():
        row, expected = int(is_wrong.to_numpy().argmax()), "True or False" if kind is bool else "a number"
        raise DatasetError(f"{path}, row {row + 2}: {written.name} must be {expected}, got {written.iloc[row]!r}.")
    return values.astype(bool if kind is bool else float)


@contextmanager
def new_output_folder(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder, and move what is in it to `output` when the block ends without an error.

    The temporary folder lies in `output` if that exists, else beside it: on the same file system, where `output` is
    a link or a mount point too.

    Args:
        overwrite: Replace results of an earlier scoring; other files in the folder are left alone.

    Raises:
        OutputExistsError: If `output` holds results and `overwrite` is False, or is a file.
        DiffTumorError: If `output` cannot be written to.
    """
    _check_output(output, overwrite=overwrite)
    place = output.resolve()
    temporary = (place if place.exists() else place.parent) / f".partial-{os.getpid()}-{secrets.token_hex(4)}"
    new_parents = [folder for folder in temporary.parents if not folder.exists()]
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise DiffTumorError(
                f"--output {output} cannot be written to: {error.strerror} ({temporary.parent}). Choose another "
                "folder, or make this one writable."
            ) from error
        yield temporary
        _check_output(output, overwrite=overwrite)
        if place.exists():
            for name in _OUR_FILES:
                _replace(temporary / name, place / name)
        else:
            os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in new_parents:
            with suppress(OSError):  # it holds the results
                folder.rmdir()


def _check_output(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"--output {output} is a file; name a folder.")
    existing = [name for name in _OUR_FILES if (output / name).exists()]
    if existing and not overwrite:
        raise OutputExistsError(
            f"{output} holds {', '.join(existing)} already. Choose another --output, or add --overwrite."
        )


def _replace(new: Path, old: Path) -> None:
    """Put a file or folder in the place of another; without a new one the old one goes."""
    if old.is_dir():
        shutil.rmtree(old)
    if new.exists():
        os.replace(new, old)
    else:
        old.unlink(missing_ok=True)
