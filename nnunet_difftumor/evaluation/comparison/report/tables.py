"""The tables of a comparison: complete ones as CSV, and short ones to read, print and copy as CSV or LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_difftumor.evaluation.comparison.analysis import ALL, SIZE, Finding, Findings
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan
from nnunet_difftumor.evaluation.comparison.inputs.scores import StudyScores
from nnunet_difftumor.evaluation.comparison.measures import NOT_MEASURED, is_lack, measure_of
from nnunet_difftumor.evaluation.comparison.text import DASH, show_estimate, show_interval, show_p_value, show_value
from nnunet_difftumor.evaluation.scoring.tables import Frame
from nnunet_difftumor.support.files.atomic_files import written_whole

ARMS_FILE, DIFFERENCES_FILE, SEEDS_FILE = "arms.csv", "differences.csv", "seeds.csv"
CASES_FILE, TUMORS_FILE = "cases.csv", "tumors.csv"
_WHAT = ["label", "measure", "group_kind", "group", "arm"]
_FIGURE = ["patients", "items", "value", "low", "high", "interval", "low_over_hospitals", "high_over_hospitals"]
_ARM_COLUMNS = [*_WHAT, *_FIGURE]
_DIFFERENCE_COLUMNS = [*_WHAT, "baseline", *_FIGURE, "low_over_seeds", "high_over_seeds", "test", "p", "p_holm"]


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
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: tuple[int, ...] = (0,)

    def to_csv(self) -> str:
        """Return the table as CSV."""
        table = pd.DataFrame(self.rows, columns=list(self.columns))
        return table.replace("\n", " ", regex=True).to_csv(index=False, lineterminator="\n")

    def to_latex(self) -> str:
        """Return the table as LaTeX for the package booktabs; a reason goes over all columns that follow it."""
        columns = "".join("l" if number in self.texts else "r" for number in range(len(self.columns)))
        header, *rows = [" & ".join(_latex_cells(row)) + r" \\" for row in (self.columns, *self.rows)]
        start = [r"\begin{table}", rf"\caption{{{_latex(self.title)}}}", r"\centering"]
        body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*start, *body, r"\end{tabular}", r"\end{table}"]) + "\n"


_LATEX_NAMED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX_ESCAPED = {character: "\\" + character for character in "&%$#_{}"}
_LATEX_SPECIAL = str.maketrans({**_LATEX_NAMED, **_LATEX_ESCAPED, "<": "$<$", ">": "$>$", "\n": " "})
_MINUS = re.compile(r"(?<![^\s(])-(?=\d)")


def _latex_cells(row: Sequence[str]) -> list[str]:
    position = next((number for number, cell in enumerate(row) if is_lack(cell)), len(row))
    cells = [_latex(cell) for cell in row[: position + 1]]
    if position < len(row):
        cells[-1] = rf"\multicolumn{{{len(row) - position}}}{{l}}{{{cells[-1]}}}"
    return cells


def _latex(text: str) -> str:
    return _MINUS.sub("$-$", text.translate(_LATEX_SPECIAL))


def cohort_table(facts: Mapping[str, Any]) -> Table:
    """Make the table of who was measured, hospital by hospital, from the facts of the run."""
    names = [hospital["name"] for hospital in facts["hospitals"]]
    has_sum = len(names) > 1
    rows = [[row["name"], *map(str, [*row["hospitals"], *[row["all"]] * has_sum])] for row in facts["cohort"]]
    return Table("cohort", "Patients, scans and tumours", ["", *names, *["all"] * has_sum], rows)


def tables_of_label(findings: Findings, experiment: ComparisonPlan, label: str) -> list[Table]:
    """Make the tables of one tumour label: arms, differences, sizes, one for each kind of group, and trainings."""
    own = [_words(each) for each in (*findings.arms, *findings.differences) if each.label == label]
    figures: Frame = pd.DataFrame(own)
    figures["is_shown"] = figures.groupby(["kind", "measure"])["is_measured"].transform("any")
    tables = [_arms_table(figures, experiment, label)]
    if len(experiment.arms) > 1:
        tables.append(_differences_table(figures, experiment, label))
    tables += [_group_table(figures, experiment, label, kind) for kind in figures["kind"].unique() if kind != ALL]
    seeds = findings.seeds[findings.seeds["label"] == label]
    return [*tables, _seeds_table(seeds, label)] if len(seeds) else tables


def _words(figure: Finding) -> dict[str, Any]:
    """One figure as text, and what it is of."""
    measure, is_difference = figure.measure, bool(figure.baseline)
    cell = show_estimate(figure.estimate, signed=is_difference)
    return {
        "kind": figure.group.kind,
        "group": figure.group.name,
        "measure": measure.title,
        "arm": figure.arm,
        "is_difference": is_difference,
        "is_measured": figure.items > 0 and not figure.estimate.method.startswith(NOT_MEASURED),
        "patients": str(figure.patients),
        "n": f"{figure.items} {measure.of}",
        "cell": cell.replace(" (", "\n(", 1),  # the interval on a second line
        "over hospitals": show_interval(figure.over_hospitals, signed=True) or DASH,
        "over patients and seeds": show_interval(figure.over_seeds, signed=True) or DASH,
        "test": figure.test or DASH,
        "p": show_p_value(figure.p_value),
        "p (Holm)": show_p_value(figure.p_holm),
    }


def _in_order(figures: Frame, column: str) -> Frame:
    """Rows by the values of a column, which are in the order in which they first come."""
    return figures.sort_values(column, key=lambda values: pd.factorize(values)[0], kind="stable")


def _pivot(figures: Frame, baseline: str, cells: Sequence[tuple[str, bool, str]]) -> list[list[str]]:
    """Rows of measure, group, patients, number and cells, measures and groups in their order.

    Args:
        figures: Those of one kind of group.
        cells: Column of `_words`, whether of the difference, and arm, of each cell.
    """
    values = ["patients", "n", *dict.fromkeys(name for name, _, _ in cells)]
    wide = figures.pivot(index=["measure", "group"], columns=["is_difference", "arm"], values=values)
    shown = _in_order(figures[figures["is_shown"]], "measure")[["measure", "group"]].drop_duplicates()
    counts = [(name, False, baseline) for name in ("patients", "n")]
    return wide.reindex(pd.MultiIndex.from_frame(shown))[[*counts, *cells]].reset_index().to_numpy().tolist()


def _arms_table(figures: Frame, experiment: ComparisonPlan, label: str) -> Table:
    cells = [("cell", False, arm) for arm in experiment.arms]
    rows = _pivot(figures[figures["kind"] == ALL], experiment.baseline, cells)
    columns = ["measure", "patients", "n", *experiment.arms]
    rows = [[measure, *others] for measure, _, *others in rows]
    return Table(f"{label}_arms", f"{label}: all patients", columns, rows, (0, 2))


def _differences_table(figures: Frame, experiment: ComparisonPlan, label: str) -> Table:
    own = _in_order(figures[(figures["kind"] == ALL) & figures["is_difference"] & figures["is_shown"]], "arm")
    over = [name for name in ("over hospitals", "over patients and seeds") if (own[name] != DASH).any()]
    own = own[["arm", "measure", "patients", "cell", *over, "test", "p", "p (Holm)"]]
    columns = list(own.rename(columns={"cell": "difference"}))
    title = f"{label}: differences to {experiment.baseline}"
    return Table(f"{label}_differences", title, columns, own.to_numpy().tolist(), (0, 1, columns.index("test")))


def _group_table(figures: Frame, experiment: ComparisonPlan, label: str, kind: str) -> Table:
    others = experiment.arms[1:]
    columns = ["measure", "diameter" if kind == SIZE else kind, "patients", "n", *experiment.arms]
    columns += [f"{arm} minus {experiment.baseline}" for arm in others]
    cells = [*(("cell", False, arm) for arm in experiment.arms), *(("cell", True, arm) for arm in others)]
    if kind == SIZE:
        columns += ["p (Holm)" if len(others) == 1 else f"p (Holm), {arm}" for arm in others]
        cells += [("p (Holm)", True, arm) for arm in others]
    rows = _pivot(figures[figures["kind"] == kind], experiment.baseline, cells)
    for row in rows:
        if is_lack(row[4]):  # said once
            row[5:] = [""] * len(row[5:])
    return Table(f"{label}_{kind}", f"{label}: by {kind}", columns, rows, (0, 1, 3))


def _seeds_table(seeds: Frame, label: str) -> Table:
    rows = []
    for (key, arm), own in seeds.groupby(["measure", "arm"], sort=False):
        values = own["value"]
        if not values.isna().any():
            figures = map(show_value, (values.mean(), values.std(), values.max() - values.min()))
            each = ", ".join(f"{seed}: {show_value(value)}" for seed, value in zip(own["seed"], values, strict=True))
            rows.append([measure_of(key).title, arm, *figures, each])
    columns = ["measure", "arm", "mean", "sd over seeds", "range", "each seed"]
    return Table(f"{label}_seeds", f"{label}: trainings", columns, rows, (0, 1, 5))


def write_complete_tables(findings: Findings, folder: Path) -> None:
    """Write every figure into arms.csv, differences.csv and seeds.csv of a folder, unrounded."""
    arms = pd.DataFrame([_numbers(each) for each in findings.arms], columns=_ARM_COLUMNS)
    differences = pd.DataFrame([_numbers(each) for each in findings.differences], columns=_DIFFERENCE_COLUMNS)
    for name, table in ((ARMS_FILE, arms), (DIFFERENCES_FILE, differences), (SEEDS_FILE, findings.seeds)):
        _write_csv(folder / name, table, "\r\n")


def _numbers(figure: Finding) -> dict[str, Any]:
    """Columns of arms.csv and differences.csv, and more."""
    row = {**vars(figure), "measure": figure.measure.key, "group_kind": figure.group.kind, "group": figure.group.name}
    row |= {"value": figure.estimate.value, "interval": figure.estimate.method, "p": figure.p_value}
    ends = {"": figure.estimate, "_over_hospitals": figure.over_hospitals, "_over_seeds": figure.over_seeds}
    for name, each in ends.items():
        row |= {f"low{name}": each.low, f"high{name}": each.high} if each is not None else {}
    return row


def write_raw_tables(study: StudyScores, experiment: ComparisonPlan, folder: Path) -> None:
    """Write what the figures are computed from into cases.csv and tumors.csv, one row a model and scan or tumour."""
    models = pd.DataFrame({"model": each.name, "arm": each.arm, "seed": each.seed} for each in experiment.models)
    first = ["arm", "seed", "model", "hospital", "patient", *study.group_kinds]
    for name, table in ((CASES_FILE, study.cases), (TUMORS_FILE, study.tumors)):
        rows = table.merge(models.astype({"seed": "Int64"}), on="model")
        _write_csv(folder / name, rows[[*first, *(column for column in table.columns if column not in first)]], "\n")


def _write_csv(path: Path, table: Frame, lineterminator: str) -> None:
    with written_whole(path, overwrite=True) as temporary:
        table.to_csv(temporary, index=False, lineterminator=lineterminator)
