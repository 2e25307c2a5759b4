"""Plots and montages of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from nnunet_difftumor.ct.boxes import box_around
from nnunet_difftumor.evaluation.realism.collection import seen, select
from nnunet_difftumor.evaluation.realism.measures.probes import ProbeResult
from nnunet_difftumor.evaluation.realism.measures.textures import BAND_EDGES_PER_MM, PROFILE_EDGES_MM
from nnunet_difftumor.evaluation.realism.tables import distribution_of
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.making import IN_PLACE, TRANSPLANT, MadeTumor
from nnunet_difftumor.support.pictures.montage import draw_montage, make_row

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


def draw_pictures(
    summary: Mapping[str, Any],
    tumors: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    result: ProbeResult | None,
) -> dict[str, Figure]:
    """Draw the pictures of an evaluation, by name.

    Args:
        summary: What `summary.json` holds.
        others: Tumours of the other organs, by name.
        result: What the two-sample classifier found of the generated tumours.
    """
    dataset, sides = summary["dataset"], "real (before) and generated (after)"
    heading = f"Real (before) and generated (after) tumours of {dataset}, cases the generator never saw"
    first_of_cases = seen(tumors, IN_PLACE).groupby("patient", sort=False).head(1)
    pictures = {
        "inplace": _montage(first_of_cases, heading),
        "curves": _draw_curves(tumors, summary["methods"]),
        "controls": _draw_controls(summary["controls"]),
        "convincing": _draw_confidence(tumors, result, f"Most convincing: {sides}", convincing=True),
        "unconvincing": _draw_confidence(tumors, result, f"Least convincing: {sides}", convincing=False),
        "transplants": _draw_transplants(tumors, f"Generated in tumour-free tissue of {dataset}"),
        "methods": _draw_methods(tumors, "One place, every method"),
    }
    for index, (name, other) in enumerate(others.items()):
        heading = f"Generated in an organ that the generator never saw: {name}"
        pictures[f"other_organ_{index}"] = _draw_transplants(other, heading)
        pictures[f"other_organ_{index}_controls"] = _draw_controls(summary["other_organ"][name]["controls"])
    return pictures


def _draw_curves(tumors: pd.DataFrame, methods: Mapping[str, Any]) -> Figure:
    """HU histograms, ring profiles and power spectra of tumours in place and transplanted: six panels."""
    figure = Figure(figsize=(13.0, 7.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for row, setting in enumerate((IN_PLACE, TRANSPLANT)):
        for method, color in COLORS.items():
            is_real = method == making.REAL
            own = seen(tumors, IN_PLACE if is_real else setting, method)
            table = methods[method]["in_place" if is_real else setting.replace(" ", "_")]
            if len(own):
                _draw_histogram(axes[row][0], own, method, color)
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


def _draw_controls(controls: Mapping[str, Any]) -> Figure:
    """Achieved against requested contrast and heterogeneity: three panels."""
    figure = Figure(figsize=(13.0, 4.0), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = [
        ("contrast, generated", controls["contrast"][making.GENERATED]),
        ("contrast, no diffusion", controls["contrast"][making.NO_DIFFUSION]),
        ("heterogeneity (low-pass sd), generated", controls["heterogeneity"][making.GENERATED]),
    ]
    for axis, (title, table) in zip(axes, panels, strict=True):
        achieved_hu = pd.DataFrame(table["achieved_hu_by_radius"], dtype=float)
        requested_hu = [float(name.split()[0]) for name in achieved_hu.index]
        for index, (radius, own_hu) in enumerate(achieved_hu.items()):
            color = (0.1, 0.2, 0.25 + 0.65 * index / max(1, len(achieved_hu.columns) - 1))
            axis.plot(requested_hu, own_hu, marker="o", markersize=4, color=color, label=radius)
        if requested_hu:
            axis.plot(requested_hu, requested_hu, color="#999999", linestyle="--", linewidth=1.0, label="as requested")
            axis.legend(fontsize=8, title="radius", title_fontsize=8)
        _finish(axis, "requested, HU", f"achieved {title}, HU")
    return figure


def _draw_transplants(tumors: pd.DataFrame, heading: str) -> Figure:
    """One generated transplant of every radius beside its host."""
    generated = seen(tumors, TRANSPLANT)
    chosen = []
    for index, (_, of_radius) in enumerate(generated.groupby("radius_mm")):
        of_patients = of_radius.drop_duplicates("patient").sort_values("patient")
        chosen.append(of_patients.iloc[[index % len(of_patients)]])
    return _montage(pd.concat(chosen) if chosen else generated, heading)


def _draw_confidence(tumors: pd.DataFrame, result: ProbeResult | None, heading: str, *, convincing: bool) -> Figure:
    """Tumours in place that the classifier took for real, or those that it found out; without a result, the first."""
    generated = seen(tumors, IN_PLACE)
    if result is None:
        return _montage(generated.iloc[:_SHOWN], heading)
    scores = result.confidence()
    shown = sorted(scores, key=lambda index: scores[index] if convincing else -scores[index])[:_SHOWN]
    return _montage(generated.iloc[shown], heading, [f"\nscore {scores[index]:+.2f}" for index in shown])


def _draw_methods(tumors: pd.DataFrame, heading: str) -> Figure:
    """One place made by every method: a transplant of middle size."""
    generated = seen(tumors, TRANSPLANT)
    if generated.empty:
        return _montage(generated, heading)
    middle = generated.loc[(generated["radius_mm"] - 12.0).abs().idxmin(), "of"]
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
        box = box_around(label, scan.spacing_mm, margin_mm=20.0 if is_in_place else 30.0)
        size = f"{tumor['diameter_mm']:.0f} mm" if is_in_place else f"r {tumor['radius_mm']:g} mm"
        title = f"{scan.identifier}\n{size}, {tumor['contrast_hu']:+.0f} HU{note}"
        rows.append(make_row((scan.image_hu[box], whole[box], label[box]), scan.affine, title))
    return draw_montage(rows, heading)


def _draw_histogram(axis: Axes, tumors: pd.DataFrame, name: str, color: str) -> None:
    distribution = distribution_of(tumors)
    density = np.diff(distribution.cumulative.mean(axis=0)) / np.diff(distribution.edges_hu)
    axis.plot(distribution.edges_hu[1:], gaussian_filter1d(density, 4.0), label=name, color=color, linewidth=1.4)
    axis.set_xlim(-80.0, 150.0)


def _draw_values(axis: Axes, positions: Sequence[float], values: Sequence[float | None], name: str, color: str) -> None:
    known = np.array(values, dtype=float)
    axis.plot(positions, known, label=name, color=color, marker="o", markersize=3.5, linewidth=1.4)


def _finish(axis: Axes, below: str, title: str) -> None:
    axis.set_xlabel(below, fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
