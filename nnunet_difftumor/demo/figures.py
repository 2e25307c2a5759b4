"""Pictures of the report that no command of the demo has drawn: predictions beside the truth, and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_difftumor.ct.reading import CTVolume
from nnunet_difftumor.support.pictures.montage import SOFT_TISSUE_HU, flips_to_display

TRUTH_COLOR, PREDICTION_COLOR = "#2ca02c", "#ff7f0e"
_AIR_HU = -300.0
_FEW = 50


def draw_prediction(axis: Any, ct: CTVolume, is_true: NDArray[np.bool_], is_predicted: NDArray[np.bool_]) -> None:
    """Draw the transverse slice with most tumour, outlined as it is and as it was predicted.

    Args:
        axis: Where to draw; matplotlib's Axes.
        is_true: Tumour of the label. Shape (D, H, W).
        is_predicted: Tumour of the prediction. Shape (D, H, W).
    """
    shown = is_true if is_true.any() else is_predicted
    section = int(np.argmax(shown.sum(axis=(1, 2)))) if shown.any() else len(shown) // 2
    flips = tuple(each - 1 for each in flips_to_display(ct.geometry.affine) if each > 0)
    image, true, predicted = (np.flip(volume[section], flips) for volume in (ct.image_hu, is_true, is_predicted))
    rows, columns = (np.flatnonzero((image > _AIR_HU).any(axis=other)) for other in (1, 0))
    body = np.ix_(rows, columns) if len(rows) else np.ix_(*map(range, image.shape))  # air around it takes no room
    aspect = ct.spacing_mm[1] / ct.spacing_mm[2]
    axis.set_axis_off()
    axis.imshow(image[body], cmap="gray", clim=SOFT_TISSUE_HU, aspect=aspect, interpolation="nearest")
    for mask, color in ((true[body], TRUTH_COLOR), (predicted[body], PREDICTION_COLOR)):
        if mask.any():
            axis.contour(mask, levels=[0.5], colors=color, linewidths=1.2)


def make_grid(count: int, columns: int, height: float) -> tuple[Figure, list[Any]]:
    """Make a figure of the width of the page.

    Args:
        count: Number of panels.
        height: Of a row, in inches.

    Returns:
        The figure and its axes, row by row.
    """
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(11.0, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, list(axes[:count])


def draw_curves(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw one panel for each table, by title; the index, with its name, goes to the right."""
    figure, axes = make_grid(len(panels), columns=3, height=2.7)
    for axis, (title, table) in zip(axes, panels.items(), strict=True):
        for name in table:
            values = table[name].dropna()
            marker = "." if len(values) < _FEW else None
            axis.plot(values.index, values, label=str(name).replace("_", " "), linewidth=1.3, marker=marker)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(str(table.index.name), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7)
    return figure
