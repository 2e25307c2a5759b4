"""Plots and montages of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from nnunet_difftumor.evaluation.realism.collection import IN_PLACE, TRANSPLANTS, Collection, select
from nnunet_difftumor.evaluation.realism.measures.probes import ProbeResult
from nnunet_difftumor.evaluation.realism.measures.textures import BAND_EDGES_PER_MM, PROFILE_EDGES_MM
from nnunet_difftumor.evaluation.realism.tables import distribution_of
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.making import MadeTumor
from nnunet_difftumor.support.pictures.montage import MontageRow, crop_around, draw_montage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    making.REAL: "#222222",
    making.GENERATED: "#1f77b4",
    making.NO_RESIDUAL: "#7fb8e0",
    making.COPY_PASTE: "#2ca02c",
    making.NO_DIFFUSION: "#d62728",
    making.TEXTURED_FILL: "#ff7f0e",
    making.AUTOENCODER: "#9467bd",
}
_SHELL_CENTRES_MM = [edge + 1.0 for edge in PROFILE_EDGES_MM[:-1]]
_BAND_CENTRES_PER_MM = [edge + 0.025 for edge in BAND_EDGES_PER_MM[:-1]]
_SHOWN = 5


def draw_curves(collection: Collection, methods: Mapping[str, Any], window_hu: tuple[float, float]) -> Figure:
    """Draw HU histograms, ring profiles and power spectra of tumours in place and transplanted: six panels.

    Args:
        window_hu: Window of all values in HU.
    """
    figure = _figure(13.0, 7.4)
    axes = figure.subplots(2, 3)
    real = collection.of(IN_PLACE, making.REAL)
    for row, setting in enumerate((IN_PLACE, TRANSPLANTS)):
        for method, color in COLORS.items():
            is_real = method == making.REAL
            tumors = real if is_real else collection.of(setting, method)
            table = methods[method]["in_place" if is_real else setting.replace(" ", "_")]
            if bool(tumors["made"].notna().any()):
                _draw_histogram(axes[row][0], tumors, window_hu, method, color)
            if isinstance(table, Mapping):
                _draw_values(axes[row][1], _SHELL_CENTRES_MM, table["profile_hu"], method, color)
                if not (is_real and row == 1):
                    _draw_values(axes[row][2], _BAND_CENTRES_PER_MM, table["band_hu2"], method, color)
        _finish(axes[row][0], "HU inside the label", f"{setting}: distribution of HU")
        _finish(axes[row][1], "mm outside the label's surface", f"{setting}: mean HU minus the organ around")
        _finish(axes[row][2], "cycles per mm", f"{setting}: variance inside the label by band, HU$^2$")
        axes[row][1].axvline(0.0, color="#999999", linewidth=0.8)
        axes[row][2].set_yscale("log")
        axes[row][0].legend(fontsize=8)
    return figure


def draw_controls(controls: Mapping[str, Any]) -> Figure:
    """Draw achieved against requested contrast and heterogeneity: three panels."""
    figure = _figure(13.0, 4.0)
    axes = figure.subplots(1, 3)
    panels = [
        ("contrast, generated", controls["contrast"][making.GENERATED]),
        ("contrast, no diffusion", controls["contrast"][making.NO_DIFFUSION]),
        ("heterogeneity (low-pass sd), generated", controls["heterogeneity"][making.GENERATED]),
    ]
    for axis, (title, table) in zip(axes, panels, strict=True):
        rows = list(table["achieved_hu_by_radius"].items())
        for index, (radius, achieved) in enumerate(rows):
            requested = [float(name.split()[0]) for name in achieved]
            shade = 0.25 + 0.65 * index / max(1, len(rows) - 1)
            axis.plot(
                requested, list(achieved.values()), marker="o", markersize=4, color=(0.1, 0.2, shade), label=radius
            )
        if rows:
            requested = [float(name.split()[0]) for name in rows[0][1]]
            axis.plot(requested, requested, color="#999999", linestyle="--", linewidth=1.0, label="as requested")
            axis.legend(fontsize=8, title="radius", title_fontsize=8)
        _finish(axis, "requested, HU", f"achieved {title}, HU")
    return figure


def draw_transplants(collection: Collection, heading: str) -> Figure:
    """Show one generated transplant of every radius beside its host."""
    generated = collection.seen(TRANSPLANTS, making.GENERATED)
    chosen = []
    for index, (_, of_radius) in enumerate(generated.groupby("radius_mm")):
        patients = sorted(of_radius["patient"].unique())
        chosen.append(of_radius[of_radius["patient"] == patients[index % len(patients)]].iloc[:1])
    return _montage(pd.concat(chosen) if chosen else generated, heading)


def draw_confidence(
    collection: Collection, result: ProbeResult | None, heading: str, *, most_convincing: bool
) -> Figure:
    """Show the generated tumours in place that the classifier took for real, or those that it found out.

    "Before" is the real tumour. Without a result, the first ones are shown.
    """
    tumors = collection.seen(IN_PLACE, making.GENERATED)
    if result is None:
        return _montage(tumors.iloc[:_SHOWN], heading)
    scores = result.confidence()
    shown = sorted(scores, key=lambda index: scores[index] if most_convincing else -scores[index])[:_SHOWN]
    return _montage(tumors.iloc[shown], heading, [f"\nscore {scores[index]:+.2f}" for index in shown])


def draw_in_place(collection: Collection, heading: str) -> Figure:
    """Show the first generated tumour of every case beside the real one."""
    return _montage(collection.seen(IN_PLACE, making.GENERATED).groupby("patient", sort=False).head(1), heading)


def draw_methods(collection: Collection, heading: str) -> Figure:
    """Show one place made by every method: a transplant of middle size."""
    generated = collection.seen(TRANSPLANTS, making.GENERATED)
    if generated.empty:
        return _montage(generated, heading)
    middle = generated.loc[(generated["radius_mm"] - 12.0).abs().idxmin(), "of"]
    tumors = collection.tumors
    same = select(tumors, tumors["of"].map(lambda place: place is middle) & tumors["made"].notna())
    return _montage(same, heading, [f"\n{method}" for method in same["method"]])


def _montage(tumors: pd.DataFrame, heading: str, notes: Sequence[str] = ()) -> Figure:
    rows = []
    records: list[dict[str, Any]] = tumors.to_dict("records")
    for tumor, note in zip(records, notes or [""] * len(records), strict=True):
        made: MadeTumor = tumor["made"]
        scan, is_in_place = made.scan, tumor["setting"] == IN_PLACE
        whole, label = scan.image_hu.copy(), np.zeros(scan.image_hu.shape, dtype=bool)
        whole[made.box] = made.image_hu
        label[made.box] = made.label
        box = crop_around(label, scan.spacing_mm, margin_mm=20.0 if is_in_place else 30.0)
        size = f"{tumor['diameter_mm']:.0f} mm" if is_in_place else f"r {tumor['radius_mm']:g} mm"
        title = f"{scan.identifier}\n{size}, {tumor['contrast_hu']:+.0f} HU{note}"
        rows.append(MontageRow(scan.image_hu[box][::-1], whole[box][::-1], label[box][::-1], scan.spacing_mm, title))
    return draw_montage(rows, heading)


def _draw_histogram(axis: Axes, tumors: pd.DataFrame, window_hu: tuple[float, float], name: str, color: str) -> None:
    distribution = distribution_of(tumors, window_hu)
    density = np.diff(distribution.cumulative.mean(axis=0)) / np.diff(distribution.edges_hu)
    axis.plot(distribution.edges_hu[1:], gaussian_filter1d(density, 4.0), label=name, color=color, linewidth=1.4)
    axis.set_xlim(-80.0, 150.0)


def _draw_values(axis: Axes, positions: Sequence[float], values: Sequence[float | None], name: str, color: str) -> None:
    known = [np.nan if value is None else value for value in values]
    axis.plot(positions, known, label=name, color=color, marker="o", markersize=3.5, linewidth=1.4)


def _finish(axis: Axes, below: str, title: str) -> None:
    axis.set_xlabel(below, fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
