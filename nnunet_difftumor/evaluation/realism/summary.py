"""The figures of an evaluation, from the headline to the tables by size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from nnunet_difftumor.evaluation.realism import collection, plausible, tables
from nnunet_difftumor.evaluation.realism.collection import of, select
from nnunet_difftumor.evaluation.realism.measures.probes import NO_PROBES, SANITY, ProbeResult, Probes
from nnunet_difftumor.evaluation.realism.measures.tumors import DIAMETER_BINS_MM
from nnunet_difftumor.evaluation.realism.settings import HEADLINE_RADII_MM, EvaluationSettings
from nnunet_difftumor.evaluation.realism.tables import Reference
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.making import IN_PLACE, TRANSPLANT
from nnunet_difftumor.evaluation.statistics.distributions import split_half_distance
from nnunet_difftumor.evaluation.statistics.intervals import NOT_MEASURED, Estimate
from nnunet_difftumor.evaluation.statistics.scales import DIFFERENCE

_HALVES = 400
_ENOUGH_CONTRAST_HU = 15.0


def summarize(
    tumors: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    probes: Probes,
    settings: EvaluationSettings,
    training_means: pd.DataFrame,
) -> dict[str, Any]:
    """Take the figures of an evaluation.

    Args:
        tumors: What `collect` returned.
        others: The same of the other organs, by name.
        training_means: Patient and mean HU of training tumours, for a second range of plausible means; may be empty.

    Returns:
        The figures that the project's aims are about, by name; `methods`, `controls`, `sanity`, `shams` and
        `other_organ`.
    """
    draws = settings.bootstrap_draws
    real = of(tumors, IN_PLACE, making.REAL)
    reference = Reference(tables.distribution_of(real), tables.by_patient(real, "lowpass_sd_hu"), draws)
    methods = _summarize_methods(tumors, reference, settings, probes)
    other_organ = {
        name: {
            "methods": _summarize_methods(other, reference, settings, NO_PROBES),
            "controls": _summarize_controls(other, draws),
            "without_place": without_place(other),
        }
        for name, other in others.items()
    }
    for each in (methods, *(other["methods"] for other in other_organ.values())):
        each[making.REAL]["transplant"] = methods[making.REAL]["in_place"]  # shown beside transplants
    controls = _summarize_controls(tumors, draws)
    return {
        **_headline(tumors, reference, settings, methods, controls),
        **_plausibility(tumors, training_means, draws),
        **_shams(tumors, probes, draws),
        "methods": methods,
        "controls": controls,
        "sanity": _probe_tables(probes, SANITY),
        "other_organ": other_organ,
    }


def without_place(tumors: pd.DataFrame) -> dict[str, int]:
    """How many transplants had no place, by radius."""
    radii_mm = of(tumors, collection.WITHOUT_PLACE)["radius_mm"].value_counts(sort=False)
    return {f"{radius_mm:g} mm": int(count) for radius_mm, count in radii_mm.items()}


def _summarize_methods(
    tumors: pd.DataFrame, reference: Reference, settings: EvaluationSettings, probes: Probes
) -> dict[str, Any]:
    """Every method in place and transplanted (`transplant`: radii of the headline only), by size, on either grid."""
    result: dict[str, Any] = {}
    for method in making.METHODS:
        in_place, transplants = of(tumors, IN_PLACE, method), of(tumors, TRANSPLANT, method)
        of_radii = {radius: select(transplants, transplants["radius_mm"] == radius) for radius in settings.radii_mm}
        result[method] = {
            "in_place": tables.summarize_sizes(in_place, in_place, reference),
            "transplant": tables.summarize_sizes(_of_headline(transplants), transplants, reference),
            "transplant_by_radius": {
                f"{radius:g} mm": tables.summarize_method(own, reference) for radius, own in of_radii.items()
            },
            "native": tables.summarize_method(of(tumors, collection.NATIVE, method), reference),
            "ring_depth_transplant_hu": tables.edge_depth(transplants, reference.draws),
            "ring_depth_in_place_hu": tables.edge_depth(in_place, reference.draws),
            **_probe_tables(probes, method),
        }
    return result


def _summarize_controls(tumors: pd.DataFrame, draws: int) -> dict[str, Any]:
    """Requested against achieved contrast and heterogeneity."""
    generated = of(tumors, collection.HETEROGENEITIES, making.GENERATED)
    return {
        "contrast": {
            method: tables.summarize_control(of(tumors, collection.CONTRASTS, method), "depth_hu", draws)
            for method in (making.GENERATED, making.NO_DIFFUSION)
        },
        "heterogeneity": {making.GENERATED: tables.summarize_control(generated, "lowpass_sd_hu", draws)},
    }


def _headline(
    tumors: pd.DataFrame,
    reference: Reference,
    settings: EvaluationSettings,
    methods: Mapping[str, Any],
    controls: Mapping[str, Any],
) -> dict[str, Any]:
    draws, rng = reference.draws, np.random.default_rng(settings.seed)
    every = of(tumors, TRANSPLANT, making.GENERATED)
    generated = _of_headline(every)
    contrast = controls["contrast"][making.GENERATED]
    auc = {name: methods[making.GENERATED][name] for name in ("two_sample_auc", "rim_probe_auc")}

    def entry(setting: str, name: str, method: str = making.GENERATED) -> Estimate:
        table = methods[method][setting]
        return table[name] if isinstance(table, dict) else NOT_MEASURED

    def over_parts(part: str) -> Estimate:
        parts = _of_headline(of(tumors, collection.PARTS, part))
        return tables.ratio_to_real(generated, tables.by_patient(parts, "lowpass_sd_hu"))

    return {
        "in_mask_w1_hu": entry("transplant", "in_mask_w1_hu"),
        "in_mask_w1_hu_in_place": entry("in_place", "in_mask_w1_hu"),
        "autoencoder_w1_hu_in_place": entry("in_place", "in_mask_w1_hu", making.AUTOENCODER),
        "real_to_real_w1_hu": split_half_distance(reference.distribution, _HALVES, rng),
        "highpass_ratio": entry("transplant", "highpass_ratio"),
        "highpass_ratio_no_residual": entry("transplant", "highpass_ratio", making.NO_RESIDUAL),
        "lowpass_ratio": entry("transplant", "lowpass_ratio"),
        "lowpass_ratio_balls": over_parts(collection.BALL),
        "lowpass_ratio_shrunken": over_parts(collection.SHRUNKEN),
        "lowpass_ratio_in_place": entry("in_place", "lowpass_ratio"),
        "depth_reached": _depth_reached(generated, draws),
        "contrast_slope": contrast["slope"],
        "contrast_median_error_hu": contrast["median_error_hu"],
        "contrast_spearman": contrast["spearman"],
        "ring_depth_hu": methods[making.GENERATED]["ring_depth_transplant_hu"],
        "beyond_rim_hu": every["beyond_rim_hu"].max(),
        "volume_within_10_percent_share": (generated["volume_ratio"].dropna() - 1.0).abs().le(0.1).mean(),
        "visible_share": entry("transplant", "is_visible"),
        "seed_diversity_hu": tables.mean_of(of(tumors, collection.SEEDS), "diversity_hu", DIFFERENCE, draws),
        **{name: table["pooled"] if table else NOT_MEASURED for name, table in auc.items()},
    }


def _plausibility(tumors: pd.DataFrame, training_means: pd.DataFrame, draws: int) -> dict[str, Any]:
    """Shares of transplants with a mean in the range of real ones, and the spread of their means over that of these."""
    generated = _of_headline(of(tumors, TRANSPLANT, making.GENERATED))
    real = of(tumors, IN_PLACE, making.REAL)
    found: dict[str, Any] = {"mean_spread_ratio": plausible.spread_ratio(generated, real)}
    for name, added in (("", training_means[:0]), ("_with_training", training_means)):
        means = cast(pd.DataFrame, pd.concat([real[["patient", "mean_hu"]], added]))
        is_asked = not name or len(training_means) > 0
        limits_hu = plausible.range_of(means) if is_asked else None
        found[f"transplant_plausible_share{name}"] = plausible.share_within(generated, limits_hu, draws)
        found[f"plausible_range{name}_hu"] = limits_hu
        found[f"plausible_range{name}_patients"] = collection.count_patients(means) if is_asked else None
    return found


def _depth_reached(tumors: pd.DataFrame, draws: int) -> Estimate:
    """Achieved over requested contrast of tumours of which at least 15 HU were asked."""
    asked = select(tumors, tumors["requested_contrast_hu"].abs() >= _ENOUGH_CONTRAST_HU)
    return tables.mean_of(
        asked.assign(ratio=asked["depth_hu"] / asked["requested_contrast_hu"]), "ratio", DIFFERENCE, draws
    )


def _shams(tumors: pd.DataFrame, probes: Probes, draws: int) -> dict[str, Any]:
    """What tells tissue that went the way of a tumour, without one, from untouched tissue."""
    found: dict[str, Any] = {"shams": {}}
    for kind, prefix in ((making.SHAM, "sham"), (making.REDRAWN, "redrawn_sham")):
        shams, aucs = collection.seen(tumors, collection.SHAMS, kind), _probe_tables(probes, kind)
        change_hu = shams["made"].map(lambda sham: float(np.abs(sham.image_hu - sham.host_hu)[sham.label].mean()))
        mean_hu = tables.mean_of(shams.assign(change_hu=change_hu), "change_hu", DIFFERENCE, draws)
        found["shams"][kind] = {**aucs, "shams": len(shams), "mean_change_hu": mean_hu}
        found |= {f"{prefix}_{name}": auc["pooled"] if auc else NOT_MEASURED for name, auc in aucs.items()}
    return found


def _probe_tables(probes: Probes, method: str) -> dict[str, Any]:
    """Areas under the curve of both classifiers, by name."""
    return {name: _auc_table(results[method]) if method in results else None for name, results in probes.items()}


def _auc_table(result: ProbeResult) -> dict[str, Any]:
    return {
        "pooled": result.pooled_auc(),
        "within_patient": result.within_patient_auc(),
        "paired": result.paired_share(),
        "bins": {
            name: result.pooled_auc(ends_mm) if result.patients_of(ends_mm) else tables.EMPTY
            for name, ends_mm in DIAMETER_BINS_MM.items()
        },
    }


def _of_headline(tumors: pd.DataFrame) -> pd.DataFrame:
    return select(tumors, tumors["radius_mm"].between(*HEADLINE_RADII_MM))
