"""The pictures of a comparison: forest plots and sensitivity by size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from nnunet_difftumor.evaluation.comparison.analysis import SIZE, Finding
from nnunet_difftumor.evaluation.comparison.measures import SIZE_MEASURES, TUMOR_DICE, TUMORS
from nnunet_difftumor.evaluation.comparison.text import counted, show_estimate
from nnunet_difftumor.evaluation.statistics.intervals import Estimate

_INK, _SOFT, _LINE, _ACCENT = "#1c2430", "#5b6675", "#dfe4ea", "#14618f"
_ARM_COLORS = ("#5b6675", "#14618f", "#c2571a", "#2f7d4f", "#8a3d8f", "#a08000")
_WIDTH, _WORDS_LEFT, _WORDS_RIGHT = 11.5, 3.2, 2.7
"""Width of a figure, and of the words beside a forest plot, in inches."""


@dataclass(frozen=True)
class _Row:
    text: str
    count: str
    estimate: Estimate | None  # None: a heading
    is_diamond: bool = False


def draw_forest(figures: Sequence[Finding], arm: str) -> Figure:
    """Draw those figures of `Findings.shown` that are an arm's, in the range of all of them."""
    rows_of = {name: _forest_rows([each for each in figures if each.arm == name]) for name in _arms_of(figures)}
    everyone, rows = next(each for each in figures if each.arm == arm), rows_of[arm]
    measure, is_difference = everyone.measure, bool(everyone.baseline)
    height = 0.9 + 0.3 * len(rows)  # inches
    words = max(_WORDS_LEFT, *(0.075 * (len(row.text) + len(row.count)) + 0.45 for row in rows))  # inches
    width = _WIDTH - words - _WORDS_RIGHT
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    axis = figure.add_axes((words / _WIDTH, 0.62 / height, width / _WIDTH, 1 - 1.05 / height))
    for place, row in zip(range(len(rows) - 1, -1, -1), rows, strict=True):
        _draw_row(axis, row, place, 1 / width, words, is_difference=is_difference)
    limits = _range_of([row for each in rows_of.values() for row in each])
    axis.set(xlim=limits, ylim=(-0.8, len(rows) - 0.2), yticks=[])
    caption = f"{measure.title}, with 95% interval"
    if is_difference:
        axis.axvline(0, color=_SOFT, linewidth=0.9, zorder=0)
        better = arm if measure.is_better_high else everyone.baseline
        caption = f"difference in {caption}; to the right: {better} is better"
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=_SOFT)
    axis.set_xlabel(caption, fontsize=9, color=_INK)
    title = f"{measure.title}, {everyone.label}: {everyone.name}"
    figure.text(0.012, 1 - 0.2 / height, title, fontsize=11, va="center", parse_math=False)
    return figure


def _arms_of(figures: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(each.arm for each in figures))


def _forest_rows(figures: Sequence[Finding]) -> list[_Row]:
    """Groups kind by kind, then all patients, whose figure comes first in `figures`."""
    everyone, *of_groups = figures
    rows = []
    for kind, own in itertools.groupby(of_groups, key=lambda each: each.group.kind):
        rows.append(_Row("Diameter" if kind == SIZE else kind.capitalize(), "", None))
        rows += [_Row(f"  {each.group.name}", _count(each), each.estimate) for each in own]
    rows.append(_Row("All patients", _count(everyone), everyone.estimate, is_diamond=True))
    if everyone.over_hospitals is not None:
        rows.append(_Row("Hospitals resampled", "", everyone.over_hospitals, is_diamond=True))
    return rows


def _range_of(rows: Sequence[_Row]) -> tuple[float, float]:
    """Ends of the axis, the same for all arms, so that their plots can be compared; 0 is within."""
    known = [row.estimate for row in rows if row.estimate is not None]
    ends = [end for each in known for end in (each.low, each.value, each.high) if not math.isnan(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin


def _draw_row(axis: Axes, row: _Row, height: int, inch: float, words: float, *, is_difference: bool) -> None:
    """Draw a row. `inch` is one inch as a share of the axis, `words` the room to its left in inches."""
    across = axis.get_yaxis_transform()
    estimate = row.estimate
    weight = "bold" if estimate is None or row.is_diamond else "normal"
    style = {"transform": across, "va": "center", "fontsize": 9, "clip_on": False, "parse_math": False}
    axis.text((0.14 - words) * inch, height, row.text, color=_INK, fontweight=weight, **style)
    if estimate is None:
        return
    axis.text(-0.2 * inch, height, row.count, color=_SOFT, ha="right", **style)
    is_missing = math.isnan(estimate.value)
    text = estimate.method.partition(":")[0] if is_missing else show_estimate(estimate, signed=is_difference)
    axis.text(1 + 0.2 * inch, height, text, color=_SOFT if is_missing else _INK, fontweight=weight, **style)
    if is_missing:
        return
    if row.is_diamond and not math.isnan(estimate.low):
        corners = [(estimate.low, height), (estimate.value, height + 0.28), (estimate.high, height)]
        axis.add_patch(Polygon([*corners, (estimate.value, height - 0.28)], color=_ACCENT))
        axis.plot([estimate.low, estimate.high], [height, height], alpha=0.0)  # so that the axis covers it
        return
    axis.plot([estimate.low, estimate.high], [height, height], color=_INK, linewidth=1.3)
    axis.plot([estimate.value], [height], marker="s", color=_ACCENT, markersize=5.5)


def draw_sizes(figures: Sequence[Finding]) -> Figure:
    """Draw measures of tumours by size, one panel each, arms side by side."""
    arms = _arms_of(figures)
    figure = Figure(figsize=(_WIDTH, 3.9), facecolor="white")
    axes = figure.subplots(1, len(SIZE_MEASURES), squeeze=False)[0]
    for axis, measure in zip(axes, SIZE_MEASURES, strict=True):
        of_arms = [[each for each in figures if (each.measure, each.arm) == (measure, arm)] for arm in arms]
        for number, own in enumerate(of_arms):
            _draw_arm_by_size(axis, own, number, len(arms))
        axis.set_xticks(range(len(of_arms[0])), [_tick(each) for each in of_arms[0]])
        axis.set(xlim=(-0.6, len(of_arms[0]) - 0.4), ylim=(0, 1.02))
        axis.set_title(measure.title, fontsize=10, color=_INK)
        axis.set_ylabel("mean Dice" if measure is TUMOR_DICE else "share of tumours", fontsize=9, color=_INK)
        axis.set_xlabel("diameter of the tumour", fontsize=9, color=_INK)
        axis.tick_params(labelsize=8, colors=_INK)
        axis.grid(axis="y", color=_LINE)
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    for name in figure.legend(handles, names, fontsize=9, frameon=False, loc="upper left", ncols=4).get_texts():
        name.set_parse_math(False)
    top = 0.86 - 0.06 * ((len(names) - 1) // 4)
    figure.subplots_adjust(left=0.055, right=0.99, top=top, bottom=0.22, wspace=0.22)
    return figure


def _draw_arm_by_size(axis: Axes, figures: Sequence[Finding], number: int, arms: int) -> None:
    color = _ARM_COLORS[number % len(_ARM_COLORS)]
    shift = (number - (arms - 1) / 2) * min(0.18, 0.6 / arms)
    axis.plot([], [], marker="o", color=color, markersize=5, label=figures[0].arm)
    for position, estimate in enumerate(figure.estimate for figure in figures):
        if not math.isnan(estimate.low):
            place = position + shift
            axis.plot([place, place], [estimate.low, estimate.high], color=color, linewidth=1.6)
            axis.plot([place], [estimate.value], marker="o", color=color, markersize=5)


def _tick(figure: Finding) -> str:
    if not figure.items:
        return f"{figure.group.name}\nempty"
    lack = "\ntoo few" if math.isnan(figure.estimate.low) else ""
    return f"{figure.group.name}\nn = {figure.items}{lack}"


def _count(figure: Finding) -> str:
    patients = counted(figure.patients, "patient")
    return f"{counted(figure.items, 'tumour')}, {patients}" if figure.measure.of == TUMORS else patients
