"""The files of a scoring and their columns, written whole or not at all."""

from __future__ import annotations

import csv
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import DiffTumorError, OutputExistsError
from nnunet_difftumor.evaluation.scoring.records import CaseError, CaseScores, LabelScores, PredictionScore, TumorScore
from nnunet_difftumor.evaluation.scoring.summary import froc_of_label, score_curve, volume_curve
from nnunet_difftumor.support.files.atomic_files import write_json

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

_OUR_FILES = (
    *(CASES_FILE, TUMORS_FILE, PREDICTIONS_FILE, ERRORS_FILE),
    *(FROC_FILE, SPECIFICITY_FILE, ROC_FILE, FILTERED_FOLDER, SUMMARY_FILE),
)


def write_tables(folder: Path, cases: Sequence[CaseScores], errors: Sequence[CaseError], summary: Any) -> None:
    """Write the files of a scoring into a folder of their own.

    Args:
        folder: Folder; made if it is missing.
        cases: Scores of the cases, sorted.
        errors: Cases without scores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(case, label) for case in cases for label in case.labels]
    _write_rows(folder / CASES_FILE, CASE_COLUMNS, (_case_row(case, label) for case, label in rows))
    kinds = ((TUMORS_FILE, TumorScore, "tumors"), (PREDICTIONS_FILE, PredictionScore, "predictions"))
    for name, kind, attribute in kinds:
        columns = ("case", "label", *(each.name for each in fields(kind)))
        of_kind = [
            {"case": case.case, "label": label.label, **asdict(each)}
            for case, label in rows
            for each in getattr(label, attribute)
        ]
        _write_rows(folder / name, columns, iter(of_kind))
    _write_curves(folder, cases)
    if errors:
        _write_rows(folder / ERRORS_FILE, [each.name for each in fields(CaseError)], (asdict(each) for each in errors))
    write_json(folder / SUMMARY_FILE, summary)


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
    check_output(output, overwrite=overwrite)
    place = output.resolve()
    temporary = (place if place.exists() else place.parent) / f".partial-{os.getpid()}-{secrets.token_hex(4)}"
    new_parents = [folder for folder in temporary.parents if not folder.exists()]
    try:
        _make_folder(temporary, output)
        yield temporary
        check_output(output, overwrite=overwrite)
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


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError if results would be overwritten without being asked to."""
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"--output {output} is a file; name a folder.")
    existing = [name for name in _OUR_FILES if (output / name).exists()]
    if existing and not overwrite:
        raise OutputExistsError(
            f"{output} holds {', '.join(existing)} already. Choose another --output, or add --overwrite."
        )


def _make_folder(temporary: Path, output: Path) -> None:
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DiffTumorError(
            f"--output {output} cannot be written to: {error.strerror} ({temporary.parent}). Choose another folder, or "
            "make this one writable."
        ) from error


def _replace(new: Path, old: Path) -> None:
    """Put a file or folder in the place of another; without a new one the old one goes."""
    if old.is_dir():
        shutil.rmtree(old)
    if new.exists():
        os.replace(new, old)
    else:
        old.unlink(missing_ok=True)


def _case_row(case: CaseScores, label: LabelScores) -> dict[str, Any]:
    own = {name: getattr(label, name) for name in CASE_COLUMNS if name not in ("case", "is_healthy", *COUNT_COLUMNS)}
    counts = dict.fromkeys(COUNT_COLUMNS)
    if label.is_tumor:
        counts |= {
            "reference_tumors": len(label.tumors),
            "detected_tumors": label.detected_tumors,
            "touched_tumors": label.touched_tumors,
            "predicted_tumors": len(label.predictions),
            "false_positives": label.false_positives,
        }
    return {"case": case.case, "is_healthy": case.is_healthy, **own, **counts}


def _write_curves(folder: Path, cases: Sequence[CaseScores]) -> None:
    names = [label.label for label in cases[0].labels if label.is_tumor] if cases else []
    by_volume = {name: volume_curve(cases, name) for name in names}
    by_score = {name: score_curve(cases, name) for name in names}
    for file, threshold, curves in (
        (SPECIFICITY_FILE, "smallest_volume_mm3", by_volume),
        (ROC_FILE, "smallest_score", by_score),
    ):
        points = {
            name: (curve.threshold, curve.specificity, curve.sensitivity) for name, curve in curves.items() if curve
        }
        _write_points(folder / file, ("label", threshold, "specificity", "sensitivity"), points)
    free = {name: froc_of_label(cases, name) for name in names}
    points = {
        name: (curve.threshold, curve.false_positives_per_case, curve.sensitivity)
        for name, curve in free.items()
        if curve
    }
    _write_points(folder / FROC_FILE, ("label", "smallest_score", "false_positives_per_case", "sensitivity"), points)


def _write_points(path: Path, columns: Sequence[str], points: Mapping[str, Sequence[Any]]) -> None:
    """Write curves below one another; no file without any."""
    rows = [dict(zip(columns, (name, *row), strict=True)) for name in points for row in zip(*points[name], strict=True)]
    if rows:
        _write_rows(path, columns, iter(rows))


def _write_rows(path: Path, columns: Sequence[str], rows: Iterator[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _shown(row[name]) for name in columns})


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.8g}"
    return "" if value is None else value
