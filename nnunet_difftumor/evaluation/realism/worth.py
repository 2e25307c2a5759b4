"""Does the diffusion earn its place? Fills, diffusion and copy-paste at the same places with the same looks.

Each figure stands beside what groups of real tumours differ by, and beside the paired difference of diffusion and
textured fill in their distance from real tumours: negative where the diffusion is nearer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from nnunet_difftumor.evaluation.realism import plausible, tables
from nnunet_difftumor.evaluation.realism.collection import count_patients, of, select
from nnunet_difftumor.evaluation.realism.measures.probes import EVERY_SIZE_MM, SANITY, ProbeResult, Probes
from nnunet_difftumor.evaluation.realism.settings import HEADLINE_RADII_MM, EvaluationSettings
from nnunet_difftumor.evaluation.realism.text import show
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.making import IN_PLACE, TRANSPLANT
from nnunet_difftumor.evaluation.statistics import distributions
from nnunet_difftumor.evaluation.statistics.intervals import (
    NOT_MEASURED,
    Estimate,
    mean_interval,
    patient_mean_interval,
)
from nnunet_difftumor.evaluation.statistics.roc import area_difference
from nnunet_difftumor.evaluation.statistics.scales import DIFFERENCE, SHARE_DIFFERENCE
from nnunet_difftumor.support.files.atomic_files import written_whole

METHODS = {
    "flat fill": making.NO_DIFFUSION,
    "textured fill": making.TEXTURED_FILL,
    "diffusion": making.GENERATED,
    "copy-paste": making.COPY_PASTE,
}
SIZES_MM = {"all": EVERY_SIZE_MM, "<10 mm": (0.0, 10.0), "10-20 mm": (10.0, 20.0), ">=20 mm": (20.0, math.inf)}
BETTER, WORSE, ALIKE, UNKNOWN = "better", "worse", "no difference shown", "not measured"

PAIRED = "diffusion against textured fill"

_DIFFUSION, _FILL = making.GENERATED, making.TEXTURED_FILL
_HEADLINE_MM = (2.0 * HEADLINE_RADII_MM[0], float(np.nextafter(2.0 * HEADLINE_RADII_MM[1], math.inf)))
_HALVES = 400
_EACH_SIDE = 0.025  # how often an interval lies wholly on one side by chance


@dataclass(frozen=True, eq=False)
class Group:
    """Tumours of one size in place or transplanted.

    Attributes:
        made: Tumours of every method.
        real: Real tumours of the size; of every size where fewer than two patients have one.
        every_real: Real tumours of every size.
        has_size: `real` are of the size of the tumours that were made.
        draws: Number of resamplings of an interval.
    """

    made: pd.DataFrame
    real: pd.DataFrame
    every_real: pd.DataFrame
    has_size: bool
    draws: int

    @property
    def reference_hu(self) -> pd.Series:
        """Low-pass sd of the real tumours in HU, by patient."""
        return tables.by_patient(self.real, "lowpass_sd_hu")

    def by(self, method: str) -> pd.DataFrame:
        """Tumours of a method."""
        return select(self.made, self.made["method"] == method)


@dataclass(frozen=True, eq=False)
class Measure:
    """A figure of a method's tumours.

    Attributes:
        figure: Takes group and method.
        real: The same between real tumours. Takes the group.
        difference: How much farther the diffusion is from real tumours than the textured fill. Takes the group.
    """

    name: str
    decimals: int
    figure: Callable[[Group, str], Estimate]
    real: Callable[[Group], Estimate]
    difference: Callable[[Group], Estimate]


def compare(tumors: pd.DataFrame, probes: Probes, settings: EvaluationSettings) -> dict[str, Any]:
    """Compare the methods.

    Args:
        tumors: What `collect` returned.

    Returns:
        rows: A row for every measure and size with a figure: `measure`, `size`, `decimals`, `methods` (figures by
            name), `real_to_real`, `difference`, `verdict` on the diffusion, `tumors`, `patients`, `compared_with`.
        sentence: In what the diffusion is better than the textured fill, or worse.
    """
    rows = [
        *_rows(tumors, IN_PLACE, (_W1, _LOWPASS, _HIGHPASS), settings),
        *_rows(tumors, TRANSPLANT, (_W1, _LOWPASS, _HIGHPASS, _PLAUSIBLE), settings),
        *_probe_rows(probes),
    ]
    return {"rows": rows, "sentence": sentence(rows)}


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in what the diffusion is better than the textured fill by the paired intervals, and in what it is worse."""
    once = {(row["measure"], row["tumors"], row["difference"].value): row for row in reversed(rows)}  # "all" stays
    found = {verdict: [] for verdict in (BETTER, WORSE, ALIKE, UNKNOWN)}
    for row in reversed(once.values()):
        found[row["verdict"]].append(f"{row['measure']} ({'every size' if row['size'] == 'all' else row['size']})")
    compared = len(once) - len(found[UNKNOWN])
    better, worse = (", ".join(found[verdict]) for verdict in (BETTER, WORSE))
    return (
        f"The diffusion is better than the textured fill in{f': {better}' if better else ' nothing'}. "
        f"It is worse in{f': {worse}' if worse else ' nothing'}. "
        f"({compared} comparisons, of which {_EACH_SIDE * compared:.1f} would fall on either side by chance.)"
    )


def write_table(table: Mapping[str, Any], output: Path) -> None:
    """Write what `compare` returned, as plain values, into `worth.csv` and `worth.md`."""
    lines = [
        {
            **{key: row[key] for key in ("size", "measure")},
            "method": name,
            **figure,
            **{key: row[key] for key in ("tumors", "patients", "compared_with")},
        }
        for row in table["rows"]
        for name, figure in columns_of(row).items()
    ]
    heads = ["size", "measure", "method", "value", "low", "high", "tumors", "patients", "compared_with"]
    with written_whole(output / "worth.csv", overwrite=True) as temporary:
        pd.DataFrame(lines, columns=pd.Index(heads)).to_csv(temporary, index=False, float_format="%.4g")
    with written_whole(output / "worth.md", overwrite=True) as temporary:
        temporary.write_text("\n".join(_markdown(table)) + "\n", encoding="utf-8")


def by_size(table: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of what `compare` returned by size, none where there is no tumour of it."""
    return {size: [row for row in table["rows"] if row["size"] == size] for size in SIZES_MM}


def columns_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a row by heading."""
    return {**row["methods"], "real to real": row["real_to_real"], PAIRED: row["difference"]}


def _rows(
    tumors: pd.DataFrame, setting: str, measures: Sequence[Measure], settings: EvaluationSettings
) -> Iterator[dict[str, Any]]:
    every_real = of(tumors, IN_PLACE, making.REAL)
    for size, ends_mm in SIZES_MM.items():
        if size == "all" and setting == TRANSPLANT:
            ends_mm = _HEADLINE_MM
        made, real = (_of_size(each, ends_mm) for each in (of(tumors, setting), every_real))
        has_own = count_patients(real) >= 2
        has_size, draws = has_own or setting == IN_PLACE, settings.bootstrap_draws
        group = Group(made, real if has_own else every_real, every_real, has_size, draws)
        diffusion = group.by(_DIFFUSION)
        if diffusion.empty:
            continue
        for measure in measures:
            difference = measure.difference(group)
            yield {
                "measure": measure.name.format(setting=setting),
                "size": size,
                "decimals": measure.decimals,
                "methods": {name: measure.figure(group, method) for name, method in METHODS.items()},
                "real_to_real": measure.real(group),
                "difference": difference,
                "verdict": _verdict(difference),
                "tumors": len(diffusion),
                "patients": count_patients(diffusion),
                "compared_with": f"{len(group.real)} real tumours of {_said(size, setting, has_own=has_own)}, "
                f"{count_patients(group.real)} patients",
            }


def _probe_rows(probes: Probes) -> Iterator[dict[str, Any]]:
    for key, name in (("two_sample_auc", "two-sample classifier, AUC"), ("rim_probe_auc", "rim probe, AUC")):
        found = probes[key]
        diffusion, fill = (found.get(method) for method in (_DIFFUSION, _FILL))
        for size, ends_mm in SIZES_MM.items():
            if diffusion is None or not diffusion.patients_of(ends_mm):
                continue
            difference = _area_difference(diffusion, fill, ends_mm) if fill else NOT_MEASURED
            yield {
                "measure": f"{name}, in place",
                "size": size,
                "decimals": 2,
                "methods": {each: _auc_of(found.get(method), ends_mm) for each, method in METHODS.items()},
                "real_to_real": _auc_of(found.get(SANITY), ends_mm),
                "difference": difference,
                "verdict": _verdict(difference),
                "tumors": diffusion.tumors_of(ends_mm),
                "patients": diffusion.patients_of(ends_mm),
                "compared_with": "the real tumours in the same places",
            }


def _verdict(difference: Estimate) -> str:
    if not math.isfinite(difference.low):
        return UNKNOWN
    if difference.high < 0:
        return BETTER
    return WORSE if difference.low > 0 else ALIKE


def _of_size(tumors: pd.DataFrame, ends_mm: tuple[float, float]) -> pd.DataFrame:
    return select(tumors, (2.0 * tumors["radius_mm"]).between(*ends_mm, inclusive="left"))


def _said(size: str, setting: str, *, has_own: bool) -> str:
    if size == "all" and setting == TRANSPLANT:
        size = "10-30 mm"
    return size if has_own and size != "all" else "every size"


def _w1(group: Group, method: str) -> Estimate:
    return distributions.distance_to_real(*(tables.distribution_of(each) for each in (group.by(method), group.real)))


def _w1_real(group: Group) -> Estimate:
    real = tables.distribution_of(group.real)
    return distributions.split_half_distance(real, _HALVES, np.random.default_rng(0))


def _w1_difference(group: Group) -> Estimate:
    tumors = (group.by(_DIFFUSION), group.by(_FILL), group.real)
    return distributions.distance_difference(*(tables.distribution_of(each) for each in tumors))


def _lowpass(group: Group, method: str) -> Estimate:
    return _geometric_mean(_lowpass_logarithms(group, method))


def _lowpass_difference(group: Group) -> Estimate:
    if not group.has_size:
        return NOT_MEASURED  # a small tumour has less structure than a large one, nobody knows how much less
    return _nearer(*(_lowpass_logarithms(group, method) for method in (_DIFFUSION, _FILL)))


def _lowpass_logarithms(group: Group, method: str) -> pd.Series:
    """Log ratio to the real tumours by patient; transplants of a patient without any: to the others' median."""
    tumors, reference_hu = group.by(method), group.reference_hu
    real_hu = tables.real_lowpass_hu(tumors, reference_hu).fillna(reference_hu.median())
    return _logarithms(tumors.assign(ratio=tumors["lowpass_sd_hu"] / real_hu), "ratio")


def _halves_ratio(group: Group) -> Estimate:
    """Ratio of the medians of random halves of the patients, between the percentiles of the splits."""
    values, rng = group.reference_hu.dropna().to_numpy(dtype=float), np.random.default_rng(0)
    if len(values) < 2:
        return NOT_MEASURED
    orders = (rng.permutation(values) for _ in range(_HALVES))
    halves = (np.split(order, [len(values) // 2]) for order in orders)
    ratios = [float(np.median(first) / np.median(second)) for first, second in halves]
    low, high = np.percentile(ratios, [2.5, 97.5]).tolist()
    return Estimate(float(np.median(ratios)), low, high, "percentiles of the splits")


def _highpass(group: Group, method: str) -> Estimate:
    return _geometric_mean(_logarithms(group.by(method), "highpass_ratio"))


def _highpass_real(group: Group) -> Estimate:
    return _geometric_mean(_logarithms(group.real, "highpass_ratio"))


def _highpass_difference(group: Group) -> Estimate:
    """Difference in |log ratio| to the real tumours."""
    real = math.log(_highpass_real(group).value)
    return _nearer(*(_logarithms(group.by(method), "highpass_ratio") - real for method in (_DIFFUSION, _FILL)))


def _geometric_mean(logarithms: pd.Series) -> Estimate:
    """Geometric mean of patients' ratios, whose logarithms are given."""
    found = mean_interval(logarithms, np.arange(len(logarithms)), DIFFERENCE)
    value, low, high = np.exp([found.value, found.low, found.high]).tolist()
    return Estimate(value, low, high, found.method)


def _logarithms(tumors: pd.DataFrame, name: str) -> pd.Series:
    """Mean logarithm of a ratio over each patient's tumours."""
    logarithm = tumors[name].astype(float).map(lambda ratio: math.log(ratio) if ratio > 0 else math.nan)
    return cast(pd.Series, tumors.assign(logarithm=logarithm).groupby("patient")["logarithm"].mean())


def _nearer(made: pd.Series, other: pd.Series) -> Estimate:
    """Difference of |mean| of patients' values; with the signs held, each patient adds a part (as in W1)."""
    both = pd.concat([made, other], axis=1).dropna().to_numpy(dtype=float)
    if len(both) < 2:
        return NOT_MEASURED
    return mean_interval(both @ (np.sign(both.mean(axis=0)) * [1.0, -1.0]), np.arange(len(both)), DIFFERENCE)


def _plausible(group: Group, method: str) -> Estimate:
    return plausible.share_within(group.by(method), plausible.range_of(group.every_real), group.draws)


def _plausible_real(group: Group) -> Estimate:
    return plausible.share_of_real(group.every_real, group.draws)


def _plausible_difference(group: Group) -> Estimate:
    """Difference in the share of means outside the range, paired by place."""
    limits_hu = plausible.range_of(group.every_real)
    if limits_hu is None:
        return NOT_MEASURED
    keys = ["patient", "case", "place", "draw"]
    sides = (group.by(method).dropna(subset="mean_hu") for method in (_DIFFUSION, _FILL))
    insides = [
        side[keys].assign(inside=plausible.is_within(side["mean_hu"], limits_hu).astype(float)) for side in sides
    ]
    both = insides[0].merge(insides[1], on=keys, suffixes=("", "_fill"))
    return patient_mean_interval(both["inside_fill"] - both["inside"], both["patient"], SHARE_DIFFERENCE)


def _auc_of(result: ProbeResult | None, ends_mm: tuple[float, float]) -> Estimate:
    return result.pooled_auc(ends_mm) if result and result.patients_of(ends_mm) else NOT_MEASURED


def _area_difference(made: ProbeResult, other: ProbeResult, ends_mm: tuple[float, float]) -> Estimate:
    patients = sorted({*made.patients, *other.patients})
    areas = [result.area(ends_mm, patients) for result in (made, other)]
    return area_difference(areas[0], areas[1])[0] if areas[0] and areas[1] else NOT_MEASURED


def _markdown(table: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table in Markdown, by size."""
    yield f"{table['sentence']}\n"
    for size, rows in by_size(table).items():
        if not rows:
            yield f"No tumour of {size}.\n"
            continue
        yield f"| {'every size' if size == 'all' else size} | {' | '.join(columns_of(rows[0]))} | patients |"
        yield "|---" * (len(columns_of(rows[0])) + 2) + "|"
        for row in rows:
            cells = [show(figure, row["decimals"]) for figure in columns_of(row).values()]
            yield f"| {' | '.join([row['measure'], *cells, str(row['patients'])])} |"
        yield ""


_W1 = Measure("W1 of HU, {setting}, HU", 1, _w1, _w1_real, _w1_difference)
_LOWPASS = Measure("low-pass sd over real, {setting}", 2, _lowpass, _halves_ratio, _lowpass_difference)
_HIGHPASS = Measure("high-pass sd over the host's, {setting}", 2, _highpass, _highpass_real, _highpass_difference)
_PLAUSIBLE = Measure("plausible means, {setting}", 2, _plausible, _plausible_real, _plausible_difference)
