"""Figures with intervals for groups of tumours, of which each is a row of one table (see `measure_tumor`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_difftumor.evaluation.realism.collection import select
from nnunet_difftumor.evaluation.realism.measures import tumors as measures
from nnunet_difftumor.evaluation.statistics.distributions import HuDistribution, distance_to_real, measure_distribution
from nnunet_difftumor.evaluation.statistics.intervals import (
    NOT_MEASURED,
    Estimate,
    mean_interval,
    median_interval,
    patient_mean_interval,
)
from nnunet_difftumor.evaluation.statistics.scales import DIFFERENCE, SHARE, SHARE_DIFFERENCE, Scale

EMPTY = "empty"
MEANS = ("mean_hu", "sd_hu", "cap_rim_curvature", "cut_vessels_per_cm2")
MEDIANS = (
    *("lowpass_sd_hu", "highpass_sd_hu", "host_highpass_sd_hu", "highpass_ratio", "contrast_hu", "cnr"),
    *("ring_depth_hu", "volume_ratio", "inside_share"),
)


@dataclass(frozen=True, eq=False)
class Reference:
    """What made tumours are compared with.

    Attributes:
        distribution: HU in real tumours.
        lowpass_hu: Low-pass sd of the real tumours in HU, by patient.
        draws: Number of resamplings of an interval.
    """

    distribution: HuDistribution
    lowpass_hu: pd.Series
    draws: int


def summarize_method(tumors: pd.DataFrame, reference: Reference) -> dict[str, Any] | str:
    """Summarise tumours of one method.

    Returns:
        Number of tumours, left out or not, and patients, and an `Estimate` for every measure; "empty" without rows.
    """
    if tumors.empty:
        return EMPTY
    return {
        "tumors": len(tumors),
        "patients": tumors["patient"].nunique(),
        **{name: mean_of(tumors, name, DIFFERENCE, reference.draws) for name in MEANS},
        "is_visible": mean_of(tumors, "is_visible", SHARE, reference.draws),
        **{name: median_of(tumors, name) for name in MEDIANS},
        "in_mask_w1_hu": distance_to_real(distribution_of(tumors), reference.distribution),
        "lowpass_ratio": ratio_to_real(tumors, reference.lowpass_hu),
        **{name: tumors[columns].mean().tolist() for name, columns in measures.CURVES.items()},
    }


def summarize_sizes(tumors: pd.DataFrame, every: pd.DataFrame, reference: Reference) -> dict[str, Any] | str:
    """Summarise tumours (see `summarize_method`), and `every` one of their method in `bins` of the diameter."""
    table = summarize_method(tumors, reference)
    if isinstance(table, dict):
        bins_mm, diameter_mm = measures.DIAMETER_BINS_MM.items(), every["diameter_mm"]
        of_bins = {name: select(every, diameter_mm.between(*ends_mm, inclusive="left")) for name, ends_mm in bins_mm}
        table["bins"] = {name: summarize_method(own, reference) for name, own in of_bins.items()}
    return table


def distribution_of(tumors: pd.DataFrame) -> HuDistribution:
    """Distribution of HU inside the labels of tumours, limited to their window, every patient weighing the same."""
    made = tumors["made"].dropna()
    inside_hu = made.map(lambda tumor: tumor.image_hu[tumor.label]).groupby(tumors["patient"], sort=False).agg(list)
    return measure_distribution(inside_hu.to_dict(), made.iloc[0].scan.window_hu if len(made) else (0.0, 0.0))


def mean_of(tumors: pd.DataFrame, name: str, scale: Scale, draws: int) -> Estimate:
    """Mean over the patients of the mean of a measure over each one's tumours."""
    return patient_mean_interval(tumors[name], tumors["patient"], scale, draws=draws)


def median_of(tumors: pd.DataFrame, name: str) -> Estimate:
    """Median over the patients of each one's median of a measure."""
    return median_interval(by_patient(tumors, name))


def by_patient(tumors: pd.DataFrame, name: str) -> pd.Series:
    """Median of a measure over each patient's tumours."""
    return cast(pd.Series, tumors.groupby("patient")[name].median())


def ratio_to_real(tumors: pd.DataFrame, real_hu: pd.Series) -> Estimate:
    """Median over the patients of the low-pass sd of tumours over that of the real one in the same mask.

    Transplants compare with their patient's real ones, in HU by patient. Where no patient has both, it is the ratio of
    the two medians, without an interval.
    """
    paired = by_patient(tumors.assign(ratio=tumors["lowpass_sd_hu"] / real_lowpass_hu(tumors, real_hu)), "ratio")
    if bool(paired.notna().any()):
        return median_interval(paired)
    made_hu = by_patient(tumors, "lowpass_sd_hu")
    return replace(NOT_MEASURED, value=float(made_hu.median() / real_hu.median()), method="no patient has both")


def real_lowpass_hu(tumors: pd.DataFrame, real_hu: pd.Series) -> pd.Series:
    """Low-pass sd in HU of the real tumour in the same mask, or of the patient's by patient, for each tumour."""
    of_patient = pd.Series(real_hu.reindex(tumors["patient"]).to_numpy(), index=tumors.index)
    return cast(pd.Series, tumors["real_lowpass_sd_hu"].astype(float).fillna(of_patient))


def edge_depth(tumors: pd.DataFrame, draws: int) -> Estimate:
    """Depth of a dark ring: the lowest of the mean shells of the outermost 6 mm inside, minus the core.

    Only tumours darker than their surroundings with a core deeper than 6 mm count; shells are averaged over
    the tumours before the lowest one is taken, so that noise makes no ring.

    Returns:
        Depth in HU; negative for a dark ring.
    """
    outermost = measures.PROFILE_COLUMNS[1:4]
    dark = select(tumors, tumors["contrast_hu"] < 0).dropna(subset=["centre_minus_ring_hu", *outermost])
    if dark.empty:
        return NOT_MEASURED
    shells_hu = dark[outermost].sub(dark["centre_minus_ring_hu"], axis=0)
    return mean_of(dark.assign(depth_hu=shells_hu[shells_hu.mean().idxmin()]), "depth_hu", DIFFERENCE, draws)


def summarize_control(tumors: pd.DataFrame, quantity: str, draws: int) -> dict[str, Any]:
    """Compare what was requested with what was achieved.

    Args:
        tumors: Tumours of one method with requested looks.
        quantity: "depth_hu", or "lowpass_sd_hu" for heterogeneity.

    Returns:
        Means over the patients of slope and Spearman correlation, median error in HU, and the mean achieved value by
        radius and request.
    """
    asked = "requested_contrast_hu" if quantity == "depth_hu" else "requested_heterogeneity_hu"
    pairs = tumors.dropna(subset=[asked, quantity])
    varied = [
        own[[asked, quantity]].to_numpy(dtype=float).T
        for _, own in pairs.groupby("patient")
        if all(own[name].nunique() > 1 for name in (asked, quantity))
    ]
    slopes: list[Any] = [stats.linregress(*own)[0] for own in varied]
    correlations: list[Any] = [stats.spearmanr(*own)[0] for own in varied]
    achieved = cast(pd.Series, tumors.groupby(["radius_mm", asked])[quantity].mean())
    by_radius: dict[str, dict[str, float]] = {}
    for (radius, request), mean in cast(dict[tuple[float, float], float], achieved.to_dict()).items():
        by_radius.setdefault(f"{radius:g} mm", {})[f"{request:g} HU"] = mean
    return {
        "tumors": len(pairs),
        "slope": mean_interval(slopes, range(len(varied)), DIFFERENCE, draws=draws),
        "median_error_hu": median_of(pairs.assign(error_hu=(pairs[quantity] - pairs[asked]).abs()), "error_hu"),
        "spearman": mean_interval(correlations, range(len(varied)), SHARE_DIFFERENCE, draws=draws),
        "achieved_hu_by_radius": by_radius,
    }


def plain(value: Any) -> Any:
    """Turn a summary into values for JSON: estimates into mappings, NaN into None."""
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
