"""Plots and montages of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from nnunet_difftumor.evaluation.realism.collection import Collection, MeasuredTumor
from nnunet_difftumor.evaluation.realism.measures.probes import ProbeResult
from nnunet_difftumor.evaluation.realism.measures.textures import BAND_EDGES_PER_MM, PROFILE_EDGES_MM
from nnunet_difftumor.evaluation.realism.tables import distribution_of
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.places import IN_PLACE
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
_SHOWN = 5


def draw_curves(collection: Collection, methods: Mapping[str, Any], window_hu: tuple[float, float]) -> Figure:
    """Draw HU histograms, ring profiles and power spectra of tumours in place and transplanted.

    Args:
        collection: Everything that was made.
        window_hu: Window of all values in HU.

    Returns:
        The figure, six panels.
    """
    figure = _figure(13.0, 7.4)
    axes = figure.subplots(2, 3)
    real = [tumor for tumor in collection.in_place if tumor.made.method == making.REAL]
    for row, (setting, tumors) in enumerate(
        (("in place", collection.in_place), ("transplant", collection.transplants))
    ):
        key = setting.replace(" ", "_")
        for method, color in COLORS.items():
            own = [tumor for tumor in tumors if tumor.made.method == method] or (real if method == making.REAL else [])
            table = methods[method][key]
            table = methods[method]["in_place"] if method == making.REAL else table
            if own:
                _draw_histogram(axes[row][0], own, window_hu, method, color)
            if isinstance(table, Mapping):
                _draw_values(axes[row][1], _shell_centres(), table["profile_hu"], method, color)
                if not (method == making.REAL and row == 1):
                    _draw_values(axes[row][2], _band_centres(), table["band_hu2"], method, color)
        _finish(axes[row][0], "HU inside the label", f"{setting}: distribution of HU")
        _finish(axes[row][1], "mm outside the label's surface", f"{setting}: mean HU minus the organ around")
        _finish(axes[row][2], "cycles per mm", f"{setting}: variance inside the label by band, HU$^2$")
        axes[row][1].axvline(0.0, color="#999999", linewidth=0.8)
        axes[row][2].set_yscale("log")
        axes[row][0].legend(fontsize=8)
    return figure


def draw_controls(controls: Mapping[str, Any]) -> Figure:
    """Draw achieved against requested contrast and heterogeneity.

    Args:
        controls: Plain table of the requests.

    Returns:
        The figure, three panels.
    """
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
    """Show one generated transplant of every radius beside its host.

    Args:
        collection: Everything that was made.
    """
    generated = [tumor for tumor in collection.transplants if tumor.made.method == making.GENERATED]
    chosen: dict[float, MeasuredTumor] = {}
    for index, radius in enumerate(sorted({tumor.made.place.spec.radius_mm for tumor in generated})):
        of_radius = [tumor for tumor in generated if tumor.made.place.spec.radius_mm == radius]
        patients = sorted({tumor.measures.patient for tumor in of_radius})
        patient = patients[index % len(patients)]
        chosen[radius] = next(tumor for tumor in of_radius if tumor.measures.patient == patient)
    return _montage([chosen[radius] for radius in sorted(chosen)], heading)


def draw_confidence(
    collection: Collection, result: ProbeResult | None, heading: str, *, most_convincing: bool
) -> Figure:
    """Show the generated tumours in place that the classifier took for real, or those that it found out.

    Args:
        collection: Everything that was made.
        result: Scores of the generated tumours; None shows the first ones.
        most_convincing: Show those taken for real.

    Returns:
        The figure; "before" is the real tumour.
    """
    tumors = [tumor for tumor in collection.in_place if tumor.made.method == making.GENERATED]
    confidence = result.confidence() if result is not None else dict.fromkeys(range(len(tumors)), 0.0)
    order = sorted(confidence, key=lambda index: confidence[index] if most_convincing else -confidence[index])
    titles = {index: f"\nscore {confidence[index]:+.2f}" for index in confidence} if result is not None else {}
    return _montage([tumors[index] for index in order[:_SHOWN]], heading, [titles.get(i, "") for i in order[:_SHOWN]])


def draw_in_place(collection: Collection, heading: str) -> Figure:
    """Show the first generated tumour of every case beside the real one."""
    first = [t for t in collection.in_place if t.made.method == making.GENERATED and t.made.draw == 0]
    return _montage(first, heading)


def draw_methods(collection: Collection, heading: str) -> Figure:
    """Show one place made by every method: a transplant of middle size."""
    generated = [t for t in collection.transplants if t.made.method == making.GENERATED]
    if not generated:
        return _montage([], heading)
    middle = min(generated, key=lambda tumor: abs(tumor.made.place.spec.radius_mm - 12.0)).made.place
    same = [tumor for tumor in collection.transplants if tumor.made.place is middle]
    return _montage(same, heading, [f"\n{tumor.made.method}" for tumor in same])


def _montage(tumors: Sequence[MeasuredTumor], heading: str, notes: Sequence[str] = ()) -> Figure:
    rows = []
    for index, tumor in enumerate(tumors):
        place, spacing = tumor.made.place, tumor.made.place.scan.spacing_mm
        whole = place.scan.image_hu.copy()
        whole[place.box] = np.where(place.weight > 0, tumor.made.image_hu, place.host_hu)
        label = np.zeros(whole.shape, dtype=bool)
        label[place.box] = place.label
        box = crop_around(label, spacing, margin_mm=20.0 if place.setting == IN_PLACE else 30.0)
        size = f"{tumor.measures.diameter_mm:.0f} mm" if place.setting == IN_PLACE else f"r {place.spec.radius_mm:g} mm"
        note = notes[index] if index < len(notes) else ""
        title = f"{place.scan.identifier}\n{size}, {tumor.measures.contrast_hu:+.0f} HU{note}"
        rows.append(MontageRow(place.scan.image_hu[box][::-1], whole[box][::-1], label[box][::-1], spacing, title))
    return draw_montage(rows, heading)


def _draw_histogram(
    axis: Axes, tumors: Sequence[MeasuredTumor], window_hu: tuple[float, float], name: str, color: str
) -> None:
    distribution = distribution_of(tumors, window_hu)
    density = np.diff(distribution.cumulative.mean(axis=0)) / np.diff(distribution.edges_hu)
    axis.plot(distribution.edges_hu[1:], gaussian_filter1d(density, 4.0), label=name, color=color, linewidth=1.4)
    axis.set_xlim(-80.0, 150.0)


def _draw_values(axis: Axes, positions: Sequence[float], values: Sequence[float | None], name: str, color: str) -> None:
    known = [np.nan if value is None else value for value in values]
    axis.plot(positions, known, label=name, color=color, marker="o", markersize=3.5, linewidth=1.4)


def _shell_centres() -> list[float]:
    return [edge + 1.0 for edge in PROFILE_EDGES_MM[:-1]]


def _band_centres() -> list[float]:
    return [edge + 0.025 for edge in BAND_EDGES_PER_MM[:-1]]


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
