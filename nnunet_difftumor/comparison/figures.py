"""The pictures of a comparison: forest plots and sensitivity by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from nnunet_difftumor.comparison.analysis import ALL, EVERYONE, SIZE, Findings, Group
from nnunet_difftumor.comparison.experiment import Experiment
from nnunet_difftumor.comparison.measures import Measure
from nnunet_difftumor.comparison.statistics import Estimate
from nnunet_difftumor.comparison.text import show_estimate

_INK, _SOFT, _LINE, _ACCENT = "#1c2430", "#5b6675", "#dfe4ea", "#14618f"
_ARM_COLORS = ("#5b6675", "#14618f", "#c2571a", "#2f7d4f", "#8a3d8f", "#a08000")
_HEADINGS = {"size": "Diameter", "hospital": "Hospital", "age": "Age", "sex": "Sex", "phase": "Phase"}


@dataclass(frozen=True)
class _Row:
    text: str
    count: str = ""
    estimate: Estimate | None = None
    is_diamond: bool = False
    is_heading: bool = False


def draw_forest(findings: Findings, experiment: Experiment, label: str, measure: Measure, arm: str) -> Figure:
    """Draw the difference of an arm to the baseline in all groups and in all patients; of the only arm, its value.

    Args:
        findings: All figures.
        experiment: What was compared.
        label: Tumour label.
        measure: The measure.
        arm: The arm.

    Returns:
        The figure.
    """
    is_difference = arm != experiment.baseline
    rows = _forest_rows(findings, label, measure, arm, is_difference=is_difference)
    figure = _figure(11.5, 0.9 + 0.3 * len(rows))
    axis = figure.add_axes((0.31, 0.62 / figure.get_figheight(), 0.44, 1 - 1.05 / figure.get_figheight()))
    for height, row in zip(range(len(rows) - 1, -1, -1), rows, strict=True):
        _draw_row(axis, row, height, is_difference=is_difference)
    if is_difference:
        axis.axvline(0, color=_SOFT, linewidth=0.9, zorder=0)
    axis.set_ylim(-0.8, len(rows) - 0.2)
    axis.set_yticks([])
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=_SOFT)
    axis.set_xlabel(_forest_caption(experiment, measure, arm, is_difference=is_difference), fontsize=9, color=_INK)
    name = f"{arm} minus {experiment.baseline}" if is_difference else arm
    figure.text(0.012, 1 - 0.2 / figure.get_figheight(), f"{measure.title}, {label}: {name}", fontsize=11, va="center")
    return figure


def _forest_rows(findings: Findings, label: str, measure: Measure, arm: str, *, is_difference: bool) -> list[_Row]:
    find = findings.difference if is_difference else findings.arm
    rows: list[_Row] = []
    for kind in dict.fromkeys(group.kind for group in findings.groups if group.kind != ALL):
        groups = [group for group in findings.groups if group.kind == kind]
        figures = [(group, find(label, measure.key, group, arm)) for group in groups]
        known = [_Row(f"  {group.name}", _count(each.patients), each.estimate) for group, each in figures if each]
        if known:
            rows += [_Row(_HEADINGS.get(kind, kind.capitalize()), is_heading=True), *known]
    everyone = find(label, measure.key, EVERYONE, arm)
    assert everyone is not None
    rows.append(_Row("All patients", _count(everyone.patients), everyone.estimate, is_diamond=True))
    if everyone.over_hospitals is not None:
        rows.append(_Row("Hospitals resampled", "", everyone.over_hospitals, is_diamond=True))
    return rows


def _forest_caption(experiment: Experiment, measure: Measure, arm: str, *, is_difference: bool) -> str:
    if not is_difference:
        return f"{measure.title} with 95% interval"
    better = arm if measure.is_better_high else experiment.baseline
    return f"difference with 95% interval; to the right: {better} is better"


def _draw_row(axis: Axes, row: _Row, height: int, *, is_difference: bool) -> None:
    across = axis.get_yaxis_transform()
    weight = "bold" if row.is_heading or row.is_diamond else "normal"
    style = {"transform": across, "va": "center", "fontsize": 9, "clip_on": False}
    axis.text(-0.68, height, row.text, color=_INK, fontweight=weight, **style)
    if row.is_heading:
        return
    axis.text(-0.04, height, row.count, color=_SOFT, ha="right", **style)
    estimate = row.estimate
    assert estimate is not None
    is_missing = math.isnan(estimate.value)
    text = estimate.method.partition(":")[0] if is_missing else show_estimate(estimate, signed=is_difference)
    axis.text(1.04, height, text, color=_SOFT if is_missing else _INK, fontweight=weight, **style)
    if is_missing:
        return
    if row.is_diamond and not math.isnan(estimate.low):
        corners = [(estimate.low, height), (estimate.value, height + 0.28), (estimate.high, height)]
        axis.add_patch(Polygon([*corners, (estimate.value, height - 0.28)], color=_ACCENT))
        axis.plot([estimate.low, estimate.high], [height, height], alpha=0.0)  # so that the axis covers it
        return
    axis.plot([estimate.low, estimate.high], [height, height], color=_INK, linewidth=1.3)
    axis.plot([estimate.value], [height], marker="s", color=_ACCENT, markersize=5.5)


def draw_sizes(findings: Findings, experiment: Experiment, label: str, measures: Sequence[Measure]) -> Figure:
    """Draw measures of tumours by size, one panel each, arms side by side.

    Args:
        findings: All figures.
        experiment: What was compared.
        label: Tumour label.
        measures: Measures of tumours.

    Returns:
        The figure.
    """
    groups = [group for group in findings.groups if group.kind == SIZE]
    figure = _figure(11.5, 3.6)
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axis, measure in zip(axes, measures, strict=True):
        for number, arm in enumerate(experiment.arms):
            _draw_arm_by_size(axis, findings, (label, measure.key, arm), groups, number, len(experiment.arms))
        axis.set_xticks(range(len(groups)), [_tick(findings, label, measure, each, experiment) for each in groups])
        axis.set_xlim(-0.6, len(groups) - 0.4)
        axis.set_ylim(0, 1.02)
        axis.set_title(measure.title, fontsize=10, color=_INK)
        axis.tick_params(labelsize=8, colors=_INK)
        axis.grid(axis="y", color=_LINE)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.subplots_adjust(left=0.045, right=0.99, top=0.9, bottom=0.17, wspace=0.16)
    return figure


def _draw_arm_by_size(
    axis: Axes, findings: Findings, names: tuple[str, str, str], groups: Sequence[Group], number: int, arms: int
) -> None:
    label, key, arm = names
    color = _ARM_COLORS[number % len(_ARM_COLORS)]
    shift = (number - (arms - 1) / 2) * min(0.18, 0.6 / arms)
    is_named = False
    for position, group in enumerate(groups):
        figure = findings.arm(label, key, group, arm)
        if figure is None or math.isnan(figure.estimate.low):
            continue
        estimate, place = figure.estimate, position + shift
        axis.plot([place, place], [estimate.low, estimate.high], color=color, linewidth=1.6)
        axis.plot([place], [estimate.value], marker="o", color=color, markersize=5, label=None if is_named else arm)
        is_named = True
    if not is_named:
        axis.plot([], [], marker="o", color=color, label=arm)


def _tick(findings: Findings, label: str, measure: Measure, group: Group, experiment: Experiment) -> str:
    figure = findings.arm(label, measure.key, group, experiment.baseline)
    if figure is None or not figure.items:
        return f"{group.name}\nempty"
    lack = "\ntoo few" if math.isnan(figure.estimate.low) else ""
    return f"{group.name}\nn = {figure.items}{lack}"


def _count(patients: int) -> str:
    return f"{patients} patient{'' if patients == 1 else 's'}"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure
