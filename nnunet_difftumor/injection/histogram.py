"""Sizes and contrasts of the tumours that a training was given: a table and a picture in its output folder."""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.injection.records import InjectedTumor
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.pictures.style import own_style

HISTOGRAM_FILE_NAME = "injection_histogram.csv"
EPOCHS_FILE_NAME = "injection_histogram_epochs.jsonl"
PICTURE_FILE_NAME = "injection_histogram.png"
RADIUS_EDGES_MM = (0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 70.0, 100.0)
CONTRAST_EDGES_HU = tuple(float(edge) for edge in range(-100, 101, 10))

RADIUS, CONTRAST, SIZE_CLASS = "radius_mm", "contrast_hu", "size_class"
_COLUMNS = ("target", "quantity", "bin", "drawn", "placed")


@dataclass(frozen=True, order=True)
class Bin:
    """One line of the table.

    Attributes:
        quantity: "size_class", "radius_mm" or "contrast_hu".
        name: Name of the size class, or lower end of the bin.
    """

    target: str
    quantity: str
    name: str


def _read_epochs(path: Path) -> list[dict[str, Any]]:
    """What each epoch added; half a line of a killed training is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


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
        self.drawn: Counter[Bin] = Counter()
        self.placed: Counter[Bin] = Counter()
        self._drawn_since: Counter[Bin] = Counter()
        self._placed_since: Counter[Bin] = Counter()
        self._is_untouched = True
        self._epochs = [row for row in _read_epochs(folder / EPOCHS_FILE_NAME) if row["epoch"] < first_epoch]
        for row in self._epochs:
            for target, quantity, name, drawn, placed in row["bins"]:
                self.drawn[Bin(target, quantity, name)] += drawn
                self.placed[Bin(target, quantity, name)] += placed

    def add(self, tumors: Iterable[tuple[int, InjectedTumor]]) -> None:
        """Count tumours, each with the number of its target; those without a place count as drawn only."""
        for number, tumor in tumors:
            target = self._names[number]
            drawn = [Bin(target, SIZE_CLASS, tumor.size_class)]
            drawn.append(Bin(target, RADIUS, _lower_end(tumor.drawn_radius_mm, RADIUS_EDGES_MM)))
            if tumor.requested_hu is not None:
                drawn.append(Bin(target, CONTRAST, _lower_end(tumor.requested_hu, CONTRAST_EDGES_HU)))
            placed = []
            if tumor.radius_mm is not None and tumor.contrast_hu is not None:
                placed.append(Bin(target, SIZE_CLASS, tumor.size_class))
                placed.append(Bin(target, RADIUS, _lower_end(tumor.radius_mm, RADIUS_EDGES_MM)))
                placed.append(Bin(target, CONTRAST, _lower_end(tumor.contrast_hu, CONTRAST_EDGES_HU)))
            for counter, since, bins in (
                (self.drawn, self._drawn_since, drawn),
                (self.placed, self._placed_since, placed),
            ):
                counter.update(bins)
                since.update(bins)

    def write(self, epoch: int) -> None:
        """Write table and picture, if there is anything to show, and what an epoch added.

        Args:
            epoch: Number of the epoch that the tumours since the last call belong to.
        """
        self._write_epoch(epoch)
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

    def _write_epoch(self, epoch: int) -> None:
        bins = [
            (*astuple(each), self._drawn_since[each], self._placed_since[each])
            for each in sorted({*self._drawn_since, *self._placed_since})
        ]
        rows = [*self._epochs, {"epoch": epoch, "bins": bins}]
        with (self._folder / EPOCHS_FILE_NAME).open("w" if self._is_untouched else "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in (rows if self._is_untouched else rows[-1:]))
        self._is_untouched, self._epochs = False, []
        self._drawn_since, self._placed_since = Counter(), Counter()

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
