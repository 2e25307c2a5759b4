"""The tables of a comparison: complete ones as CSV, and short ones to read, print and copy as CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_difftumor.evaluation.comparison.analysis import (
    ALL,
    EVERYONE,
    SIZE,
    ArmFigure,
    DifferenceFigure,
    Findings,
    Group,
    measures_of,
)
from nnunet_difftumor.evaluation.comparison.inputs.plan import Experiment
from nnunet_difftumor.evaluation.comparison.inputs.scores import Study
from nnunet_difftumor.evaluation.comparison.measures import MEASURES, NOT_MEASURED, Measure, is_lack, measure_of
from nnunet_difftumor.evaluation.comparison.text import DASH, show_estimate, show_interval, show_p_value, show_value
from nnunet_difftumor.evaluation.statistics.intervals import Estimate
from nnunet_difftumor.support.files.atomic_files import written_whole

ARMS_FILE, DIFFERENCES_FILE, SEEDS_FILE = "arms.csv", "differences.csv", "seeds.csv"
CASES_FILE, TUMORS_FILE = "cases.csv", "tumors.csv"
_INTERVALS = ("low", "high")


@dataclass(frozen=True)
class Table:
    """A table to read.

    Attributes:
        key: Name of its files.
        rows: Cells as text. A cell may have a second line after a line break. A cell that tells why there is no
            figure stands for all cells that follow it.
        texts: Numbers of the columns that hold words, and start at the left.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: tuple[int, ...] = (0,)

    def to_csv(self) -> str:
        """Return the table as CSV."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([cell.replace("\n", " ") for cell in row] for row in self.rows)
        return buffer.getvalue()

    def to_latex(self) -> str:
        """Return the table as LaTeX for the package booktabs."""
        lines = [" & ".join(_latex_cells(row)) + r" \\" for row in (self.columns, *self.rows)]
        columns = "".join("l" if number in self.texts else "r" for number in range(len(self.columns)))
        body = [
            r"\centering",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
        ]
        return "\n".join([r"\begin{table}", rf"\caption{{{_latex(self.title)}}}", *body, *_LATEX_END]) + "\n"


_LATEX_END = (r"\bottomrule", r"\end{tabular}", r"\end{table}")
_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "\n": " ",
}


_MINUS = re.compile(r"(?<![^\s(])-(?=\d)")


def _latex_cells(row: Sequence[str]) -> list[str]:
    position = next((number for number, cell in enumerate(row) if is_lack(cell)), None)
    if position is None:
        return [_latex(cell) for cell in row]
    reason = rf"\multicolumn{{{len(row) - position}}}{{l}}{{{_latex(row[position])}}}"
    return [*(_latex(cell) for cell in row[:position]), reason]


def _latex(text: str) -> str:
    escaped = "".join(_LATEX_SPECIAL.get(character, character) for character in text)
    return _MINUS.sub("$-$", escaped)


def cohort_table(facts: Mapping[str, Any]) -> Table:
    """Make the table of who was measured, hospital by hospital.

    Args:
        facts: The run's facts, from `collect_facts`.
    """
    columns = ("", *(hospital["name"] for hospital in facts["hospitals"]))
    rows = [(row["name"], *map(str, row["hospitals"])) for row in facts["cohort"]]
    if len(facts["hospitals"]) > 1:
        columns = (*columns, "all")
        rows = [(*row, str(each["all"])) for row, each in zip(rows, facts["cohort"], strict=True)]
    return Table("cohort", "Patients, scans and tumours", columns, tuple(rows))


def tables_of_label(findings: Findings, experiment: Experiment, label: str) -> tuple[Table, ...]:
    """Make the tables of one tumour label.

    Args:
        experiment: What was compared.

    Returns:
        Arms, differences, sizes, and one table for each kind of group, without those that would be empty.
    """
    kinds = list(dict.fromkeys(group.kind for group in findings.groups))
    tables = [_arms_table(findings, experiment, label)]
    if len(experiment.arms) > 1:
        tables.append(_differences_table(findings, experiment, label))
    tables += [_group_table(findings, experiment, label, kind) for kind in kinds if kind != ALL]
    if any(each.label == label for each in findings.seeds):
        tables.append(_seeds_table(findings, label))
    return tuple(tables)


def _arms_table(findings: Findings, experiment: Experiment, label: str) -> Table:
    rows = []
    for measure in MEASURES:
        figures = [_arm(findings, label, measure, EVERYONE, arm) for arm in experiment.arms]
        if _was_measured(figures):
            rows.append((measure.title, *_counts(figures[0], measure), *(_cell(each.estimate) for each in figures)))
    columns = ("measure", "patients", "n", *experiment.arms)
    return Table(f"{label}_arms", f"{label}: all patients", columns, tuple(rows), (0, 2))


def _differences_table(findings: Findings, experiment: Experiment, label: str) -> Table:
    rows = []
    for arm in experiment.arms[1:]:
        for measure in MEASURES:
            figure = _difference(findings, label, measure, EVERYONE, arm)
            if not _was_measured([figure]):
                continue
            more = [show_interval(each, signed=True) or DASH for each in (figure.over_hospitals, figure.over_seeds)]
            rows.append(
                (
                    arm,
                    measure.title,
                    str(figure.patients),
                    _cell(figure.estimate, signed=True),
                    *more,
                    figure.test or DASH,
                    show_p_value(figure.p_value),
                    show_p_value(figure.p_holm),
                )
            )
    over = ("over hospitals", "over patients and seeds")
    columns = ("arm", "measure", "patients", "difference", *over, "test", "p", "p (Holm)")
    is_used = [not name.startswith("over ") or any(row[i] != DASH for row in rows) for i, name in enumerate(columns)]
    columns, *used = (tuple(itertools.compress(row, is_used)) for row in (columns, *rows))
    title = f"{label}: differences to {experiment.baseline}"
    return Table(f"{label}_differences", title, columns, tuple(used), (0, 1, columns.index("test")))


def _group_table(findings: Findings, experiment: Experiment, label: str, kind: str) -> Table:
    is_size = kind == SIZE
    rows = []
    for measure in measures_of(kind, experiment):
        groups = [group for group in findings.groups if group.kind == kind]
        measured = {group: [_arm(findings, label, measure, group, arm) for arm in experiment.arms] for group in groups}
        if not any(_was_measured(figures) for figures in measured.values()):
            continue
        for group, figures in measured.items():
            first = (measure.title, group.name, *_counts(figures[0], measure))
            differences = [_difference(findings, label, measure, group, arm) for arm in experiment.arms[1:]]
            cells = [_cell(each.estimate) for each in figures]
            lack = figures[0].estimate.method if math.isnan(figures[0].estimate.value) else ""
            if lack:  # said once
                cells = [lack, *[""] * (len(cells) - 1)]
            cells += ["" if lack else _cell(each.estimate, signed=True) for each in differences]
            if is_size:
                cells += ["" if lack else show_p_value(each.p_holm) for each in differences]
            rows.append((*first, *cells))
    minus = [f"{arm} minus {experiment.baseline}" for arm in experiment.arms[1:]]
    columns = ["measure", "diameter" if is_size else kind, "patients", "n", *experiment.arms, *minus]
    if is_size:
        columns += ["p (Holm)" if len(minus) == 1 else f"p (Holm), {arm}" for arm in experiment.arms[1:]]
    return Table(f"{label}_{kind}", f"{label}: by {kind}", tuple(columns), tuple(rows), (0, 1, 3))


def _seeds_table(findings: Findings, label: str) -> Table:
    rows = []
    for key in dict.fromkeys(each.measure for each in findings.seeds):
        for arm in dict.fromkeys(each.arm for each in findings.seeds):
            own = [each for each in findings.seeds if (each.label, each.measure, each.arm) == (label, key, arm)]
            values = [each.value for each in own]
            if not values or any(math.isnan(value) for value in values):
                continue
            mean = sum(values) / len(values)
            sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            each = ", ".join(f"{seed.seed}: {show_value(seed.value)}" for seed in own)
            rows.append(
                (
                    measure_of(key).title,
                    arm,
                    show_value(mean),
                    show_value(sd),
                    show_value(max(values) - min(values)),
                    each,
                )
            )
    columns = ("measure", "arm", "mean", "sd over seeds", "range", "each seed")
    return Table(f"{label}_seeds", f"{label}: trainings", columns, tuple(rows), (0, 1, 5))


def _arm(findings: Findings, label: str, measure: Measure, group: Group, arm: str) -> ArmFigure:
    figure = findings.arm(label, measure.key, group, arm)
    assert figure is not None
    return figure


def _difference(findings: Findings, label: str, measure: Measure, group: Group, arm: str) -> DifferenceFigure:
    figure = findings.difference(label, measure.key, group, arm)
    assert figure is not None
    return figure


def _was_measured(figures: Sequence[ArmFigure] | Sequence[DifferenceFigure]) -> bool:
    return any(each.items and not each.estimate.method.startswith(NOT_MEASURED) for each in figures)


def _counts(figure: ArmFigure, measure: Measure) -> tuple[str, str]:
    return str(figure.patients), f"{figure.items} {measure.of}"


def _cell(estimate: Estimate, *, signed: bool = False) -> str:
    """Value, and its interval on a second line."""
    return show_estimate(estimate, signed=signed).replace(" (", "\n(", 1)


def write_complete_tables(findings: Findings, folder: Path) -> None:
    """Write every figure into arms.csv, differences.csv and seeds.csv, unrounded.

    Args:
        folder: Folder for the files, which are replaced.
    """
    common = ("label", "measure", "group_kind", "group", "arm")
    counts = ("patients", "items", "value", "low", "high", "interval")
    over = [f"{end}_over_{unit}" for unit in ("hospitals", "seeds") for end in _INTERVALS]
    _write_csv(folder / ARMS_FILE, (*common, *counts, *over[:2]), map(_arm_row, findings.arms))
    columns = (*common, "baseline", *counts, *over, "test", "p", "p_holm")
    _write_csv(folder / DIFFERENCES_FILE, columns, map(_difference_row, findings.differences))
    seeds = ([each.label, each.measure, each.arm, each.model, each.seed, each.value] for each in findings.seeds)
    _write_csv(folder / SEEDS_FILE, ("label", "measure", "arm", "model", "seed", "value"), seeds)


def write_raw_tables(study: Study, experiment: Experiment, folder: Path) -> None:
    """Write what the figures are computed from into cases.csv and tumors.csv, one row a model and scan or tumour.

    Args:
        experiment: What was compared.
        folder: Folder for the files, which are replaced.
    """
    models = pd.DataFrame([(each.name, each.arm, each.seed) for each in experiment.models])
    models.columns = ["model", "arm", "seed"]
    for name, table in ((CASES_FILE, study.cases), (TUMORS_FILE, study.tumors)):
        first = ["arm", "seed", "model", "hospital", "patient", *study.group_kinds]
        rows = table.merge(models.astype({"seed": "Int64"}), on="model")
        rows = rows[[*first, *(column for column in table.columns if column not in first)]]
        with written_whole(folder / name, overwrite=True) as temporary:
            rows.to_csv(temporary, index=False)


def _arm_row(figure: ArmFigure) -> list[Any]:
    first = [figure.label, figure.measure, figure.group.kind, figure.group.name, figure.arm]
    return [*first, *_estimate_cells(figure), *_ends(figure.over_hospitals)]


def _difference_row(figure: DifferenceFigure) -> list[Any]:
    first = [figure.label, figure.measure, figure.group.kind, figure.group.name, figure.arm, figure.baseline]
    ends = [*_ends(figure.over_hospitals), *_ends(figure.over_seeds)]
    return [*first, *_estimate_cells(figure), *ends, figure.test, figure.p_value, figure.p_holm]


def _estimate_cells(figure: ArmFigure | DifferenceFigure) -> list[Any]:
    estimate = figure.estimate
    return [figure.patients, figure.items, estimate.value, *_ends(estimate), estimate.method]


def _ends(estimate: Estimate | None) -> list[float]:
    return [math.nan, math.nan] if estimate is None else [estimate.low, estimate.high]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    with written_whole(path, overwrite=True) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows)
