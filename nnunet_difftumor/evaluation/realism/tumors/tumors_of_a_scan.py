"""The tumours that are made of one scan: in place, transplanted, and with requested looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.ct.resample import average_onto
from nnunet_difftumor.evaluation.realism.measures.textures import seed_diversity_hu, split_texture
from nnunet_difftumor.evaluation.realism.measures.tumors import measure_tumor, real_visibility
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.fills import FilledTissue, Reconstruct, as_it_is, flat_fill
from nnunet_difftumor.evaluation.realism.tumors.making import make, real_tumor
from nnunet_difftumor.evaluation.realism.tumors.places import Place, place_of_target
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.synthesis.pasted import CopyPasteSynthesizer
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.donors import Donor
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.region import choose_roi

if TYPE_CHECKING:
    from diffusion.generator.info import GeneratorInfo

Row = dict[str, Any]
"""A tumour with its measures (see `measure_tumor`)."""

_CONTRAST_LIMIT_HU = 80.0
_BALL_DEPTH_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Sources:
    """Where tissue comes from.

    Attributes:
        info: What the generator's folder says of it.
        looks: What requested looks are drawn from.
        donors: Real tumours for copy-paste, on the grid of the scans.
    """

    generator: DiffusionTissue
    reconstruct: Reconstruct
    info: GeneratorInfo
    looks: AppearanceRule
    donors: tuple[Donor, ...] = ()

    def synthesizers(self, patient: str) -> dict[str, TumorSynthesizer]:
        """What makes tumours of each method in the scan of a patient, whose own tumour is no donor."""
        others = [donor for donor in self.donors if donor.identifier != patient]
        return {
            making.GENERATED: TumorSynthesizer(self.generator),
            making.NO_RESIDUAL: TumorSynthesizer(self.generator, has_residual=False),
            making.NO_DIFFUSION: TumorSynthesizer(FilledTissue(self.generator, self.reconstruct, flat_fill)),
            making.TEXTURED_FILL: TumorSynthesizer(FilledTissue(self.generator, self.reconstruct, self.generator.fill)),
            **({making.COPY_PASTE: CopyPasteSynthesizer(self.info, others)} if others else {}),
        }

    def floor(self, scan: EvaluationScan) -> TumorSynthesizer:
        """What puts a scan's own tumour back, encoded and decoded."""
        surface = MaskSurface(scan.target, scan.spacing_mm, seed=0)
        roi = choose_roi(surface, scan.spacing_mm, self.generator.roi_rule)
        real_hu = roi.sample(scan.image_hu, scan.spacing_mm)
        return TumorSynthesizer(FilledTissue(self.generator, self.reconstruct, as_it_is(real_hu)))


def organ_highpass_sd_hu(scan: EvaluationScan, window_hu: tuple[float, float]) -> float:
    """High-pass standard deviation of the organ of a scan, away from its tumours, in HU."""
    far = scan.organ & (scan.distance_to_tumors_mm() > 5.0)
    inner = np.asarray(binary_erosion(far), dtype=bool)  # voxels at the edge hold fat or air
    mask = inner if int(inner.sum()) >= 1000 else far
    return split_texture(np.clip(scan.image_hu, *window_hu), mask, scan.spacing_mm)[1]


def replace_target(
    scan: EvaluationScan, sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> list[Row]:
    """Replace the largest tumour of a scan by every method.

    Returns:
        The real tumour, and those made: draws with looks of training tumours, and a last one with the look
        of the real tumour itself.
    """
    window_hu = sources.generator.window_hu
    target = place_of_target(scan, window_hu, rng)
    organ_sd_hu = organ_highpass_sd_hu(scan, window_hu)
    own = real_tumor(scan)
    real = measure_tumor(target, making.REAL, 0, own, window_hu, organ_sd_hu)
    real["is_visible"] = real_visibility(own, window_hu)
    looks = stratified_looks(sources.looks.usable_examples, settings.draws_per_case, rng)
    looks.append(_look_of(real))
    rows = [real, *make_at([target], {making.AUTOENCODER: sources.floor(scan)}, window_hu, organ_sd_hu)]
    for draw, look in enumerate(looks):
        place = target.asking(look, int(rng.integers(2**62)))
        rows += make_at([place], sources.synthesizers(scan.identifier), window_hu, organ_sd_hu, draw=draw)
    return rows


def make_at(
    places: Iterable[Place],
    synthesizers: Mapping[str, TumorSynthesizer],
    window_hu: tuple[float, float],
    organ_highpass_sd_hu: float | None = None,
    *,
    draw: int = 0,
) -> list[Row]:
    """Make and measure a tumour at every place by every method (see `measure_tumor`)."""
    return [
        measure_tumor(place, method, draw, make(place, synthesizer), window_hu, organ_highpass_sd_hu)
        for place in places
        for method, synthesizer in synthesizers.items()
    ]


def diversity(
    rows: Sequence[Row], sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> Iterator[Row]:
    """How much the first generated transplant of some radii differs between seeds in the same mask and look.

    Yields:
        Patient and difference in HU (see `seed_diversity_hu`); NaN where fewer than two could be seen.
    """
    synthesizer = TumorSynthesizer(sources.generator)
    for radius_mm in settings.diversity_radii_mm:
        own = [
            row for row in rows if row["method"] == making.GENERATED and row["radius_mm"] == radius_mm and row["made"]
        ]
        for row in own[:1]:
            first, place = row["made"], row["of"]
            label = np.zeros(first.scan.image_hu.shape, dtype=bool)
            label[first.box] = first.label
            look = place.spec.appearance
            again = [
                make(replace(place, tumor=MaskSurface(label, first.scan.spacing_mm, int(seed), look)), synthesizer)
                for seed in rng.integers(2**62, size=settings.diversity_seeds)
            ]
            images_hu = [each.image_hu for each in again if each]
            yield {
                "patient": row["patient"],
                "diversity_hu": seed_diversity_hu(images_hu, first.label, first.scan.spacing_mm),
            }


def request_looks(places: Sequence[Place], settings: EvaluationSettings) -> tuple[list[Place], list[Place]]:
    """Ask for contrasts, and then for heterogeneities, at places; the rest of a look stays."""
    asked = [(place, place.spec.appearance) for place in places]
    contrasts_hu, heterogeneities_hu = settings.control_contrasts_hu, settings.control_heterogeneities_hu
    return (
        [place.asking(replace(look, contrast_hu=hu)) for place, look in asked for hu in contrasts_hu],
        [place.asking(replace(look, heterogeneity_hu=hu)) for place, look in asked for hu in heterogeneities_hu],
    )


def balls_in_target(
    scan: EvaluationScan, settings: EvaluationSettings, window_hu: tuple[float, float], rng: np.random.Generator
) -> Iterator[Row]:
    """Texture of balls inside a real tumour that fit: what a transplant of that radius compares with.

    Args:
        window_hu: Window to which values are limited, in HU.
    """
    depth_mm = np.asarray(distance_transform_edt(scan.target, sampling=scan.spacing_mm))
    image_hu = np.clip(scan.image_hu, *window_hu)
    grid = np.moveaxis(np.indices(scan.target.shape), 0, -1) * np.asarray(scan.spacing_mm)
    for radius_mm in settings.radii_mm:
        centres = np.argwhere(depth_mm >= _BALL_DEPTH_SHARE * radius_mm)
        for _ in range(settings.places_per_radius if len(centres) else 0):
            centre_mm = centres[int(rng.integers(len(centres)))] * np.asarray(scan.spacing_mm)
            ball = (np.linalg.norm(grid - centre_mm, axis=-1) <= radius_mm) & scan.target
            yield _texture(scan, "ball", radius_mm, image_hu, ball)


def shrunken_target(
    scan: EvaluationScan, settings: EvaluationSettings, window_hu: tuple[float, float]
) -> Iterator[Row]:
    """Texture of a real tumour made as small as each transplant: as many voxels, and so as coarse a view of it.

    Only radii below the tumour's own count.

    Args:
        window_hu: Window to which values are limited, in HU.
    """
    box = find_objects(scan.target.astype(np.uint8))[0]
    inside = scan.target[box]
    image_hu = np.clip(scan.image_hu[box], *window_hu).astype(np.float32)
    own_radius_mm = 0.5 * equivalent_diameter_mm(float(inside.sum() * np.prod(scan.spacing_mm)))
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
        yield _texture(scan, "shrunken", radius_mm, mean_hu, share >= 0.5)


def stratified_looks(examples: Sequence[Appearance], count: int, rng: np.random.Generator) -> list[Appearance]:
    """Looks of training tumours at evenly spread ranks of the contrast, in random order.

    Without examples, all is left to the generator.
    """
    if not examples:
        return [Appearance()] * count
    ordered = sorted(examples, key=lambda look: look.contrast_hu or 0.0)
    ranks = ((np.arange(count) + 0.5) / count * len(ordered)).astype(int)
    return [ordered[int(rank)] for rank in rng.permutation(ranks)]


def _look_of(real: Row) -> Appearance:
    """The look of a real tumour: its contrast against the organ around it, and its low-pass sd, in HU."""
    contrast_hu = real["contrast_hu"]
    limited_hu = float(np.clip(contrast_hu, -_CONTRAST_LIMIT_HU, _CONTRAST_LIMIT_HU))
    return Appearance(
        contrast_hu=limited_hu if np.isfinite(contrast_hu) else None, heterogeneity_hu=real["lowpass_sd_hu"]
    )


def _texture(scan: EvaluationScan, kind: str, radius_mm: float, image_hu: np.ndarray, mask: np.ndarray) -> Row:
    lowpass_sd_hu, _ = split_texture(image_hu, mask, scan.spacing_mm)
    return {"kind": kind, "patient": scan.identifier, "radius_mm": radius_mm, "lowpass_sd_hu": lowpass_sd_hu}
