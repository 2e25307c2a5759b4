"""Sizes and contrasts of the tumours that a training was given: a table and a picture in its output folder."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_difftumor.injection.records import InjectedTumor
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.files.epochs import add_epoch
from nnunet_difftumor.support.pictures.montage import own_style, save_figure

HISTOGRAM_FILE_NAME = "injection_histogram.csv"
EPOCHS_FILE_NAME = "injection_histogram_epochs.jsonl"
PICTURE_FILE_NAME = "injection_histogram.png"
RADIUS_EDGES_MM = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 70.0, 100.0)
CONTRAST_EDGES_HU = tuple(float(edge) for edge in range(-100, 101, 10))

RADIUS, CONTRAST, SIZE_CLASS = "radius_mm", "contrast_hu", "size_class"
_BIN, _COUNTS = ["target", "quantity", "bin"], ["drawn", "placed"]
_PANELS = ((RADIUS, RADIUS_EDGES_MM, "radius in mm"), (CONTRAST, CONTRAST_EDGES_HU, "contrast in HU"))


def write_histogram(
    folder: Path, target_names: Sequence[str], epoch: int, tumors: Iterable[tuple[int, InjectedTumor]]
) -> None:
    """Count an epoch's tumours by target, size class, radius and contrast, and draw those of all epochs up to it.

    Args:
        folder: The training's output folder, which holds what the epochs before it added.
        tumors: Tumours, each with the number of its target; those without a place count as drawn only.
    """
    drawn: Counter[tuple[str, str, str]] = Counter()
    placed: Counter[tuple[str, str, str]] = Counter()
    for number, tumor in tumors:
        name, size_class = target_names[number], tumor.size_class
        drawn.update(_bins(name, size_class, tumor.drawn_radius_mm, tumor.requested_hu))
        if tumor.radius_mm is not None and tumor.contrast_hu is not None:
            placed.update(_bins(name, size_class, tumor.radius_mm, tumor.contrast_hu))
    added = [[*key, drawn[key], placed[key]] for key in sorted({*drawn, *placed})]
    epochs = add_epoch(folder / EPOCHS_FILE_NAME, epoch, {"bins": added})
    table = pd.DataFrame([row for each in epochs for row in each["bins"]], columns=[*_BIN, *_COUNTS])
    if table.empty:
        return
    counts: Any = table.groupby(_BIN, as_index=False)[_COUNTS].sum()
    low = pd.to_numeric(counts["bin"].where(counts["quantity"] != SIZE_CLASS, "0"))
    counts = counts.assign(low=low).sort_values(["target", "quantity", "low", "bin"])[[*_BIN, *_COUNTS]]
    with written_whole(folder / HISTOGRAM_FILE_NAME, overwrite=True) as temporary:
        counts.to_csv(temporary, index=False, lineterminator="\r\n")
    with own_style():
        _draw(counts, target_names, folder / PICTURE_FILE_NAME)


def _bins(
    target: str, size_class: str, radius_mm: float | None, contrast_hu: float | None
) -> Iterator[tuple[str, str, str]]:
    """The bins that count a tumour, by size class or lower end; the outermost ones hold what lies beyond the ends."""
    yield target, SIZE_CLASS, size_class
    for quantity, edges, value in ((RADIUS, RADIUS_EDGES_MM, radius_mm), (CONTRAST, CONTRAST_EDGES_HU, contrast_hu)):
        if value is not None:
            index = min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)
            yield target, quantity, f"{edges[index]:g}"


def _draw(counts: pd.DataFrame, target_names: Sequence[str], path: Path) -> None:
    from matplotlib.figure import Figure

    by_bin = counts.set_index(_BIN)
    shown = [name for name in target_names if (counts.loc[counts["target"] == name, "drawn"] > 0).any()]
    figure = Figure(figsize=(9.0, 2.6 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False)
    for row, name in zip(axes, shown, strict=True):
        for axis, (quantity, edges, title) in zip(row, _PANELS, strict=True):
            bins = [(name, quantity, f"{edge:g}") for edge in edges[:-1]]
            heights = by_bin.reindex(bins, fill_value=0)
            axis.stairs(heights["drawn"].to_list(), edges, label="drawn", color="black")
            axis.stairs(heights["placed"].to_list(), edges, label="in the scans", fill=True, color="#1f77b4")
            axis.set_xlabel(title)
            axis.set_ylabel(f"{name}: tumours", parse_math=False)
            axis.legend(frameon=False, fontsize=8)
        row[0].set_xscale("symlog", linthresh=10.0)
        row[0].set_xlim(0.0, RADIUS_EDGES_MM[-1])
        ticks = (0, 2, 4, 6, 8, 10, 20, 50, 100)
        row[0].set_xticks(ticks, [str(tick) for tick in ticks])
    save_figure(figure, path, dpi=110)
