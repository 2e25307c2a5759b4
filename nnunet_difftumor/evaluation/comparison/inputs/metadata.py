"""What is known about scans beside their images: patient, age, sex, phase, scanner."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_difftumor.errors import DatasetError

NOT_RECORDED = "not recorded"
_COLUMNS = ("case", "patient", "hospital", "age", "sex", "phase", "scanner")
_TEXT_GROUPS = ("sex", "phase", "scanner")


@dataclass(frozen=True)
class ScanFacts:
    """What is known about one scan.

    Attributes:
        patient: Who was scanned; unique among all hospitals.
        groups: Name of its group by kind: age, sex, phase, scanner.
    """

    patient: str
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """Facts of all scans.

    Attributes:
        facts: By hospital and case.
        notes: What a reader of the report should know about them.
    """

    facts: Mapping[tuple[str, str], ScanFacts]
    notes: tuple[str, ...]


def read_metadata(path: Path | None, scans: Sequence[tuple[str, str]], age_bins: Sequence[float]) -> Metadata:
    """Find the facts of scans in a CSV with the columns case, patient, hospital, age, sex, phase, scanner.

    All columns but case may be missing, and cells may be empty.

    Args:
        path: The CSV; None makes every scan a patient of its own.
        age_bins: Ages between the age groups, in years.

    Returns:
        The facts of every scan.

    Raises:
        DatasetError: If the file cannot be read, a scan has no row or two, or an age is no number.
    """
    if path is None:
        facts = {scan: ScanFacts("/".join(scan)) for scan in scans}
        return Metadata(facts, ("There is no metadata: every scan counts as a patient of its own.",))
    table, notes = _read_table(path)
    rows = _rows_of(table, scans, path)
    records = table.to_dict("records")
    patients = _patients({scan: records[row].get("patient", "") for scan, row in rows.items()})
    facts = {
        scan: ScanFacts(patients[scan], _groups(records[row], age_bins, f"{path}, row {row + 2}"))
        for scan, row in rows.items()
    }
    _check_sexes(facts, path)
    if "patient" not in table:
        notes.append("The metadata name no patients: every scan counts as a patient of its own.")
    elif nameless := sum(not records[row]["patient"] for row in rows.values()):
        notes.append(
            f"The metadata name no patient for {nameless} of {len(rows)} scans: each of these counts as a patient of "
            "its own."
        )
    return Metadata(facts, tuple(notes))


def _read_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DatasetError(f"The metadata {path} cannot be read as CSV: {error}.") from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    for name in table.columns:
        table[name] = table[name].str.strip()
    if "case" not in table:
        raise DatasetError(
            f"{path} needs a column case; it has {', '.join(table.columns)}. Also: {_listing(_COLUMNS)}."
        )
    unused = [name for name in table.columns if name not in _COLUMNS]
    return table, [f"Columns of the metadata that are not used: {', '.join(unused)}."] if unused else []


def _rows_of(table: pd.DataFrame, scans: Sequence[tuple[str, str]], path: Path) -> dict[tuple[str, str], int]:
    has_hospital = "hospital" in table
    keys = list(zip(table["hospital"], table["case"], strict=True)) if has_hospital else list(table["case"])
    rows: dict[object, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    if not has_hospital and len({case for _, case in scans}) < len(scans):
        raise DatasetError(f"{path} needs a column hospital, because several hospitals have cases of one name.")
    found = {scan: rows.get(scan if has_hospital else scan[1], []) for scan in scans}
    missing = [scan for scan, numbers in found.items() if not numbers]
    if missing:
        raise DatasetError(
            f"{path} has no row for {len(missing)} of {len(scans)} cases: {_listing('/'.join(s) for s in missing)}. "
            "Add them: without their patients, intervals would be wrong."
        )
    twice = [scan for scan, numbers in found.items() if len(numbers) > 1]
    if twice:
        raise DatasetError(f"{path} has two rows for {_listing('/'.join(scan) for scan in twice)}. Remove one.")
    return {scan: numbers[0] for scan, numbers in found.items()}


def _patients(written: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """Name the patient of every scan; a scan without one gets a name that no other patient has."""
    patients = {(hospital, case): f"{hospital}/{patient}" for (hospital, case), patient in written.items() if patient}
    taken = set(patients.values())
    for scan in written:
        if scan not in patients:
            name = "/".join(scan)
            while name in taken:
                name += "*"
            patients[scan] = name
            taken.add(name)
    return patients


def _groups(row: Mapping[Any, str], age_bins: Sequence[float], where: str) -> dict[str, str]:
    groups = {kind: row[kind] or NOT_RECORDED for kind in _TEXT_GROUPS if kind in row}
    if "age" in row:
        groups = {"age": _age_group(row["age"], age_bins, where), **groups}
    return groups


def _check_sexes(facts: Mapping[tuple[str, str], ScanFacts], path: Path) -> None:
    """Scans of one patient have one sex; if not, two patients share a name, and intervals would be wrong."""
    sexes: dict[str, str] = {}
    for each in facts.values():
        sex = each.groups.get("sex", NOT_RECORDED)
        if sex != NOT_RECORDED and sexes.setdefault(each.patient, sex) != sex:
            raise DatasetError(
                f"{path}: the patient {each.patient} has scans with the sex {sexes[each.patient]!r} and {sex!r}. "
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
    return next(name for name, low, high in bins_of(age_bins, "years") if low <= age < high)


def bins_of(edges: Sequence[float], unit: str) -> tuple[tuple[str, float, float], ...]:
    """Name, lower end (within) and upper end (beyond) of the bins between edges: "<10 mm", "10-20 mm", ">=20 mm"."""
    if not edges:
        return ((f"any {unit}", 0.0, math.inf),)
    inner = [(f"{low:g}-{high:g} {unit}", low, high) for low, high in itertools.pairwise(edges)]
    return (
        (f"<{edges[0]:g} {unit}", 0.0, edges[0]),
        *inner,
        (f">={edges[-1]:g} {unit}", edges[-1], math.inf),
    )


def _listing(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
