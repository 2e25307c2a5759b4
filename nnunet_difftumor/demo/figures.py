"""Pictures of the report, as PNG in base64."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_difftumor.support.pictures.montage import SOFT_TISSUE_HU

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRUTH_COLOR = "#2ca02c"
PREDICTION_COLOR = "#ff7f0e"
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
_DPI = 100
_NO_CURVES = ("step", "learning_rate", "gradient_norm")

Slice = NDArray[np.floating[Any]]
Outlines = Sequence[tuple[NDArray[np.bool_], str]]


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of a grid of CT slices.

    Attributes:
        image_hu: The slice in HU, as it is to be seen. Shape (rows, columns).
        title: What stands above it.
        outlines: Masks of the same shape with the colour of their outline.
        aspect: Height of a pixel over its width.
        limits: Values shown as black and white.
    """

    image_hu: Slice
    title: str
    outlines: Outlines = ()
    aspect: float = 1.0
    limits: tuple[float, float] = SOFT_TISSUE_HU


def draw_tiles(rows: Sequence[Sequence[Tile]], *, width: float = 11.0, row_titles: Sequence[str] = ()) -> str:
    """Draw a grid of CT slices.

    Args:
        rows: Tiles row by row; a row may be shorter than the first.
        row_titles: What stands beside the rows.

    Returns:
        PNG in base64.
    """
    columns = max(len(row) for row in rows)
    ratios = [max(tile.image_hu.shape[0] * tile.aspect / tile.image_hu.shape[1] for tile in row) for row in rows]
    cell = width / columns
    figure = _figure(width, sum(cell * ratio + 0.3 for ratio in ratios))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for index, (row, row_axes) in enumerate(zip(rows, axes, strict=True)):
        for axis in row_axes[len(row) :]:
            axis.set_axis_off()
        for tile, axis in zip(row, row_axes, strict=False):
            _draw_tile(tile, axis)
        if index < len(row_titles):
            row_axes[0].set_ylabel(row_titles[index], fontsize=9)
    return _encode(figure)


def draw_training(history: Path, heldout: Path, measures: Mapping[str, tuple[str, str]]) -> str | None:
    """Draw the losses of a training run and what was measured on held-out data.

    Args:
        history: history.csv with one row a step.
        heldout: heldout_history.csv with one row a measurement; may be missing.
        measures: A panel for each title: columns that start and end with two words, named by what is between.

    Returns:
        PNG in base64, or None if there is no history.
    """
    losses = read_columns(history)
    if len(losses.get("step", ())) == 0:
        return None
    measured = read_columns(heldout)
    panels = {title: _named(measured, *ends) for title, ends in measures.items()}
    panels = {title: columns for title, columns in panels.items() if columns}
    figure = _figure(11.0, 3.2)
    axes = figure.subplots(1, 1 + len(panels), squeeze=False)[0]
    names = [name for name in losses if name not in _NO_CURVES]
    for name, color in zip(names, _COLORS * 3, strict=False):
        _draw_curve(axes[0], losses["step"], losses[name], name.replace("_", " "), color)
    if all(np.nanmin(losses[name]) > 0 for name in names):
        axes[0].set_yscale("log")
    _finish_axes(axes[0], "step", "training loss")
    for axis, (title, columns) in zip(axes[1:], panels.items(), strict=True):
        for (name, values), color in zip(columns.items(), _COLORS, strict=False):
            axis.plot(measured["step"], values, label=name.replace("_", " "), color=color, marker="o", markersize=3.5)
        _finish_axes(axis, "step", title)
    return _encode(figure)


def draw_segmentation_curves(epochs: Mapping[str, Sequence[float]]) -> str | None:
    """Draw nnU-Net's losses and pseudo Dice.

    Args:
        epochs: Values per epoch by name; names that contain "Dice" get an axis of their own.

    Returns:
        PNG in base64, or None if there is nothing to draw.
    """
    epochs = {name: values for name, values in epochs.items() if len(values) > 0}
    if not epochs:
        return None
    figure = _figure(11.0, 3.2)
    left, right = figure.subplots(1, 2)
    for (name, values), color in zip(epochs.items(), _COLORS, strict=False):
        axis = right if "Dice" in name else left
        axis.plot(np.arange(len(values)), values, label=name, color=color, marker="o", markersize=3)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish_axes(left, "epoch", "loss (lower is better)")
    _finish_axes(right, "epoch", "pseudo Dice on validation patches")
    right.set_ylim(-0.02, 1.02)
    return _encode(figure)


def draw_counts(rows: Sequence[Mapping[str, int]]) -> str | None:
    """Draw injected and rejected samples per epoch.

    Returns:
        PNG in base64, or None if there is no epoch.
    """
    if not rows:
        return None
    names = ["injected", *sorted({key for row in rows for key in row if key.startswith("rejected_")})]
    figure = _figure(11.0, 2.8)
    axis = figure.subplots()
    bottom = np.zeros(len(rows))
    epochs = [row.get("epoch", index) for index, row in enumerate(rows)]
    for name, color in zip(names, ("#2ca02c", "#d62728", "#ff9896", "#e377c2", "#8c564b", "#7f7f7f"), strict=False):
        values = np.array([row.get(name, 0) for row in rows], dtype=float)
        axis.bar(epochs, values, bottom=bottom, label=name.replace("rejected_", "rejected: "), color=color, width=0.7)
        bottom += values
    _finish_axes(axis, "epoch", "healthy samples that were to get tumours")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _encode(figure)


def embed_png(path: Path) -> str | None:
    """Read a PNG file.

    Args:
        path: The file; may be missing.

    Returns:
        PNG in base64, or None.
    """
    return base64.b64encode(path.read_bytes()).decode("ascii") if path.is_file() else None


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read a CSV file of numbers.

    Args:
        path: The file; a missing one has no columns.

    Returns:
        Values by column name; an empty cell is NaN.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_tile(tile: Tile, axis: Axes) -> None:
    axis.imshow(tile.image_hu, cmap="gray", clim=tile.limits, aspect=tile.aspect, interpolation="nearest")
    for mask, color in tile.outlines:
        if mask.any():
            axis.contour(mask, levels=[0.5], colors=color, linewidths=1.2)
    axis.set_title(tile.title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _named(columns: Mapping[str, Slice], start: str, end: str) -> dict[str, Slice]:
    """Columns whose names start and end so, by what is between."""
    return {
        name[len(start) : len(name) - len(end)]: values
        for name, values in columns.items()
        if name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end)
    }


def _draw_curve(axis: Axes, steps: Slice, values: Slice, name: str, color: str) -> None:
    """A loss, faint as it is and strong as a moving average."""
    width = max(1, len(values) // 40)
    if width == 1:
        axis.plot(steps, values, label=name, color=color, linewidth=1.4)
        return
    axis.plot(steps, values, color=color, linewidth=0.5, alpha=0.25)
    kernel = np.ones(width) / width
    axis.plot(steps[width - 1 :], np.convolve(values, kernel, mode="valid"), label=name, color=color, linewidth=1.5)


def _finish_axes(axis: Axes, below: str, title: str) -> None:
    axis.set_xlabel(below, fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _encode(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
