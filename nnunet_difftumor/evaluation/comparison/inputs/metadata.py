"""What is known about scans beside their images: patient, age, sex, phase, scanner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nnunet_difftumor.cases.known_cases import read_case_table
from nnunet_difftumor.errors import DatasetError, list_some
from nnunet_difftumor.evaluation.scoring.rules import bin_of, bins_of
from nnunet_difftumor.evaluation.scoring.tables import Frame

NOT_RECORDED = "not recorded"
_COLUMNS = ("case", "patient", "hospital", "age", "sex", "phase", "scanner")
_SCAN = ["hospital", "case"]


def read_metadata(
    path: Path | None, scans: Sequence[tuple[str, str]], age_bins: Sequence[float]
) -> tuple[Frame, list[str]]:
    """Find the facts of scans in a CSV with the columns case, patient, hospital, age, sex, phase, scanner.

    All columns but case may be missing, and cells may be empty. Without a CSV every scan is a patient of its own.

    Args:
        scans: Hospital and case of each.
        age_bins: Ages between the age groups, in years.

    Returns:
        By hospital and case, in the order of `scans`: `patient`, unique among all hospitals, and a column with the
        name of its group for each kind that is known (age, sex, phase, scanner). And what a reader of the report
        should know about them.

    Raises:
        DatasetError: If the file cannot be read, a scan has no row or two, or an age is no number.
    """
    index = pd.MultiIndex.from_tuples(scans, names=_SCAN)
    if path is None:
        facts = pd.DataFrame({"patient": ["/".join(scan) for scan in scans]}, index=index)
        return facts, ["There is no metadata: every scan counts as a patient of its own."]
    table = read_case_table(path)
    unused = [name for name in table.columns if name not in _COLUMNS]
    notes = [f"Columns of the metadata that are not used: {', '.join(unused)}."] if unused else []
    rows = _rows_of(table.assign(line=range(2, len(table) + 2)), scans, path)
    patients = rows["patient"].tolist() if "patient" in rows else [""] * len(rows)
    facts = pd.DataFrame({"patient": _patients(scans, patients)}, index=index)
    if "age" in rows:
        lines = zip(rows["age"], rows["line"], strict=True)
        facts["age"] = [_age_group(age, age_bins, f"{path}, row {line}") for age, line in lines]
    for kind in ("sex", "phase", "scanner"):
        if kind in rows:
            facts[kind] = rows[kind].replace("", NOT_RECORDED).to_numpy()
    _check_sexes(facts, path)
    if "patient" not in rows:
        notes.append("The metadata name no patients: every scan counts as a patient of its own.")
    elif nameless := patients.count(""):
        notes.append(
            f"The metadata name no patient for {nameless} of {len(rows)} scans: each of these counts as a patient of "
            "its own."
        )
    return facts, notes


def _rows_of(table: Frame, scans: Sequence[tuple[str, str]], path: Path) -> Frame:
    """The row of each scan, in their order."""
    has_hospital = "hospital" in table
    if not has_hospital and len({case for _, case in scans}) < len(scans):
        raise DatasetError(f"{path} needs a column hospital, because several hospitals have cases of one name.")
    rows: Frame = pd.DataFrame(scans, columns=_SCAN).merge(table, how="left", on=_SCAN if has_hospital else "case")
    names = rows["hospital"] + "/" + rows["case"]
    missing = names[rows["line"].isna()]
    if len(missing):
        raise DatasetError(
            f"{path} has no row for {len(missing)} of {len(scans)} cases: {list_some(missing.tolist())}. "
            "Add them: without their patients, intervals would be wrong."
        )
    twice = names[names.duplicated()].unique().tolist()
    if twice:
        raise DatasetError(f"{path} has two rows for {list_some(twice)}. Remove one.")
    return rows


def _patients(scans: Sequence[tuple[str, str]], written: Sequence[str]) -> list[str]:
    """Name the patient of every scan; a scan without one gets a name that no other patient has."""
    patients = [f"{hospital}/{patient or case}" for (hospital, case), patient in zip(scans, written, strict=True)]
    taken = {name for name, patient in zip(patients, written, strict=True) if patient}
    for number, patient in enumerate(written):
        while not patient and patients[number] in taken:
            patients[number] += "*"
        taken.add(patients[number])
    return patients


def _check_sexes(facts: Frame, path: Path) -> None:
    """Scans of one patient have one sex; if not, two patients share a name, and intervals would be wrong."""
    if "sex" not in facts:
        return
    known = facts[facts["sex"] != NOT_RECORDED].groupby("patient", sort=False)["sex"].unique()
    for patient, sexes in known[known.map(len) > 1].items():
        raise DatasetError(
            f"{path}: the patient {patient} has scans with the sex {sexes[0]!r} and {sexes[1]!r}. "
            "Correct patient or sex; scans of two patients must not count as one."
        )


def _age_group(written: str, age_bins: Sequence[float], where: str) -> str:
    if not written:
        return NOT_RECORDED
    try:
        age = float(written)
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        raise DatasetError(f"{where}: age must be a number of years, got {written!r}. Correct it or leave it empty.")
    return bin_of(age, bins_of(age_bins, "years"))
