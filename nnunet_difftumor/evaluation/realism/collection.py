"""All tumours of an evaluation, made scan by scan and measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from tqdm import tqdm

from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.evaluation.realism.measures.tumors import FILE_COLUMNS
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import tumors_of_a_scan as experiments
from nnunet_difftumor.evaluation.realism.tumors.making import GENERATED, NO_DIFFUSION
from nnunet_difftumor.evaluation.realism.tumors.places import find_places
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, read_scan
from nnunet_difftumor.evaluation.realism.tumors.tumors_of_a_scan import Row, Sources
from nnunet_difftumor.support.files.atomic_files import written_whole

IN_PLACE, TRANSPLANTS, NATIVE = "in place", "transplant", "transplant, native grid"
CONTRASTS, HETEROGENEITIES = "requested contrast", "requested heterogeneity"


@dataclass(frozen=True, eq=False)
class Collection:
    """Everything that was made of a group of scans.

    Attributes:
        tumors: One row for each tumour (see `measure_tumor`), with its `experiment`. Transplants on the scans' own
            grids are of the experiment "transplant, native grid".
        textures: Low-pass sd of parts of real tumours: `kind` ("ball" or "shrunken"), `patient`, `radius_mm` and
            `lowpass_sd_hu`.
        diversity: `diversity_hu`, the difference between seeds, by `patient`.
        failed: Transplants without a place by radius.
    """

    tumors: pd.DataFrame
    textures: pd.DataFrame
    diversity: pd.DataFrame
    failed: Counter[str] = field(default_factory=Counter)

    def of(self, experiment: str, method: str | None = None) -> pd.DataFrame:
        """Rows of an experiment, and of a method."""
        rows = select(self.tumors, self.tumors["experiment"] == experiment)
        return rows if method is None else select(rows, rows["method"] == method)

    def seen(self, experiment: str, method: str) -> pd.DataFrame:
        """Rows of tumours that were not left out."""
        rows = self.of(experiment, method)
        return select(rows, rows["made"].notna())


def select(table: pd.DataFrame, keep: Any) -> pd.DataFrame:
    """Rows of a table. `keep` has one truth value a row."""
    return cast(pd.DataFrame, table[keep])


def collect(
    scans: Sequence[EvaluationScan],
    cases: Sequence[Case],
    labels: tuple[int, int | None],
    sources: Sources,
    settings: EvaluationSettings,
    rng: np.random.Generator,
    *,
    heading: str,
) -> Collection:
    """Make and measure the tumours of scans.

    Args:
        scans: Scans that the generator never saw, on the evaluation's grid.
        cases: The same, for transplants on their own grids.
        labels: Values of organ and tumour.
    """
    window_hu = sources.generator.window_hu
    rows: list[Row] = []
    textures: list[Row] = []
    different: list[Row] = []
    failed: Counter[str] = Counter()
    for scan in tqdm(scans, desc=heading, unit="scan"):
        synthesizers = sources.synthesizers(scan.identifier)
        if scan.has_target:
            rows += _named(IN_PLACE, experiments.replace_target(scan, sources, settings, rng))
            textures += experiments.balls_in_target(scan, settings, window_hu, rng)
            textures += experiments.shrunken_target(scan, settings, window_hu)
        places, without = find_places(scan, settings.radii_mm, settings.places_per_radius, sources.looks, rng)
        failed.update(without)
        transplants = experiments.make_at(places, synthesizers, window_hu)
        different += experiments.diversity(transplants, sources, settings, rng)
        rows += _named(TRANSPLANTS, transplants)
        places, _ = find_places(scan, settings.control_radii_mm, settings.control_places, sources.looks, rng)
        contrasts, heterogeneities = experiments.request_looks(places, settings)
        asked = {method: synthesizers[method] for method in (GENERATED, NO_DIFFUSION)}
        rows += _named(CONTRASTS, experiments.make_at(contrasts, asked, window_hu))
        asked = {GENERATED: synthesizers[GENERATED]}
        rows += _named(HETEROGENEITIES, experiments.make_at(heterogeneities, asked, window_hu))
    rows += _named(NATIVE, _on_own_grids(cases, labels, sources, settings, rng))
    return Collection(
        pd.DataFrame(rows, columns=[*FILE_COLUMNS, "radius_mm", "of", "made"]),
        pd.DataFrame(textures, columns=["kind", "patient", "radius_mm", "lowpass_sd_hu"]),
        pd.DataFrame(different, columns=["patient", "diversity_hu"]),
        failed,
    )


def write_tumors(path: Path, collections: Mapping[str, Collection]) -> None:
    """Write one line a tumour as CSV, whole or not at all, in place of what is there.

    Args:
        collections: Collections by the name that follows that of their experiments; empty for the data set itself.
    """
    named = [
        each.tumors.assign(experiment=each.tumors["experiment"] + (f", {name}" if name else ""))
        for name, each in collections.items()
    ]
    with written_whole(path, overwrite=True) as temporary:
        pd.concat(named)[FILE_COLUMNS].to_csv(temporary, index=False, float_format="%.4g")


def _on_own_grids(
    cases: Sequence[Case],
    labels: tuple[int, int | None],
    sources: Sources,
    settings: EvaluationSettings,
    rng: np.random.Generator,
) -> list[Row]:
    """Transplants on the scans' own grids, one for each radius; not copied ones, whose donors lie on another grid."""
    rows: list[Row] = []
    synthesizers = replace(sources, donors=()).synthesizers("")
    for case in tqdm(cases, desc="native grid", unit="scan"):
        scan = read_scan(case, *labels, native=True)
        places, _ = find_places(scan, settings.native_radii_mm, 1, sources.looks, rng)
        rows += experiments.make_at(places, synthesizers, sources.generator.window_hu)
    return rows


def _named(experiment: str, rows: Sequence[Row]) -> list[Row]:
    return [{"experiment": experiment, **row} for row in rows]
