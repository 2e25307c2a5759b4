"""The figures of an evaluation, from the headline to the tables by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.evaluation.realism import tables
from nnunet_difftumor.evaluation.realism.collection import Collection, MeasuredTumor
from nnunet_difftumor.evaluation.realism.measures.probes import ProbeResult, auc_or_none
from nnunet_difftumor.evaluation.realism.measures.tumors import DIAMETER_BINS_MM
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tables import Reference
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.statistics.distributions import (
    NOT_MEASURED,
    Interval,
    bootstrap,
    median_error,
    share_inside,
    slope,
    spearman,
    split_half_distance,
)

PROBED = (making.GENERATED, making.NO_DIFFUSION, making.TEXTURED_FILL, making.COPY_PASTE)
SANITY = "real against real"
_HALVES = 400


@dataclass(frozen=True, eq=False)
class Probes:
    """Results of the two classifiers by method; `SANITY` has real patches on both sides."""

    two_sample: Mapping[str, ProbeResult | None] = field(default_factory=dict)
    rim: Mapping[str, ProbeResult | None] = field(default_factory=dict)


def reference_of(collection: Collection, window_hu: tuple[float, float], draws: int) -> Reference:
    """Take the real tumours of a collection as the reference.

    Args:
        collection: Everything that was made.
        window_hu: Window of all values in HU.
        draws: Number of resamplings of an interval.
    """
    real = _of(collection.in_place, making.REAL)
    lowpass = {name: values[:, 0] for name, values in tables.by_patient(real, "lowpass_sd_hu").items()}
    return Reference(tables.distribution_of(real, window_hu), lowpass, window_hu, draws)


def summarize_methods(
    collection: Collection,
    reference: Reference,
    settings: EvaluationSettings,
    probes: Probes,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Summarise every method in place and transplanted.

    Args:
        collection: Everything that was made.
        reference: Real tumours to compare with.
        settings: Radii of the headline figures.

    Returns:
        By method: `in_place`, `transplant` (radii of the headline only), each with `bins`, `transplant_by_radius`,
        `native`, `two_sample_auc`, `rim_probe_auc`.
    """
    result: dict[str, Any] = {}
    for method in making.METHODS:
        in_place, transplants = _of(collection.in_place, method), _of(collection.transplants, method)
        table: dict[str, Any] = {
            "in_place": _with_bins(in_place, in_place, reference, rng),
            "transplant": _with_bins(_headline(transplants, settings), transplants, reference, rng),
            "transplant_by_radius": {
                f"{radius:g} mm": tables.summarize_method(_of_radius(transplants, radius), reference, rng)
                for radius in settings.radii_mm
            },
            "native": tables.summarize_method(_of(collection.native, method), reference, rng),
            "ring_depth_transplant_hu": tables.edge_depth(transplants, reference.draws, rng),
            "ring_depth_in_place_hu": tables.edge_depth(in_place, reference.draws, rng),
        }
        table["two_sample_auc"] = _auc_table(probes.two_sample.get(method), reference.draws, rng)
        table["rim_probe_auc"] = _auc_table(probes.rim.get(method), reference.draws, rng)
        result[method] = table
    return result


def with_real_row(methods: dict[str, Any], real: Mapping[str, Any]) -> dict[str, Any]:
    """Show the real tumours beside transplants as well, although nobody transplanted them.

    Args:
        methods: What `summarize_methods` returned.
        real: The entry `real` of the data set with real tumours.

    Returns:
        The same tables, with whole real tumours as the row `real` of the transplants.
    """
    return {**methods, making.REAL: {**methods[making.REAL], "transplant": real["in_place"]}}


def summarize_control(
    made: Sequence[MeasuredTumor], quantity: str, draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Compare what was requested with what was achieved, without any calibration.

    Args:
        made: Tumours of one method with requested looks.
        quantity: "contrast_hu", or "lowpass_sd_hu" for heterogeneity.

    Returns:
        Slope, median error in HU, Spearman correlation, and the mean achieved value by radius and request.
    """
    requested = "requested_contrast_hu" if quantity == "contrast_hu" else "requested_heterogeneity_hu"
    pairs = tables.by_patient(made, requested, quantity)
    return {
        "tumors": int(sum(len(rows) for rows in pairs.values())),
        "slope": bootstrap(pairs, slope, draws, rng),
        "median_error_hu": bootstrap(pairs, median_error, draws, rng),
        "spearman": bootstrap(pairs, spearman, draws, rng),
        "achieved_hu_by_radius": {
            f"{radius:g} mm": _achieved(_of_radius(made, radius), requested, quantity)
            for radius in sorted({tumor.made.place.spec.radius_mm for tumor in made})
        },
    }


def summarize_controls(collection: Collection, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Requested against achieved contrast and heterogeneity of a collection (see `summarize_control`)."""
    contrast = {
        method: summarize_control(_of(collection.contrasts, method), "contrast_hu", draws, rng)
        for method in (making.GENERATED, making.NO_DIFFUSION)
    }
    generated = _of(collection.heterogeneities, making.GENERATED)
    heterogeneity = {making.GENERATED: summarize_control(generated, "lowpass_sd_hu", draws, rng)}
    return {"contrast": contrast, "heterogeneity": heterogeneity}


def headline(
    collection: Collection,
    reference: Reference,
    settings: EvaluationSettings,
    methods: Mapping[str, Any],
    controls: Mapping[str, Any],
    training_means_hu: Sequence[float],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The figures that the project's bars are about.

    Args:
        collection: Everything that was made.
        reference: Real tumours to compare with.
        settings: Radii of the headline figures.
        methods: What `summarize_methods` returned.
        controls: What `summarize_controls` returned.
        training_means_hu: Mean HU of training tumours, for a second range of plausible means; may be empty.

    Returns:
        Intervals and numbers by name.
    """
    draws = reference.draws
    generated = _headline(_of(collection.transplants, making.GENERATED), settings)
    real_means = np.array([t.measures.mean_hu for t in _of(collection.in_place, making.REAL)])
    all_means = np.concatenate([real_means, np.asarray(training_means_hu, dtype=np.float64)])
    contrast = controls["contrast"][making.GENERATED]
    beyond = tables.by_patient(_of(collection.transplants, making.GENERATED), "beyond_rim_hu")
    diversity = {name: np.array(values) for name, values in collection.diversity.items() if values}
    return {
        "in_mask_w1_hu": _entry(methods, making.GENERATED, "transplant", "in_mask_w1_hu"),
        "in_mask_w1_hu_in_place": _entry(methods, making.GENERATED, "in_place", "in_mask_w1_hu"),
        "autoencoder_w1_hu_in_place": _entry(methods, making.AUTOENCODER, "in_place", "in_mask_w1_hu"),
        "real_to_real_w1_hu": split_half_distance(reference.distribution, _HALVES, rng),
        "transplant_plausible_share": _plausible(generated, real_means, draws, rng),
        "transplant_plausible_share_with_training": _plausible(generated, all_means, draws, rng)
        if len(training_means_hu)
        else NOT_MEASURED,
        "plausible_range_hu": _range(real_means),
        "plausible_range_with_training_hu": _range(all_means) if len(training_means_hu) else None,
        "plausible_range_cases": len(real_means),
        "plausible_range_with_training_cases": len(all_means) if len(training_means_hu) else None,
        "highpass_ratio": _entry(methods, making.GENERATED, "transplant", "highpass_ratio"),
        "highpass_ratio_no_residual": _entry(methods, making.NO_RESIDUAL, "transplant", "highpass_ratio"),
        "lowpass_ratio": _entry(methods, making.GENERATED, "transplant", "lowpass_ratio"),
        "lowpass_ratio_balls": _texture_ratio(generated, collection.balls, settings, draws, rng),
        "lowpass_ratio_shrunken": _texture_ratio(generated, collection.shrunken, settings, draws, rng),
        "lowpass_ratio_in_place": _entry(methods, making.GENERATED, "in_place", "lowpass_ratio"),
        "contrast_slope": contrast["slope"],
        "contrast_median_error_hu": contrast["median_error_hu"],
        "contrast_spearman": contrast["spearman"],
        "ring_depth_hu": methods[making.GENERATED]["ring_depth_transplant_hu"],
        "beyond_rim_hu": float(max((values.max() for values in beyond.values()), default=float("nan"))),
        "volume_within_10_percent_share": _within(generated),
        "visible_share": _entry(methods, making.GENERATED, "transplant", "is_visible"),
        "seed_diversity_hu": bootstrap(diversity, lambda values: float(values.mean()), draws, rng),
        "two_sample_auc": _auc_value(methods[making.GENERATED]["two_sample_auc"]),
        "rim_probe_auc": _auc_value(methods[making.GENERATED]["rim_probe_auc"]),
    }


def _with_bins(
    tumors: Sequence[MeasuredTumor], every: Sequence[MeasuredTumor], reference: Reference, rng: np.random.Generator
) -> dict[str, Any] | str:
    table = tables.summarize_method(tumors, reference, rng)
    return {**table, "bins": tables.by_size(every, reference, rng)} if isinstance(table, dict) else table


def _auc_table(result: ProbeResult | None, draws: int, rng: np.random.Generator) -> dict[str, Any] | None:
    if result is None:
        return None
    bins = {}
    for low, high in DIAMETER_BINS_MM:
        inside = (result.diameters_mm >= low) & (result.diameters_mm < high)
        name = tables.bin_name(low, high)
        bins[name] = result.pooled_auc(draws, rng, (low, high)) if inside.any() else tables.EMPTY
    return {
        "pooled": auc_or_none(result, draws, rng),
        "within_patient": result.within_patient_auc(draws, rng),
        "paired": result.paired_share(draws, rng),
        "bins": bins,
    }


def summarize_sanity(probes: Probes, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Areas under the curve where both sides are real; both should be 0.5."""
    return {
        "two_sample_auc": _auc_table(probes.two_sample.get(SANITY), draws, rng),
        "rim_probe_auc": _auc_table(probes.rim.get(SANITY), draws, rng),
    }


def _auc_value(table: dict[str, Any] | None) -> Interval:
    return NOT_MEASURED if table is None else table["pooled"]


def _entry(methods: Mapping[str, Any], method: str, setting: str, name: str) -> Interval:
    table = methods[method][setting]
    return table[name] if isinstance(table, dict) else NOT_MEASURED


def _plausible(
    tumors: Sequence[MeasuredTumor], means_hu: NDArray[np.floating], draws: int, rng: np.random.Generator
) -> Interval:
    values = {name: rows[:, 0] for name, rows in tables.by_patient(tumors, "mean_hu").items()}
    return bootstrap(values, lambda means: share_inside(means, means_hu), draws, rng)


def _texture_ratio(
    tumors: Sequence[MeasuredTumor],
    textures: Mapping[str, Sequence[tuple[float, float, float]]],
    settings: EvaluationSettings,
    draws: int,
    rng: np.random.Generator,
) -> Interval:
    low, high = settings.headline_radii_mm
    compared = {
        name: np.array([lowpass for radius, lowpass, _ in rows if low <= radius <= high])
        for name, rows in textures.items()
    }
    made = {name: rows[:, 0] for name, rows in tables.by_patient(tumors, "lowpass_sd_hu").items()}
    return tables.ratio_of_medians(made, compared, draws, rng)


def _achieved(made: Sequence[MeasuredTumor], requested: str, quantity: str) -> dict[str, float]:
    requests = sorted({float(getattr(tumor.measures, requested)) for tumor in made})
    return {
        f"{request:g} HU": float(
            np.nanmean([getattr(t.measures, quantity) for t in made if getattr(t.measures, requested) == request])
        )
        for request in requests
    }


def _range(means_hu: NDArray[np.floating]) -> list[float] | None:
    return [float(value) for value in np.percentile(means_hu, [2.5, 97.5])] if len(means_hu) else None


def _within(tumors: Sequence[MeasuredTumor]) -> float:
    ratios = np.array([tumor.measures.volume_ratio for tumor in tumors])
    return float(np.mean(np.abs(ratios - 1.0) <= 0.1)) if len(ratios) else float("nan")


def _of(tumors: Sequence[MeasuredTumor], method: str) -> list[MeasuredTumor]:
    return [tumor for tumor in tumors if tumor.made.method == method]


def _of_radius(tumors: Sequence[MeasuredTumor], radius_mm: float) -> list[MeasuredTumor]:
    return [tumor for tumor in tumors if tumor.made.place.spec.radius_mm == radius_mm]


def _headline(tumors: Sequence[MeasuredTumor], settings: EvaluationSettings) -> list[MeasuredTumor]:
    low, high = settings.headline_radii_mm
    return [tumor for tumor in tumors if low <= tumor.made.place.spec.radius_mm <= high]
