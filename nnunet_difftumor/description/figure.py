"""The plot of a description."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

_COLORS = ("#1f77b4", "#d62728", "#222222")


def draw_profiles(profile: pd.DataFrame, sizes: pd.DataFrame, title: str) -> Figure:
    """Draw the share of the depth by distance to the outline, its quartiles as a band, for each size.

    Args:
        profile, sizes: Tables of a description.
    """
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0.0, color="#888888", linewidth=1.0)
    axis.axhline(0.5, color="#bbbbbb", linewidth=0.8, linestyle=":")
    records: list[dict[str, Any]] = sizes.to_dict("records")
    for color, size in zip(_COLORS, records, strict=False):
        rows = profile[(profile["size"] == size["size"]) & (profile["tumors"] > 0)]
        if rows.empty:
            continue
        middle_mm = rows["from_mm"] + 0.5
        axis.fill_between(
            middle_mm, rows["share_of_depth_low"], rows["share_of_depth_high"], color=color, alpha=0.15, linewidth=0
        )
        name = (
            f"{size['size']}: {size['clear_tumors']} tumours, offset {size['offset_mm']:+.1f} mm, "
            f"width {size['width_mm']:.1f} mm"
        )
        axis.plot(middle_mm, rows["share_of_depth"], color=color, marker="o", markersize=3.5, label=name)
        axis.axvline(size["offset_mm"], color=color, linewidth=1.0, linestyle="--")
    axis.set_ylim(-0.3, 1.4)
    axis.set_xlabel("signed distance to the label's outline in mm (negative: inside)")
    axis.set_ylabel("contrast as a share of the depth in the middle")
    axis.set_title(f"{title}: median and quartiles of the tumours; dashed: half of the depth", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
