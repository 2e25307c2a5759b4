"""Figures with intervals for every method: all tumours together and by size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.evaluation.realism.collection import MeasuredTumor
from nnunet_difftumor.evaluation.realism.measures.tumors import DIAMETER_BINS_MM
from nnunet_difftumor.evaluation.statistics.distributions import (
    NOT_MEASURED,
    HuDistribution,
    Interval,
    bootstrap,
    distance_to_real,
    measure_distribution,
)

EMPTY = "empty"
MEANS = ("mean_hu", "sd_hu", "is_visible")
MEDIANS = (
    "lowpass_sd_hu",
    "highpass_sd_hu",
    "host_highpass_sd_hu",
    "highpass_ratio",
    "contrast_hu",
    "cnr",
    "ring_depth_hu",
    "volume_ratio",
    "inside_share",
)


@dataclass(frozen=True, eq=False)
class Reference:
    """What made tumours are compared with.

    Attributes:
        distribution: HU in real tumours.
        lowpass_by_patient: Low-pass sd of whole real tumours in HU, by patient.
        window_hu: Window of all values in HU.
        draws: Number of resamplings of an interval.
    """

    distribution: HuDistribution
    lowpass_by_patient: dict[str, NDArray[np.floating]]
    window_hu: tuple[float, float]
    draws: int


def summarize_method(
    tumors: Sequence[MeasuredTumor], reference: Reference, rng: np.random.Generator
) -> dict[str, Any] | str:
    """Summarise tumours of one method.

    Args:
        tumors: Tumours; none gives "empty".
        reference: Real tumours to compare with.

    Returns:
        Number of tumours and patients, and an `Interval` for every measure.
    """
    if not tumors:
        return EMPTY
    table: dict[str, Any] = {
        "tumors": len(tumors),
        "patients": len({tumor.measures.patient for tumor in tumors}),
    }
    for names, statistic in ((MEANS, _mean), (MEDIANS, _median)):
        for name in names:
            table[name] = bootstrap(_column(tumors, name), statistic, reference.draws, rng)
    table["in_mask_w1_hu"] = distance_to_real(
        distribution_of(tumors, reference.window_hu), reference.distribution, reference.draws, rng
    )
    table["lowpass_ratio"] = ratio_of_medians(
        _column(tumors, "lowpass_sd_hu"), reference.lowpass_by_patient, reference.draws, rng
    )
    for name in ("band_hu2", "profile_hu", "deviation_hu"):
        rows = np.array([getattr(tumor.measures, name) for tumor in tumors])
        table[name] = [_mean(column) for column in rows.T]
    return table


def by_size(
    tumors: Sequence[MeasuredTumor], reference: Reference, rng: np.random.Generator
) -> dict[str, dict[str, Any] | str]:
    """Summarise tumours in bins of their diameter; empty bins say so.

    Args:
        reference: Real tumours to compare with.

    Returns:
        A summary or "empty" by bin.
    """
    return {
        bin_name(low, high): summarize_method(
            [tumor for tumor in tumors if low <= tumor.measures.diameter_mm < high], reference, rng
        )
        for low, high in DIAMETER_BINS_MM
    }


def bin_name(low_mm: float, high_mm: float) -> str:
    """Name of a bin of diameters: "<10 mm", "10-20 mm", ">=50 mm"."""
    if low_mm == 0.0:
        return f"<{high_mm:g} mm"
    return f">={low_mm:g} mm" if math.isinf(high_mm) else f"{low_mm:g}-{high_mm:g} mm"


def distribution_of(tumors: Sequence[MeasuredTumor], window_hu: tuple[float, float]) -> HuDistribution:
    """Distribution of HU inside the labels of tumours, every patient weighing the same."""
    by_patient: dict[str, list[NDArray[np.floating]]] = {}
    for tumor in tumors:
        values = tumor.made.image_hu[tumor.made.place.label]
        by_patient.setdefault(tumor.measures.patient, []).append(values)
    return measure_distribution(by_patient, window_hu)


def ratio_of_medians(
    above: dict[str, NDArray[np.floating]],
    below: dict[str, NDArray[np.floating]],
    draws: int,
    rng: np.random.Generator,
) -> Interval:
    """Median of one group over the median of another, patients of both resampled together."""
    marked = {
        name: np.concatenate(
            [
                np.stack([np.full(len(part), kind), part], axis=1)
                for kind, part in ((0.0, above.get(name, np.empty(0))), (1.0, below.get(name, np.empty(0))))
            ]
        )
        for name in {**above, **below}
    }

    def ratio(rows: NDArray[np.floating]) -> float:
        top, bottom = _median(rows[rows[:, 0] == 0.0, 1]), _median(rows[rows[:, 0] == 1.0, 1])
        return top / bottom if bottom > 0 else math.nan

    return bootstrap(marked, ratio, draws, rng) if marked else NOT_MEASURED


def edge_depth(tumors: Sequence[MeasuredTumor], draws: int, rng: np.random.Generator) -> Interval:
    """Depth of a dark ring: the lowest of the mean shells of the outermost 6 mm inside, minus the core.

    Only tumours darker than their surroundings with a core deeper than 6 mm count; shells are averaged over
    the tumours before the lowest one is taken, so that noise makes no ring.

    Returns:
        Depth in HU; negative for a dark ring.
    """
    by_patient: dict[str, list[tuple[float, ...]]] = {}
    for tumor in tumors:
        shells = tumor.measures.edge_minus_core_hu
        if tumor.measures.contrast_hu < 0 and all(math.isfinite(value) for value in shells):
            by_patient.setdefault(tumor.measures.patient, []).append(shells)
    arrays = {name: np.array(rows) for name, rows in by_patient.items()}
    return bootstrap(arrays, lambda rows: float(rows.mean(axis=0).min()), draws, rng)


def by_patient(tumors: Sequence[MeasuredTumor], *names: str) -> dict[str, NDArray[np.floating]]:
    """Measures of tumours by patient, rows with a missing value left out. Shapes (N_patient, names)."""
    rows: dict[str, list[list[float]]] = {}
    for tumor in tumors:
        values = [float(getattr(tumor.measures, name)) for name in names]
        if all(math.isfinite(value) for value in values):
            rows.setdefault(tumor.measures.patient, []).append(values)
    return {name: np.array(values) for name, values in rows.items()}


def plain(value: Any) -> Any:
    """Turn a summary into values for JSON: intervals into mappings, NaN into None."""
    if isinstance(value, Interval):
        return value.to_json()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _column(tumors: Sequence[MeasuredTumor], name: str) -> dict[str, NDArray[np.floating]]:
    return {patient: values[:, 0] for patient, values in by_patient(tumors, name).items()}


def _mean(values: NDArray[np.floating]) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _median(values: NDArray[np.floating]) -> float:
    return float(np.median(values)) if len(values) else math.nan
