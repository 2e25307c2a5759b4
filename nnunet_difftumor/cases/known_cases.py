"""What is known of cases beside their label maps: which have a tumour, which are scans of one patient."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_difftumor.ct.reading import file_ending
from nnunet_difftumor.errors import ConfigurationError, DatasetError, list_some

if TYPE_CHECKING:
    import pandas as pd

KNOWN_KEYS = ("known_tumor", "patients", "group_pattern")
_YES = frozenset("yes y true t tumor tumour positive pos malignant cancer".split())
_NO = frozenset("no n false f none negative neg healthy normal".split()) | {""}
_EMPTY = frozenset("nan na n/a <na> null unknown ? -".split())


@dataclass(frozen=True)
class KnownCases:
    """What a user knows of cases, as `difftumor splits` records it in healthy_holdout.json.

    Attributes:
        tumor: Cases with a tumour, whatever their label maps show; sorted.
        patients: Patient of each case; a case that is not in it is a patient of its own.
        pattern: Regular expression that finds the patient in identifiers of other data sets; "" if there is none.
    """

    tumor: tuple[str, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    pattern: str = ""

    def patient_of(self, case: str) -> str:
        """Return the patient of a case."""
        return self.patients.get(case) or _find_patient(self.pattern, case) or case

    def others_of(self, cases: Collection[str]) -> tuple[str, ...]:
        """Return the further scans of the patients of some cases, sorted."""
        patients = {self.patient_of(case) for case in cases}
        return tuple(sorted(case for case, each in self.patients.items() if each in patients and case not in cases))

    def to_json(self) -> dict[str, Any]:
        """Return what is known as plain values, as `read_known_cases` reads them."""
        content = zip(KNOWN_KEYS, (list(self.tumor), dict(self.patients), self.pattern), strict=True)
        return {key: value for key, value in content if value}


NOTHING_KNOWN = KnownCases()


def read_known_cases(path: Path) -> KnownCases:
    """Read what `difftumor splits` recorded in healthy_holdout.json; nothing where there is no file.

    Raises:
        DatasetError: If the file cannot be understood.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        tumor, patients, pattern = (content.get(key) for key in KNOWN_KEYS)
        return KnownCases(tuple(sorted([] + (tumor or []))), dict(patients or {}), pattern or "")  # no string
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}). Write it again: difftumor splits --overwrite") from error


def read_case_table(path: Path) -> pd.DataFrame:
    """Read a table of cases as text: names of columns in lower case, of cases without the ending of an image.

    Commas, semicolons or tabs part the cells, whichever the head has most of. What stands for nothing is "".

    Raises:
        DatasetError: If it cannot be read, or has not one column case.
    """
    import pandas as pd  # a training reads no table

    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.lstrip().partition("\n")[0]
        lines = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=head.count), strict=True)
        cells = [["" if cell.strip().lower() in _EMPTY else cell.strip() for cell in line] for line in lines]
        names, *rows = [row for row in cells if any(row)] or [[]]
        if any(any(row[len(names) :]) for row in rows):
            raise ValueError("a row has more cells than the head; put quotes around cells with a comma")
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"The metadata {path} cannot be read: {error}. Save the table as CSV in UTF-8.") from error
    columns = [name.lower() for name in names]
    if columns.count("case") != 1:
        raise DatasetError(f"{path} needs a column case, and one; it has {', '.join(columns)}. Rename one.")
    table = pd.DataFrame([(row + [""] * len(names))[: len(names)] for row in rows], columns=pd.Index(columns))
    return table.assign(case=table["case"].map(lambda name: name[: len(name) - len(file_ending(Path(name)) or "")]))


def read_column(path: Path, column: str, cases: Sequence[str]) -> dict[str, set[str]]:
    """Return what the rows of each case say in a column; there may be several, such as one a tumour.

    A case may be named as its CT: with folders and a final `_0000`. Rows of other data sets count as well.

    Raises:
        DatasetError: If there is not one such column, or one of the cases has no row.
    """
    table, name = read_case_table(path), column.strip().lower()
    if list(table.columns).count(name) != 1:
        raise DatasetError(f"{path} has no column {column!r}, or two; it has {', '.join(table.columns)}.")
    said: dict[str, set[str]] = {}
    for row, cell in zip(table["case"], table[name], strict=True):
        case = re.split(r"[/\\]", row)[-1]
        said.setdefault(case if case in cases else case.removesuffix("_0000"), set()).add(cell)
    if missing := [case for case in cases if case not in said]:
        raise DatasetError(
            f"{path} has no row for {len(missing)} cases: {list_some(missing)}. Rows of no case: "
            f"{list_some([case for case in said if case not in cases]) or 'none'}. Write each as in labelsTr."
        )
    return said


def cases_with_tumor(path: Path, column: str, cases: Sequence[str]) -> tuple[str, ...]:
    """Return the cases that have a tumour by a column: one of their rows says yes or true, or a number above 0.

    Raises:
        DatasetError: As `read_column`, or if a cell of a case says neither yes nor no, is no number and not empty.
    """
    said = read_column(path, column, cases)
    verdicts = {case: [_says_tumor(cell) for cell in cells] for case, cells in said.items()}
    if odd := [f"{case} has {' and '.join(said[case])}" for case in cases if None in verdicts[case]]:
        raise DatasetError(
            f"{path}, column {column}: {list_some(odd)}, which says neither yes nor no. Write yes or no, a number or "
            "size of tumours, or leave it empty where nobody knows."
        )
    return tuple(sorted(case for case, each in verdicts.items() if any(each)))


def _says_tumor(cell: str) -> bool | None:
    with suppress(ValueError):
        return cell.lower() in _YES or (cell.lower() not in _NO and float(cell.replace(",", ".")) > 0)
    return None


def one_value_each(path: Path, column: str, cases: Sequence[str], *, is_needed: bool = False) -> dict[str, str]:
    """Return the one value that each case has in a column, such as its patient; empty cells are left out.

    Cases of other data sets are among them if they share the value of one of the cases.

    Raises:
        DatasetError: As `read_column`, or if the rows of a case differ, or one of the cases has none that is needed.
    """
    values = {case: sorted(cells - {"", "none", "None"}) for case, cells in read_column(path, column, cases).items()}
    ours = {value for case in cases for value in values[case]}
    values = {case: each for case, each in values.items() if ours.intersection(each)}
    if is_needed and (lacking := [case for case in cases if case not in values]):
        raise DatasetError(
            f"{path}, column {column}, is empty for {len(lacking)} cases: {list_some(lacking)}. Fill it."
        )
    for case, each in values.items():
        if len(each) > 1:
            raise DatasetError(f"{path}, column {column}: {case} has {' and '.join(each)}. Correct its rows.")
    return {case: each[0] for case, each in values.items()}


def patients_by_pattern(cases: Sequence[str], pattern: str) -> dict[str, str]:
    """Return the patient of each case by a regular expression: its first group, or else all that it matches.

    Raises:
        ConfigurationError: If it is no regular expression, or finds no patient in a case.
    """
    try:
        patients = {case: _find_patient(pattern, case) for case in cases}
    except re.error as error:
        raise ConfigurationError(f"--group-pattern {pattern!r} is no regular expression ({error}).") from error
    if nameless := [case for case in cases if not patients[case]]:
        raise ConfigurationError(f"--group-pattern {pattern!r} finds no patient in {list_some(nameless)}; correct it.")
    return patients


def _find_patient(pattern: str, case: str) -> str:
    match = re.search(pattern, case)
    return (match[min(match.re.groups, 1)] or "") if match else ""
