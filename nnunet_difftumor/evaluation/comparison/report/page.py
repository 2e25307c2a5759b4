"""The page of a comparison: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnunet_difftumor.evaluation.comparison.analysis import EVERYONE, SIZE, Findings
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan, file_name_of
from nnunet_difftumor.evaluation.comparison.measures import MEASURES, SENSITIVITY, Measure, is_lack, measure_of
from nnunet_difftumor.evaluation.comparison.report.figures import draw_forest, draw_sizes
from nnunet_difftumor.evaluation.comparison.report.tables import cohort_table, tables_of_label
from nnunet_difftumor.evaluation.comparison.text import listing, show_interval, show_p_value, show_value
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.pictures.montage import save_figure
from nnunet_difftumor.support.pictures.pages import embed_png, page_environment

REPORT_FILE, METHODS_FILE = "report.html", "methods.txt"
TABLES_FOLDER, FIGURES_FOLDER = "tables", "figures"
_DPI = 110


def write_report(
    findings: Findings, experiment: ComparisonPlan, facts: Mapping[str, Any], notes: Sequence[str], output: Path
) -> None:
    """Write tables, figures, methods paragraph and page in place of earlier ones; `facts` are of `collect_facts`."""
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"sentence": listing, "interval": show_interval, "p": show_p_value, "value": show_value}
    environment.tests["lack"] = is_lack
    methods = _tidy(environment.overlay(autoescape=False).get_template("methods.txt.jinja").render(facts=facts))
    _remove_earlier(output)
    cohort, primary = cohort_table(facts), measure_of(experiment.primary)
    labels = [
        {
            "name": label,
            "tables": tables_of_label(findings, experiment, label),
            "cards": [each for each in findings.shown(label, primary) if each.group == EVERYONE],
            **_draw(findings, label, primary, output / FIGURES_FOLDER),
        }
        for label in facts["labels"]
    ]
    for table in (cohort, *(table for label in labels for table in label["tables"])):
        name = file_name_of(table.key)
        _write_text(output / TABLES_FOLDER / f"{name}.csv", table.to_csv())
        _write_text(output / TABLES_FOLDER / f"{name}.tex", table.to_latex())
    page = environment.get_template("report.html.jinja").render(
        facts=facts, labels=labels, cohort=cohort, measures=MEASURES, methods=methods, notes=notes
    )
    _write_text(output / METHODS_FILE, methods + "\n")
    _write_text(output / REPORT_FILE, page)


def _remove_earlier(output: Path) -> None:
    """Tables and pictures of an earlier run would stay if an arm or label has gone since."""
    for pattern in (f"{TABLES_FOLDER}/*.csv", f"{TABLES_FOLDER}/*.tex", f"{FIGURES_FOLDER}/*.png"):
        for path in output.glob(pattern):
            path.unlink()


def _draw(findings: Findings, label: str, primary: Measure, folder: Path) -> dict[str, Any]:
    """Forest plots of the primary measure and of sensitivity, and the plot by size, as text for the page."""
    forests = []
    for measure in dict.fromkeys((primary, SENSITIVITY)):
        figures = findings.shown(label, measure)
        for arm in dict.fromkeys(each.arm for each in figures):
            data = _embedded(draw_forest(figures, arm), folder, f"{label}_{measure.key}_{arm}")
            forests.append({"alt": f"forest plot of {measure.title}, {label}, {arm}", "data": data})
    sizes = draw_sizes([each for each in findings.arms if each.label == label and each.group.kind == SIZE])
    return {"forests": forests, "sizes": _embedded(sizes, folder, f"{label}_sizes")}


def _embedded(figure: Figure, folder: Path, name: str) -> str:
    path = folder / f"{file_name_of(name)}.png"
    save_figure(figure, path, dpi=_DPI)
    return embed_png(path)


def _tidy(text: str) -> str:
    """One line a paragraph, single spaces; the template divides paragraphs by dashes."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("-----"))


def _write_text(path: Path, text: str) -> None:
    with written_whole(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
