"""Sizes and contrasts of the tumours that a training was given: a table and a picture in its output folder."""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_difftumor.atomic_files import written_whole
from nnunet_difftumor.injection import InjectedTumor
from nnunet_difftumor.own_style import own_style

HISTOGRAM_FILE_NAME = "injection_histogram.csv"
PICTURE_FILE_NAME = "injection_histogram.png"
RADIUS_EDGES_MM = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 70.0, 100.0)
CONTRAST_EDGES_HU = tuple(float(edge) for edge in range(-100, 101, 10))

RADIUS, CONTRAST, SIZE_CLASS = "radius_mm", "contrast_hu", "size_class"
_COLUMNS = ("target", "quantity", "bin", "drawn", "placed")


@dataclass(frozen=True, order=True)
class Bin:
    """One line of the table.

    Attributes:
        target: Name of the target.
        quantity: "size_class", "radius_mm" or "contrast_hu".
        name: Name of the size class, or lower end of the bin.
    """

    target: str
    quantity: str
    name: str


class InjectionHistogram:
    """Counts drawn and placed tumours by target, size class, radius and contrast, over a whole training."""

    def __init__(self, folder: Path, target_names: Sequence[str], *, is_continued: bool) -> None:
        """Start, or go on with what the output folder holds.

        Args:
            folder: The training's output folder.
            target_names: Name of each target.
            is_continued: The training continues from a checkpoint.
        """
        self._folder = folder
        self._names = tuple(target_names)
        self.drawn: Counter[Bin] = Counter()
        self.placed: Counter[Bin] = Counter()
        if is_continued:
            self._read(folder / HISTOGRAM_FILE_NAME)

    def add(self, tumors: Iterable[tuple[int, InjectedTumor]]) -> None:
        """Count tumours, each with the number of its target; those without a place count as drawn only."""
        for number, tumor in tumors:
            target = self._names[number]
            self.drawn[Bin(target, SIZE_CLASS, tumor.size_class)] += 1
            self.drawn[Bin(target, RADIUS, _lower_end(tumor.drawn_radius_mm, RADIUS_EDGES_MM))] += 1
            if tumor.requested_hu is not None:
                self.drawn[Bin(target, CONTRAST, _lower_end(tumor.requested_hu, CONTRAST_EDGES_HU))] += 1
            if tumor.radius_mm is not None and tumor.contrast_hu is not None:
                self.placed[Bin(target, SIZE_CLASS, tumor.size_class)] += 1
                self.placed[Bin(target, RADIUS, _lower_end(tumor.radius_mm, RADIUS_EDGES_MM))] += 1
                self.placed[Bin(target, CONTRAST, _lower_end(tumor.contrast_hu, CONTRAST_EDGES_HU))] += 1

    def write(self) -> None:
        """Write table and picture, if there is anything to show."""
        if not self.drawn:
            return
        bins = sorted({*self.drawn, *self.placed}, key=_order)
        with (
            written_whole(self._folder / HISTOGRAM_FILE_NAME, overwrite=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            writer.writerows(
                (each.target, each.quantity, each.name, self.drawn[each], self.placed[each]) for each in bins
            )
        with own_style():
            self._draw(self._folder / PICTURE_FILE_NAME)

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                line = Bin(row["target"], row["quantity"], row["bin"])
                self.drawn[line], self.placed[line] = int(row["drawn"]), int(row["placed"])

    def _draw(self, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shown = [name for name in self._names if any(each.target == name for each in self.drawn)]
        figure = Figure(figsize=(9.0, 2.6 * len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(shown), 2, squeeze=False)
        for row, name in zip(axes, shown, strict=True):
            for axis, (quantity, edges, title) in zip(row, _PANELS, strict=True):
                for counts, label, filled in ((self.drawn, "drawn", False), (self.placed, "in the scans", True)):
                    heights = [counts[Bin(name, quantity, _label(edge))] for edge in edges[:-1]]
                    axis.stairs(heights, edges, label=label, fill=filled, color="#1f77b4" if filled else "black")
                axis.set_xlabel(title)
                axis.set_ylabel(f"{name}: tumours")
                axis.legend(frameon=False, fontsize=8)
            row[0].set_xscale("symlog", linthresh=10.0)
            row[0].set_xlim(0.0, RADIUS_EDGES_MM[-1])
            ticks = (0, 2, 4, 6, 8, 10, 20, 50, 100)
            row[0].set_xticks(ticks, [str(tick) for tick in ticks])
        with written_whole(path, overwrite=True) as temporary:
            figure.savefig(temporary, dpi=110)


_PANELS = (
    (RADIUS, RADIUS_EDGES_MM, "radius in mm"),
    (CONTRAST, CONTRAST_EDGES_HU, "contrast in HU"),
)


def _label(edge: float) -> str:
    return f"{edge:g}"


def _lower_end(value: float, edges: Sequence[float]) -> str:
    """Name of the bin that holds a value; values beyond the ends are counted in the outermost bins."""
    index = min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)
    return _label(edges[index])


def _order(line: Bin) -> tuple[str, str, float, str]:
    is_number = line.quantity != SIZE_CLASS
    return (line.target, line.quantity, float(line.name) if is_number else 0.0, line.name)
