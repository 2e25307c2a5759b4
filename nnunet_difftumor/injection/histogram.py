"""Sizes and contrasts of the tumours that a training was given: a table and a picture in its output folder."""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_difftumor.injection.records import InjectedTumor
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.pictures.montage import own_style, save_figure

HISTOGRAM_FILE_NAME = "injection_histogram.csv"
EPOCHS_FILE_NAME = "injection_histogram_epochs.jsonl"
PICTURE_FILE_NAME = "injection_histogram.png"
RADIUS_EDGES_MM = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 70.0, 100.0)
CONTRAST_EDGES_HU = tuple(float(edge) for edge in range(-100, 101, 10))

RADIUS, CONTRAST, SIZE_CLASS = "radius_mm", "contrast_hu", "size_class"
_COLUMNS = ("target", "quantity", "bin", "drawn", "placed")
_PANELS = ((RADIUS, RADIUS_EDGES_MM, "radius in mm"), (CONTRAST, CONTRAST_EDGES_HU, "contrast in HU"))


class Bin(NamedTuple):
    """One line of the table.

    Attributes:
        quantity: "size_class", "radius_mm" or "contrast_hu".
        name: Name of the size class, or lower end of the bin.
    """

    target: str
    quantity: str
    name: str


class _Counts:
    """Tumours by bin."""

    def __init__(self) -> None:
        self.drawn: Counter[Bin] = Counter()
        self.placed: Counter[Bin] = Counter()

    def rows(self) -> list[tuple[str, str, str, int, int]]:
        bins = sorted({*self.drawn, *self.placed})
        return [(each.target, each.quantity, each.name, self.drawn[each], self.placed[each]) for each in bins]


class InjectionHistogram:
    """Counts drawn and placed tumours by target, size class, radius and contrast, over a whole training."""

    def __init__(self, folder: Path, target_names: Sequence[str], *, first_epoch: int = 0) -> None:
        """Start, or go on with what the output folder holds of earlier epochs.

        An interrupted training repeats the epochs after its last checkpoint, so that counts are kept by epoch.

        Args:
            folder: The training's output folder.
            first_epoch: Epoch that this training starts or continues at.
        """
        self._folder = folder
        self._names = tuple(target_names)
        self._all, self._epoch = _Counts(), _Counts()
        self._earlier = [row for row in _read_epochs(folder / EPOCHS_FILE_NAME) if row["epoch"] < first_epoch]
        self._is_untouched = True
        for row in self._earlier:
            for target, quantity, name, drawn, placed in row["bins"]:
                self._all.drawn[Bin(target, quantity, name)] += drawn
                self._all.placed[Bin(target, quantity, name)] += placed

    def add(self, tumors: Iterable[tuple[int, InjectedTumor]]) -> None:
        """Count tumours, each with the number of its target; those without a place count as drawn only."""
        for number, tumor in tumors:
            drawn = _bins(self._names[number], tumor.size_class, tumor.drawn_radius_mm, tumor.requested_hu)
            placed: list[Bin] = []
            if tumor.radius_mm is not None and tumor.contrast_hu is not None:
                placed = _bins(self._names[number], tumor.size_class, tumor.radius_mm, tumor.contrast_hu)
            for counts in (self._all, self._epoch):
                counts.drawn.update(drawn)
                counts.placed.update(placed)

    def write(self, epoch: int) -> None:
        """Write table and picture, if there is anything to show, and what an epoch added.

        Args:
            epoch: Number of the epoch that the tumours since the last call belong to.
        """
        added = {"epoch": epoch, "bins": self._epoch.rows()}
        with (self._folder / EPOCHS_FILE_NAME).open("w" if self._is_untouched else "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in (*self._earlier, added))
        self._is_untouched, self._earlier, self._epoch = False, [], _Counts()
        rows = sorted(self._all.rows(), key=_order)
        if not rows:
            return
        with (
            written_whole(self._folder / HISTOGRAM_FILE_NAME, overwrite=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([_COLUMNS, *rows])
        with own_style():
            self._draw(self._folder / PICTURE_FILE_NAME)

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        shown = [name for name in self._names if any(each.target == name for each in self._all.drawn)]
        figure = Figure(figsize=(9.0, 2.6 * len(shown)), layout="constrained")
        axes = figure.subplots(len(shown), 2, squeeze=False)
        for row, name in zip(axes, shown, strict=True):
            for axis, (quantity, edges, title) in zip(row, _PANELS, strict=True):
                drawn, placed = (
                    [counts[Bin(name, quantity, f"{edge:g}")] for edge in edges[:-1]]
                    for counts in (self._all.drawn, self._all.placed)
                )
                axis.stairs(drawn, edges, label="drawn", color="black")
                axis.stairs(placed, edges, label="in the scans", fill=True, color="#1f77b4")
                axis.set_xlabel(title)
                axis.set_ylabel(f"{name}: tumours")
                axis.legend(frameon=False, fontsize=8)
            row[0].set_xscale("symlog", linthresh=10.0)
            row[0].set_xlim(0.0, RADIUS_EDGES_MM[-1])
            ticks = (0, 2, 4, 6, 8, 10, 20, 50, 100)
            row[0].set_xticks(ticks, [str(tick) for tick in ticks])
        save_figure(figure, path, dpi=110)


def _read_epochs(path: Path) -> list[dict[str, Any]]:
    """What each epoch added; half a line of a killed training is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _bins(target: str, size_class: str, radius_mm: float | None, contrast_hu: float | None) -> list[Bin]:
    """Bins that count a tumour; values beyond the ends are counted in the outermost ones."""
    bins = [Bin(target, SIZE_CLASS, size_class)]
    for quantity, edges, value in ((RADIUS, RADIUS_EDGES_MM, radius_mm), (CONTRAST, CONTRAST_EDGES_HU, contrast_hu)):
        if value is not None:
            index = min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)
            bins.append(Bin(target, quantity, f"{edges[index]:g}"))
    return bins


def _order(row: tuple[str, str, str, int, int]) -> tuple[str, str, float, str]:
    """Size classes by name, ranges from the lowest."""
    target, quantity, name, _, _ = row
    return (target, quantity, 0.0 if quantity == SIZE_CLASS else float(name), name)
