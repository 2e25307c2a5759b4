"""Pictures of synthetic tumours: before, after and label in three planes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from nnunet_difftumor.support.files.atomic_files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOFT_TISSUE_HU = (-160.0, 240.0)
"""Display window W400 L40."""

_PLANES = ("axial", "coronal", "sagittal")
_COLUMNS = ("before", "after", "label")


@dataclass(frozen=True, eq=False)
class MontageRow:
    """One tumour of a montage: its title, and the CT without and with it and its label, turned to display."""

    before_hu: NDArray[np.floating]
    after_hu: NDArray[np.floating]
    label: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    title: str


def turn_to_display(volume: NDArray[Any], affine: NDArray[np.floating]) -> NDArray[Any]:
    """Turn a volume so that its slices along axis 0, 1, 2 are axial, coronal, sagittal as radiologists read them.

    Top is superior or anterior, the image's left is the patient's right, whatever the order of axes in the file. The
    affine (4, 4) takes a voxel index to right-anterior-superior mm; slanted axes go to the nearest plane.
    """
    return apply_orientation(volume, _display_turn(affine))


def display_spacing_mm(affine: NDArray[np.floating]) -> tuple[float, float, float]:
    """Return the spacing in mm along the axes of a volume that `turn_to_display` has turned."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    down, across, along = spacing[np.argsort(_display_turn(affine)[:, 0])].tolist()
    return down, across, along


def make_row(volumes: Sequence[NDArray[Any]], affine: NDArray[np.floating], title: str) -> MontageRow:
    """Make a row of three volumes, before, after and label, with the axes of an affine (see `turn_to_display`)."""
    before_hu, after_hu, label = (turn_to_display(volume, affine) for volume in volumes)
    return MontageRow(before_hu, after_hu, label, display_spacing_mm(affine), title)


def draw_montage(rows: Sequence[MontageRow], heading: str) -> Figure:
    """Draw one row a tumour: before, after and label in three planes through its middle.

    A scan of one slice shows one plane only.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16.0, 1.9 * max(1, len(rows)) + 0.6), layout="constrained")
    figure.suptitle(heading.encode(errors="replace").decode(), fontsize=11, parse_math=False)  # a file's name
    if not rows:
        figure.text(0.5, 0.4, "no tumour was placed", ha="center")
        return figure
    axes = figure.subplots(len(rows), 9, squeeze=False)
    for row, row_axes in zip(rows, axes, strict=True):
        _draw_row(row, row_axes)
    for index, axis in enumerate(axes[0]):
        axis.set_title(f"{_PLANES[index // 3]}, {_COLUMNS[index % 3]}", fontsize=9)
    return figure


def save_figure(figure: Figure, path: Path, *, dpi: int = 90) -> None:
    """Write a figure as PNG of so many dots per inch under a temporary name, then rename it, replacing an older one."""
    with written_whole(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib's own settings: nnU-Net makes all text of its process 2.5 times as large for its plot."""
    import matplotlib.style

    with matplotlib.style.context("default"):
        yield


def _draw_row(row: MontageRow, axes: Sequence[Axes]) -> None:
    centre = np.round(np.argwhere(row.label).mean(axis=0)).astype(int)
    for plane in range(3):
        index = _most_tumor(row.label, plane, int(centre[plane]))
        down, across = (axis for axis in range(3) if axis != plane)
        is_line = min(row.label.shape[down], row.label.shape[across]) == 1
        aspect = row.spacing_mm[down] / row.spacing_mm[across]
        for column, volume in enumerate((row.before_hu, row.after_hu, row.after_hu)):
            axis = axes[3 * plane + column]
            axis.set_visible(not is_line)
            if is_line:
                continue
            axis.imshow(np.take(volume, index, axis=plane), cmap="gray", aspect=aspect, clim=SOFT_TISSUE_HU)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 2:
                axis.contour(np.take(row.label, index, axis=plane), levels=[0.5], colors="tab:red", linewidths=0.9)
    labelled = next((axis for axis in axes if axis.get_visible()), axes[0])
    labelled.set_ylabel(row.title, fontsize=8, parse_math=False)


def _most_tumor(label: NDArray[np.bool_], plane: int, fallback: int) -> int:
    """Slice of a plane with the most tumour; the middle one among equals."""
    others = tuple(axis for axis in range(3) if axis != plane)
    counts = label.sum(axis=others)
    best = np.flatnonzero(counts == counts.max())
    return int(best[np.argmin(np.abs(best - fallback))])


def _display_turn(affine: NDArray[np.floating]) -> NDArray[np.floating]:
    """For each axis of a volume, the axis that it becomes and 1 or -1 (nibabel's orientation array)."""
    return ornt_transform(io_orientation(affine), axcodes2ornt(("I", "P", "L")))
