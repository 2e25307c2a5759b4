"""What is known of cases beside their label maps: which have a tumour, which are scans of one patient."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_difftumor.ct.reading import file_ending
from nnunet_difftumor.errors import ConfigurationError, DatasetError, list_some

if TYPE_CHECKING:
    import pandas as pd

KNOWN_KEYS = ("known_tumor", "patients")
_YES = frozenset("yes y true t tumor tumour positive pos malignant cancer".split())
_NO = frozenset("no n false f none negative neg healthy normal nan na n/a unknown ?".split()) | {""}


@dataclass(frozen=True)
class KnownCases:
    """What a user knows of cases, as `difftumor splits` records it in healthy_holdout.json.

    Attributes:
        tumor: Cases with a tumour, whatever their label maps show; sorted.
        patients: Patient of each case; a case that is not in it is a patient of its own.
    """

    tumor: tuple[str, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)

    def patient_of(self, case: str) -> str:
        """Return the patient of a case."""
        return self.patients.get(case, case)

    def others_of(self, cases: Collection[str]) -> tuple[str, ...]:
        """Return the further scans of the patients of some cases, sorted."""
        patients = {self.patient_of(case) for case in cases}
        return tuple(sorted(case for case, each in self.patients.items() if each in patients and case not in cases))

    def to_json(self) -> dict[str, Any]:
        """Return what is known as plain values, as `read_known_cases` reads them."""
        content = zip(KNOWN_KEYS, (list(self.tumor), dict(self.patients)), strict=True)
        return {key: value for key, value in content if value}


NOTHING_KNOWN = KnownCases()


def read_known_cases(path: Path) -> KnownCases:
    """Read what `difftumor splits` recorded in healthy_holdout.json; nothing where there is no file.

    Raises:
        DatasetError: If the file cannot be understood.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        tumor, patients = (content.get(key, ()) for key in KNOWN_KEYS)
        return KnownCases(tuple(sorted(tumor)), dict(patients))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}). Write it again: difftumor splits --overwrite") from error


def read_case_table(path: Path) -> pd.DataFrame:
    """Read a table of cases (CSV, or TSV by its ending) as text, with the names of columns in lower case.

    Raises:
        DatasetError: If it cannot be read, or has no column case.
    """
    import pandas as pd  # a training reads no table

    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", sep=separator)
    except (OSError, ValueError) as error:
        raise DatasetError(f"The metadata {path} cannot be read as CSV: {error}.") from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    if "case" not in table:
        raise DatasetError(f"{path} needs a column case; it has {', '.join(table.columns)}. Rename one.")
    return table.map(str.strip)


def read_column(path: Path, column: str, cases: Sequence[str]) -> dict[str, set[str]]:
    """Return what the rows of each case in a table say in a column; there may be several, such as one a tumour.

    Raises:
        DatasetError: If there is no such column, or a case has no row.
    """
    table = read_case_table(path)
    if column.lower() not in table:
        raise DatasetError(f"{path} has no column {column!r}; it has {', '.join(table.columns)}.")
    names = table["case"].map(lambda name: name.removesuffix(file_ending(Path(name)) or ""))
    said = {str(case): set(cells) for case, cells in table[column.lower()].groupby(names)}
    missing = [case for case in cases if case not in said]
    if missing:
        raise DatasetError(f"{path} has no row for {len(missing)} cases: {list_some(missing)}. Add them.")
    return {case: said[case] for case in cases}


def cases_with_tumor(path: Path, column: str, cases: Sequence[str]) -> tuple[str, ...]:
    """Return the cases that have a tumour by a column: one of their rows says yes or true, or a number above 0.

    Raises:
        DatasetError: As `read_column`, or if a cell says neither yes nor no, is no number and not empty.
    """

    def says_tumor(case: str, cell: str) -> bool:
        try:
            return cell.lower() in _YES or (cell.lower() not in _NO and float(cell) > 0)
        except ValueError as error:
            raise DatasetError(
                f"{path}, column {column}: {case} has {cell!r}, which says neither yes nor no. Write yes or no, a "
                "number or size of tumours, or leave it empty where nobody knows."
            ) from error

    said = read_column(path, column, cases)
    return tuple(sorted(case for case in said if any(says_tumor(case, cell) for cell in said[case])))


def one_value_each(path: Path, column: str, cases: Sequence[str]) -> dict[str, str]:
    """Return the one value that each case has in a column, such as its patient; empty cells are left out.

    Raises:
        DatasetError: As `read_column`, or if the rows of a case differ.
    """
    values = {case: sorted(cells - {""}) for case, cells in read_column(path, column, cases).items()}
    for case, each in values.items():
        if len(each) > 1:
            raise DatasetError(f"{path}, column {column}: {case} has {' and '.join(each)}. Correct its rows.")
    return {case: each[0] for case, each in values.items() if each}


def patients_by_pattern(cases: Sequence[str], pattern: str) -> dict[str, str]:
    """Return the patient of each case by a regular expression: its first group, or else all that it matches.

    Raises:
        ConfigurationError: If it is no regular expression, or finds no patient in a case.
    """
    try:
        found = {case: re.search(pattern, case) for case in cases}
    except re.error as error:
        raise ConfigurationError(f"--group-pattern {pattern!r} is no regular expression ({error}).") from error
    patients = {case: match[min(match.re.groups, 1)] or "" for case, match in found.items() if match}
    if nameless := [case for case in cases if not patients.get(case)]:
        raise ConfigurationError(f"--group-pattern {pattern!r} finds no patient in {list_some(nameless)}; correct it.")
    return patients
