"""All tumours of an evaluation in one table: in place, transplanted, and with requested looks, made and measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt, find_objects
from tqdm import tqdm

from nnunet_difftumor.ct.components import equivalent_radius_mm
from nnunet_difftumor.ct.resample import average_onto
from nnunet_difftumor.evaluation.realism.measures.textures import seed_diversity_hu, split_texture
from nnunet_difftumor.evaluation.realism.measures.tumors import FILE_COLUMNS, measure_tumor, real_visibility
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.healthy_host import free_tissue
from nnunet_difftumor.evaluation.realism.tumors.making import (
    GENERATED,
    IN_PLACE,
    NO_DIFFUSION,
    TRANSPLANT,
    Place,
    find_places,
    make,
)
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.evaluation.realism.tumors.sources import Sources
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.drawing import MaskSurface

NATIVE = "transplant, native grid"
CONTRASTS, HETEROGENEITIES = "requested contrast", "requested heterogeneity"
PARTS, SEEDS, WITHOUT_PLACE = "part of a real tumour", "other seeds", "without a place"
SHAMS = "sham"
BALL, SHRUNKEN = "ball", "shrunken"

Row = dict[str, Any]
"""A tumour with its measures (see `measure_tumor`), or a part of one with its own."""

_CONTRAST_LIMIT_HU = 80.0
_BALL_DEPTH_SHARE = 0.9


def select(table: pd.DataFrame, keep: Any) -> pd.DataFrame:
    """Rows of a table. `keep` has one truth value a row."""
    return cast(pd.DataFrame, table[keep])


def of(tumors: pd.DataFrame, experiment: str, method: str | None = None) -> pd.DataFrame:
    """Rows of an experiment, and of a method."""
    rows = select(tumors, tumors["experiment"] == experiment)
    return rows if method is None else select(rows, rows["method"] == method)


def seen(tumors: pd.DataFrame, experiment: str, method: str = GENERATED) -> pd.DataFrame:
    """Rows of tumours that were not left out."""
    rows = of(tumors, experiment, method)
    return select(rows, rows["made"].notna())


def count_patients(tumors: pd.DataFrame) -> int:
    """How many patients have a row."""
    return len(set(tumors["patient"]))


def collect(
    scans: Sequence[EvaluationScan],
    native_scans: Iterable[EvaluationScan],
    sources: Sources,
    settings: EvaluationSettings,
    rng: np.random.Generator,
    *,
    heading: str,
) -> pd.DataFrame:
    """Make and measure the tumours of scans.

    Args:
        scans: Scans that the generator never saw, on the evaluation's grid.
        native_scans: The same on their own grids.

    Returns:
        One row for each tumour (see `measure_tumor`) with its `experiment`: "in place", "transplant", "transplant,
        native grid", "requested contrast" or "requested heterogeneity". Besides, rows of other experiments: the
        low-pass sd of parts of real tumours, with "ball" or "shrunken" for a method; `diversity_hu`, the difference
        between seeds; "sham", tissue that went the way of a tumour; and each transplant without a place.
    """
    rows: list[Row] = []
    edges = sources.generator.edges

    def add(experiment: str, found: Iterable[Row]) -> None:
        rows.extend({"experiment": experiment, **row} for row in found)

    for scan in tqdm(scans, desc=heading, unit="scan"):
        synthesizers = sources.synthesizers(scan.patient)
        add(IN_PLACE, replace_targets(scan, sources, settings, rng))
        for target in scan.targets():
            add(PARTS, balls_in_target(target, settings, rng))
            add(PARTS, shrunken_target(target, settings))
        places, without_mm = find_places(scan, settings.radii_mm, settings.places_per_radius, sources.looks, rng, edges)
        add(WITHOUT_PLACE, [{"radius_mm": radius_mm} for radius_mm in without_mm])
        transplants = make_at(places, synthesizers)
        add(SEEDS, diversity(transplants, sources, settings, rng))
        add(TRANSPLANT, transplants)
        add(SHAMS, make_shams(places, sources))
        places, _ = find_places(scan, settings.control_radii_mm, 1, sources.looks, rng, edges)
        contrasts = request(places, "contrast_hu", settings.control_contrasts_hu)
        add(CONTRASTS, make_at(contrasts, {method: synthesizers[method] for method in (GENERATED, NO_DIFFUSION)}))
        heterogeneities = request(places, "heterogeneity_hu", settings.control_heterogeneities_hu)
        add(HETEROGENEITIES, make_at(heterogeneities, {GENERATED: synthesizers[GENERATED]}))
    synthesizers = replace(sources, donors=()).synthesizers("")  # none is copied: donors lie on another grid
    for scan in tqdm(native_scans, desc="native grid", unit="scan", total=len(scans)):
        places, _ = find_places(scan, settings.native_radii_mm, 1, sources.looks, rng, edges)
        add(NATIVE, make_at(places, synthesizers))
    return pd.DataFrame(rows, columns=[*FILE_COLUMNS, "radius_mm", "of", "made", "diversity_hu"])


def write_tumors(path: Path, collections: Mapping[str, pd.DataFrame]) -> None:
    """Write one line a tumour as CSV in place of what is there; names of tables, if any, follow their experiments'."""
    named = [
        tumors.assign(experiment=tumors["experiment"] + (f", {name}" if name else "")).dropna(subset="place")
        for name, tumors in collections.items()
    ]
    with written_whole(path, overwrite=True) as temporary:
        pd.concat(named)[FILE_COLUMNS].to_csv(temporary, index=False, float_format="%.4g")


def replace_targets(
    scan: EvaluationScan, sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> list[Row]:
    """Replace each tumour of a scan that is compared by every method.

    Returns:
        Each real tumour, and those made: draws with looks of training tumours, and a last one with the look
        of the real tumour itself.
    """
    if not scan.has_target:
        return []
    targets, tissue, rows = list(scan.targets()), free_tissue(scan), []
    draws = max(1, settings.draws_per_case // len(targets))
    examples = iter(_stratified_looks(sources.looks.usable_examples, draws * len(targets), rng))
    for number, target in enumerate(targets, start=1):
        place = making.place_of_target(target, f"tumour {number}", tissue, rng, sources.generator.edges)
        own = making.real_tumor(place)
        real = measure_tumor(place, making.REAL, own) | {"is_visible": real_visibility(own)}
        drawn = [sources.looks.with_room(each, place.spec.radius_mm) for each in islice(examples, draws)]
        looks = [*drawn, _look_of(real)]
        places = [place.asking(look, int(rng.integers(2**62)), draw) for draw, look in enumerate(looks)]
        floor = {making.AUTOENCODER: sources.floor(place)}
        made = [*make_at([place], floor), *make_at(places, sources.synthesizers(scan.patient))]
        rows += [{**row, "real_lowpass_sd_hu": real["lowpass_sd_hu"]} for row in (real, *made)]
    return rows


def make_at(places: Iterable[Place], synthesizers: Mapping[str, TumorSynthesizer]) -> list[Row]:
    """Make and measure a tumour at every place by every method."""
    return [
        measure_tumor(place, method, make(place, synthesizer))
        for place in places
        for method, synthesizer in synthesizers.items()
    ]


def make_shams(places: Iterable[Place], sources: Sources) -> Iterator[Row]:
    """Make shams at places: of the host as it is, and drawn with its low-pass sd, its mean and no contrast."""
    drawing = TumorSynthesizer(sources.generator)
    for place in places:
        sham = making.make_sham(place, drawing.without_tumors())
        yield measure_tumor(place, making.SHAM, sham)
        if sham:
            heterogeneity_hu, _ = split_texture(sham.host_hu, sham.label, place.scan.spacing_mm)
            look = Appearance(contrast_hu=0.0, heterogeneity_hu=heterogeneity_hu)
            yield measure_tumor(place, making.REDRAWN, making.make_sham(place, drawing, look))


def diversity(
    rows: Sequence[Row], sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> Iterator[Row]:
    """How much the first generated transplant of some radii differs between seeds in the same mask and look.

    Yields:
        Patient and difference in HU (see `seed_diversity_hu`); NaN where fewer than two could be seen.
    """
    synthesizer = TumorSynthesizer(sources.generator)
    generated = [row for row in rows if row["method"] == GENERATED and row["made"]]
    firsts = {row["radius_mm"]: row for row in reversed(generated)}
    for row in [firsts[radius_mm] for radius_mm in settings.diversity_radii_mm if radius_mm in firsts]:
        first, look, spacing_mm = row["made"], row["of"].spec.appearance, row["made"].scan.spacing_mm
        label = np.zeros(first.scan.image_hu.shape, dtype=bool)
        label[first.box] = first.label
        seeds = rng.integers(2**62, size=settings.diversity_seeds)
        surfaces = [MaskSurface(label, spacing_mm, int(seed), look) for seed in seeds]
        again = [make(replace(row["of"], tumor=surface), synthesizer) for surface in surfaces]
        different_hu = seed_diversity_hu([each.image_hu for each in again if each], first.label, spacing_mm)
        yield {"patient": row["patient"], "diversity_hu": different_hu}


def request(places: Sequence[Place], name: str, values_hu: Sequence[float]) -> list[Place]:
    """Ask for contrasts or heterogeneities at places, by the name in an `Appearance`; the rest of a look stays."""
    return [place.asking(replace(place.spec.appearance, **{name: hu})) for place in places for hu in values_hu]


def balls_in_target(scan: EvaluationScan, settings: EvaluationSettings, rng: np.random.Generator) -> Iterator[Row]:
    """Texture of balls inside the target of a scan that fit: what a transplant of that radius compares with."""
    depth_mm = np.asarray(distance_transform_edt(scan.target, sampling=scan.spacing_mm))
    image_hu = scan.limited_hu
    grid = np.moveaxis(np.indices(scan.target.shape), 0, -1) * np.asarray(scan.spacing_mm)
    for radius_mm in settings.radii_mm:
        centres = np.argwhere(depth_mm >= _BALL_DEPTH_SHARE * radius_mm)
        for _ in range(settings.places_per_radius if len(centres) else 0):
            centre_mm = centres[int(rng.integers(len(centres)))] * np.asarray(scan.spacing_mm)
            ball = (np.linalg.norm(grid - centre_mm, axis=-1) <= radius_mm) & scan.target
            yield _texture(scan, BALL, radius_mm, image_hu, ball)


def shrunken_target(scan: EvaluationScan, settings: EvaluationSettings) -> Iterator[Row]:
    """Texture of the target of a scan made as small as each transplant: as many voxels, and so as coarse a view of it.

    Only radii below the tumour's own count.
    """
    box = find_objects(scan.target.astype(np.uint8))[0]
    inside, image_hu = scan.target[box], scan.limited_hu[box]
    own_radius_mm = equivalent_radius_mm(float(inside.sum() * np.prod(scan.spacing_mm)))
    for radius_mm in settings.radii_mm:
        factor = own_radius_mm / radius_mm
        if factor <= 1.0:
            continue
        coarse_mm = tuple(step * factor for step in scan.spacing_mm)
        shape = [max(1, int(np.ceil(size / factor))) for size in inside.shape]
        share, total_hu = (
            average_onto(values.astype(np.float32), scan.spacing_mm, shape, coarse_mm, (0.0, 0.0, 0.0))
            for values in (inside, np.where(inside, image_hu, 0.0))
        )
        mean_hu = total_hu / np.maximum(share, np.float32(1e-6))  # of the tumour's part of a voxel alone
        yield _texture(scan, SHRUNKEN, radius_mm, mean_hu, share >= 0.5)


def _stratified_looks(examples: Sequence[Appearance], count: int, rng: np.random.Generator) -> list[Appearance]:
    """Looks of training tumours at evenly spread ranks of the contrast, in random order; without any, all is open."""
    if not examples:
        return [Appearance()] * count
    ordered = sorted(examples, key=lambda look: look.contrast_hu or 0.0)
    ranks = ((np.arange(count) + 0.5) / count * len(ordered)).astype(int)
    return [ordered[int(rank)] for rank in rng.permutation(ranks)]


def _look_of(real: Row) -> Appearance:
    """The look of a real tumour: its depth, or the contrast of what of it is small, and its low-pass sd, in HU."""
    depth_hu = real["centre_minus_ring_hu"]
    contrast_hu = real["contrast_hu"] if np.isnan(depth_hu) else depth_hu
    contrast_hu = float(np.clip(contrast_hu, -_CONTRAST_LIMIT_HU, _CONTRAST_LIMIT_HU))
    known_hu = None if np.isnan(contrast_hu) else contrast_hu
    return Appearance(contrast_hu=known_hu, heterogeneity_hu=real["lowpass_sd_hu"])


def _texture(scan: EvaluationScan, part: str, radius_mm: float, image_hu: np.ndarray, mask: np.ndarray) -> Row:
    lowpass_sd_hu, _ = split_texture(image_hu, mask, scan.spacing_mm)
    return {"patient": scan.patient, "method": part, "radius_mm": radius_mm, "lowpass_sd_hu": lowpass_sd_hu}
