"""The figures of an evaluation, from the headline to the tables by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from nnunet_difftumor.evaluation.realism import tables
from nnunet_difftumor.evaluation.realism.collection import (
    CONTRASTS,
    HETEROGENEITIES,
    IN_PLACE,
    NATIVE,
    TRANSPLANTS,
    Collection,
    select,
)
from nnunet_difftumor.evaluation.realism.measures.probes import ProbeResult
from nnunet_difftumor.evaluation.realism.measures.tumors import DIAMETER_BINS_MM
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tables import Reference
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.statistics.distributions import split_half_distance
from nnunet_difftumor.evaluation.statistics.intervals import NOT_MEASURED, Estimate, mean_interval
from nnunet_difftumor.evaluation.statistics.scales import DIFFERENCE, HIT_SHARE

PROBED = (making.GENERATED, making.NO_DIFFUSION, making.TEXTURED_FILL, making.COPY_PASTE)
SANITY = "real against real"
_HALVES = 400


@dataclass(frozen=True, eq=False)
class Probes:
    """Results of the two classifiers by method; `SANITY` has real patches on both sides."""

    two_sample: Mapping[str, ProbeResult | None] = field(default_factory=dict)
    rim: Mapping[str, ProbeResult | None] = field(default_factory=dict)

    def table(self, method: str) -> dict[str, Any]:
        """Areas under the curve of both, by name."""
        results = {"two_sample_auc": self.two_sample.get(method), "rim_probe_auc": self.rim.get(method)}
        return {name: _auc_table(result) if result else None for name, result in results.items()}


def reference_of(collection: Collection, window_hu: tuple[float, float], draws: int) -> Reference:
    """Take the real tumours of a collection as the reference (see `Reference`)."""
    real = collection.of(IN_PLACE, making.REAL)
    return Reference(tables.distribution_of(real, window_hu), tables.lowpass_of(real), window_hu, draws)


def summarize_methods(
    collection: Collection, reference: Reference, settings: EvaluationSettings, probes: Probes
) -> dict[str, Any]:
    """Summarise every method in place and transplanted.

    Returns:
        By method: `in_place`, `transplant` (radii of the headline only), each with `bins`, `transplant_by_radius`,
        `native`, `two_sample_auc`, `rim_probe_auc`.
    """
    result: dict[str, Any] = {}
    for method in making.METHODS:
        in_place, transplants = collection.of(IN_PLACE, method), collection.of(TRANSPLANTS, method)
        result[method] = {
            "in_place": _with_bins(in_place, in_place, reference),
            "transplant": _with_bins(_headline(transplants, settings), transplants, reference),
            "transplant_by_radius": {
                f"{radius:g} mm": tables.summarize_method(
                    select(transplants, transplants["radius_mm"] == radius), reference
                )
                for radius in settings.radii_mm
            },
            "native": tables.summarize_method(collection.of(NATIVE, method), reference),
            "ring_depth_transplant_hu": tables.edge_depth(transplants, reference.draws),
            "ring_depth_in_place_hu": tables.edge_depth(in_place, reference.draws),
            **probes.table(method),
        }
    return result


def with_real_row(methods: dict[str, Any], real: Mapping[str, Any]) -> dict[str, Any]:
    """Show the real tumours beside transplants as well, although nobody transplanted them.

    Args:
        methods: What `summarize_methods` returned.
        real: The entry `real` of the data set with real tumours.
    """
    return {**methods, making.REAL: {**methods[making.REAL], "transplant": real["in_place"]}}


def summarize_controls(collection: Collection, draws: int) -> dict[str, Any]:
    """Requested against achieved contrast and heterogeneity of a collection (see `summarize_control`)."""
    generated = collection.of(HETEROGENEITIES, making.GENERATED)
    return {
        "contrast": {
            method: tables.summarize_control(collection.of(CONTRASTS, method), "contrast_hu", draws)
            for method in (making.GENERATED, making.NO_DIFFUSION)
        },
        "heterogeneity": {making.GENERATED: tables.summarize_control(generated, "lowpass_sd_hu", draws)},
    }


def headline(
    collection: Collection,
    reference: Reference,
    settings: EvaluationSettings,
    methods: Mapping[str, Any],
    controls: Mapping[str, Any],
    training_means_hu: Sequence[float],
) -> dict[str, Any]:
    """The figures that the project's bars are about.

    Args:
        methods: What `summarize_methods` returned.
        controls: What `summarize_controls` returned.
        training_means_hu: Mean HU of training tumours, for a second range of plausible means; may be empty.
    """
    draws = reference.draws
    every = collection.of(TRANSPLANTS, making.GENERATED)
    generated = _headline(every, settings)
    real_means = collection.of(IN_PLACE, making.REAL)["mean_hu"].to_numpy(dtype=float)
    all_means = np.append(real_means, training_means_hu) if len(training_means_hu) else None
    contrast = controls["contrast"][making.GENERATED]
    auc = {name: methods[making.GENERATED][name] for name in ("two_sample_auc", "rim_probe_auc")}
    return {
        "in_mask_w1_hu": _entry(methods, making.GENERATED, "transplant", "in_mask_w1_hu"),
        "in_mask_w1_hu_in_place": _entry(methods, making.GENERATED, "in_place", "in_mask_w1_hu"),
        "autoencoder_w1_hu_in_place": _entry(methods, making.AUTOENCODER, "in_place", "in_mask_w1_hu"),
        "real_to_real_w1_hu": split_half_distance(
            reference.distribution, _HALVES, np.random.default_rng(settings.seed)
        ),
        "transplant_plausible_share": _plausible(generated, real_means, draws),
        "transplant_plausible_share_with_training": _plausible(generated, all_means, draws),
        "plausible_range_hu": _range(real_means),
        "plausible_range_with_training_hu": _range(all_means),
        "plausible_range_cases": len(real_means),
        "plausible_range_with_training_cases": None if all_means is None else len(all_means),
        "highpass_ratio": _entry(methods, making.GENERATED, "transplant", "highpass_ratio"),
        "highpass_ratio_no_residual": _entry(methods, making.NO_RESIDUAL, "transplant", "highpass_ratio"),
        "lowpass_ratio": _entry(methods, making.GENERATED, "transplant", "lowpass_ratio"),
        "lowpass_ratio_balls": _texture_ratio(generated, collection, "ball", settings),
        "lowpass_ratio_shrunken": _texture_ratio(generated, collection, "shrunken", settings),
        "lowpass_ratio_in_place": _entry(methods, making.GENERATED, "in_place", "lowpass_ratio"),
        "contrast_slope": contrast["slope"],
        "contrast_median_error_hu": contrast["median_error_hu"],
        "contrast_spearman": contrast["spearman"],
        "ring_depth_hu": methods[making.GENERATED]["ring_depth_transplant_hu"],
        "beyond_rim_hu": every["beyond_rim_hu"].max(),
        "volume_within_10_percent_share": (generated["volume_ratio"].dropna() - 1.0).abs().le(0.1).mean(),
        "visible_share": _entry(methods, making.GENERATED, "transplant", "is_visible"),
        "seed_diversity_hu": tables.mean_of(collection.diversity, "diversity_hu", DIFFERENCE, draws),
        **{name: table["pooled"] if table else NOT_MEASURED for name, table in auc.items()},
    }


def _with_bins(tumors: pd.DataFrame, every: pd.DataFrame, reference: Reference) -> dict[str, Any] | str:
    table = tables.summarize_method(tumors, reference)
    return {**table, "bins": tables.by_size(every, reference)} if isinstance(table, dict) else table


def _auc_table(result: ProbeResult) -> dict[str, Any]:
    bins = {tables.bin_name(*limits): limits for limits in DIAMETER_BINS_MM}
    return {
        "pooled": result.pooled_auc(),
        "within_patient": result.within_patient_auc(),
        "paired": result.paired_share(),
        "bins": {
            name: result.pooled_auc(limits) if result.has_tumor_of(limits) else tables.EMPTY
            for name, limits in bins.items()
        },
    }


def _entry(methods: Mapping[str, Any], method: str, setting: str, name: str) -> Estimate:
    table = methods[method][setting]
    return table[name] if isinstance(table, dict) else NOT_MEASURED


def _plausible(tumors: pd.DataFrame, means_hu: np.ndarray | None, draws: int) -> Estimate:
    limits_hu = _range(means_hu)
    known = tumors.dropna(subset="mean_hu")
    if limits_hu is None:
        return NOT_MEASURED
    low_hu, high_hu = limits_hu
    return mean_interval(known["mean_hu"].between(low_hu, high_hu), known["patient"], HIT_SHARE, draws=draws)


def _texture_ratio(tumors: pd.DataFrame, collection: Collection, kind: str, settings: EvaluationSettings) -> Estimate:
    own = select(collection.textures, collection.textures["kind"] == kind)
    return tables.ratio_to_real(tumors, tables.lowpass_of(_headline(own, settings)))


def _range(means_hu: np.ndarray | None) -> list[float] | None:
    return None if means_hu is None or not len(means_hu) else np.percentile(means_hu, [2.5, 97.5]).tolist()


def _headline(tumors: pd.DataFrame, settings: EvaluationSettings) -> pd.DataFrame:
    low_mm, high_mm = settings.headline_radii_mm
    return select(tumors, tumors["radius_mm"].between(low_mm, high_mm))
