"""The tumours that are made of one scan: in place, transplanted, and with requested looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.ndimage import find_objects

from nnunet_difftumor.ct.resample import average_onto
from nnunet_difftumor.evaluation.realism.copy_paste import paste
from nnunet_difftumor.evaluation.realism.measures import textures as measures
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.fills import (
    AutoencoderTissue,
    FillingGenerator,
    FillTissue,
    Reconstruct,
    TexturedFillTissue,
)
from nnunet_difftumor.evaluation.realism.tumors.making import (
    MadeTumor,
    SmoothTissue,
    blend,
    blend_in_place,
    generate_tissue,
)
from nnunet_difftumor.evaluation.realism.tumors.places import TRANSPLANT, Place, find_places, place_of_target
from nnunet_difftumor.evaluation.realism.tumors.residual import free_residual
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.synthesis.tissue.donors import Donor
from nnunet_difftumor.synthesis.tissue.interface import TissueGenerator
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.rim import ring_level_hu

_CONTRAST_LIMIT_HU = 80.0
_BALL_DEPTH_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Sources:
    """Where tissue comes from.

    Attributes:
        looks: What requested looks are drawn from; by default the tumours that the generator was trained on.
        donors: Real tumours for copy-paste.
        fill: A flat fill without diffusion.
        textured_fill: The generator's own fill without diffusion.
    """

    generator: FillingGenerator
    reconstruct: Reconstruct
    donors: tuple[Donor, ...] = ()
    looks: AppearanceRule = field(default_factory=AppearanceRule)
    fill: FillTissue = field(init=False)
    textured_fill: TexturedFillTissue = field(init=False)
    floor: AutoencoderTissue = field(init=False)

    def __post_init__(self) -> None:
        if not self.looks.examples:
            object.__setattr__(self, "looks", replace(self.looks, examples=self.generator.appearances))
        object.__setattr__(self, "fill", FillTissue(self.generator, self.reconstruct))
        object.__setattr__(self, "textured_fill", TexturedFillTissue(self.generator, self.reconstruct))
        object.__setattr__(self, "floor", AutoencoderTissue(self.generator, self.reconstruct))


def organ_highpass_sd_hu(scan: EvaluationScan, window_hu: tuple[float, float]) -> float:
    """High-pass standard deviation of the organ of a scan, away from its tumours, in HU."""
    from scipy.ndimage import binary_erosion

    far = scan.organ & (scan.distance_to_tumors_mm() > 5.0)
    inner = np.asarray(binary_erosion(far), dtype=bool)  # voxels at the edge hold fat or air
    mask = inner if int(inner.sum()) >= 1000 else far
    return measures.split_texture(np.clip(scan.image_hu, *window_hu), mask, scan.spacing_mm)[1]


def replace_target(
    scan: EvaluationScan, sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> list[MadeTumor]:
    """Replace the largest tumour of a scan by every method.

    Args:
        sources: Where tissue comes from.
        settings: How many draws.

    Returns:
        The real tumour, and those made: draws with looks of training tumours, and a last one with the look
        of the real tumour itself.
    """
    window_hu = sources.generator.window_hu
    target = place_of_target(scan, sources.generator.roi_rule)
    looks = stratified_looks(sources.looks.usable_examples, settings.draws_per_case, rng)
    looks.append(measured_look(target, window_hu))
    places = [target.asking(look, int(rng.integers(2**62))) for look in looks]
    free = free_residual(scan, target.roi.side, target.roi.spacing_mm, sources.reconstruct, window_hu, rng)
    residuals = [free.quilt(target.label.shape, rng) for _ in places]
    made = [MadeTumor(target, making.REAL, 0, np.clip(target.host_hu, *window_hu))]

    def add(method: str, tissues: Sequence[SmoothTissue], *, has_residual: bool = True) -> None:
        for draw, (place, smooth) in enumerate(zip(places, tissues, strict=False)):
            borrowed_hu = residuals[draw] if has_residual else None
            made.append(MadeTumor(place, method, draw, blend_in_place(place, smooth, window_hu, borrowed_hu)))

    generated = generate_tissue(places, sources.generator)
    add(making.GENERATED, generated)
    add(making.NO_RESIDUAL, generated, has_residual=False)
    add(making.NO_DIFFUSION, generate_tissue(places, sources.fill))
    add(making.TEXTURED_FILL, generate_tissue(places, sources.textured_fill))
    add(making.AUTOENCODER, generate_tissue(places[:1], sources.floor))
    for draw, place in enumerate(places):
        pasted_hu = paste(place, sources.donors, window_hu, rng)
        if pasted_hu is not None:
            host_hu = np.clip(place.host_hu, *window_hu)
            image_hu = blend_in_place(place, SmoothTissue(pasted_hu, host_hu), window_hu, None)
            made.append(MadeTumor(place, making.COPY_PASTE, draw, image_hu))
    return made


def transplant(
    scan: EvaluationScan, sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> tuple[list[MadeTumor], Counter[str]]:
    """Make tumours in tumour-free tissue of a scan by every method, at the same places.

    Args:
        sources: Where tissue comes from.

    Returns:
        The tumours, visible or not, and the places that were not found by radius.
    """
    radii_mm, count = settings.radii_mm, settings.places_per_radius
    places, failed = find_places(scan, radii_mm, count, sources.looks, sources.generator.roi_rule, rng)
    made = make_at(places, sources, rng)
    made += _other_seeds(places, sources, settings, rng)
    return made, failed


def make_at(places: Sequence[Place], sources: Sources, rng: np.random.Generator) -> list[MadeTumor]:
    """Make a tumour at every place by every method that fits tumour-free tissue.

    Args:
        sources: Where tissue comes from.
    """
    window_hu = sources.generator.window_hu
    made = []
    tissues = [generate_tissue(places, each) for each in (sources.generator, sources.fill, sources.textured_fill)]
    for place, smooth, flat, textured in zip(places, *tissues, strict=True):
        made.append(MadeTumor(place, making.GENERATED, 0, blend(place, smooth, window_hu, has_residual=True)))
        made.append(MadeTumor(place, making.NO_RESIDUAL, 0, blend(place, smooth, window_hu, has_residual=False)))
        made.append(MadeTumor(place, making.NO_DIFFUSION, 0, blend(place, flat, window_hu, has_residual=True)))
        made.append(MadeTumor(place, making.TEXTURED_FILL, 0, blend(place, textured, window_hu, has_residual=True)))
        pasted_hu = paste(place, sources.donors, window_hu, rng)
        if pasted_hu is not None:
            smooth = SmoothTissue(pasted_hu, np.clip(place.host_hu, *window_hu))
            made.append(MadeTumor(place, making.COPY_PASTE, 0, blend(place, smooth, window_hu, has_residual=False)))
    return made


def request_looks(
    scan: EvaluationScan, sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> tuple[list[MadeTumor], list[MadeTumor]]:
    """Request contrasts, and then heterogeneities, at fixed places of a scan.

    Args:
        sources: Where tissue comes from.

    Returns:
        Generated and no-diffusion tumours for the requested contrasts, and generated ones for the requested
        heterogeneities; what is not requested comes from the training tumours.
    """
    generator = sources.generator
    radii_mm, count = settings.control_radii_mm, settings.control_places
    places, _ = find_places(scan, radii_mm, count, sources.looks, generator.roi_rule, rng)
    contrasts = [
        place.asking(Appearance(contrast_hu=hu, heterogeneity_hu=place.spec.heterogeneity_hu), place.spec.seed)
        for place in places
        for hu in settings.control_contrasts_hu
    ]
    heterogeneities = [
        place.asking(Appearance(contrast_hu=place.spec.contrast_hu, heterogeneity_hu=hu), place.spec.seed)
        for place in places
        for hu in settings.control_heterogeneities_hu
    ]

    def make(asked: Sequence[Place], tissue: TissueGenerator, method: str) -> list[MadeTumor]:
        tissues = generate_tissue(asked, tissue)
        window_hu = generator.window_hu
        return [
            MadeTumor(place, method, 0, blend(place, smooth, window_hu, has_residual=True))
            for place, smooth in zip(asked, tissues, strict=True)
        ]

    by_contrast = make(contrasts, generator, making.GENERATED) + make(contrasts, sources.fill, making.NO_DIFFUSION)
    return by_contrast, make(heterogeneities, generator, making.GENERATED)


def balls_in_target(
    scan: EvaluationScan, settings: EvaluationSettings, window_hu: tuple[float, float], rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Texture of balls inside a real tumour: what a transplant of that radius compares with.

    Args:
        settings: Radii, and balls for each of them.
        window_hu: Window to which values are limited, in HU.

    Returns:
        Radius in mm, low-pass and high-pass standard deviation in HU of every ball that fits.
    """
    from scipy.ndimage import distance_transform_edt

    depth_mm = np.asarray(distance_transform_edt(scan.target, sampling=scan.spacing_mm))
    image_hu = np.clip(scan.image_hu, *window_hu)
    grid = np.moveaxis(np.indices(scan.target.shape), 0, -1) * np.asarray(scan.spacing_mm)
    balls = []
    for radius_mm in settings.radii_mm:
        centres = np.argwhere(depth_mm >= _BALL_DEPTH_SHARE * radius_mm)
        for _ in range(settings.places_per_radius if len(centres) else 0):
            centre_mm = centres[int(rng.integers(len(centres)))] * np.asarray(scan.spacing_mm)
            ball = (np.linalg.norm(grid - centre_mm, axis=-1) <= radius_mm) & scan.target
            balls.append((radius_mm, *measures.split_texture(image_hu, ball, scan.spacing_mm)))
    return balls


def shrunken_target(
    scan: EvaluationScan, settings: EvaluationSettings, window_hu: tuple[float, float]
) -> list[tuple[float, float, float]]:
    """Texture of a real tumour made as small as each transplant: as many voxels, and so as coarse a view of it.

    Args:
        window_hu: Window to which values are limited, in HU.

    Returns:
        Radius in mm, low-pass and high-pass standard deviation in HU, for every radius below the tumour's own.
    """
    box = tuple(slice(part.start, part.stop) for part in find_objects(scan.target.astype(np.uint8))[0])
    inside = scan.target[box]
    image_hu = np.clip(scan.image_hu[box], *window_hu).astype(np.float32)
    voxel_mm3 = float(np.prod(scan.spacing_mm))
    own_radius_mm = (3.0 * inside.sum() * voxel_mm3 / (4.0 * np.pi)) ** (1.0 / 3.0)
    textures = []
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
        textures.append((radius_mm, *measures.split_texture(mean_hu, share >= 0.5, scan.spacing_mm)))
    return textures


def stratified_looks(examples: Sequence[Appearance], count: int, rng: np.random.Generator) -> list[Appearance]:
    """Looks of training tumours at evenly spread ranks of the contrast, in random order.

    Args:
        examples: Looks of training tumours.

    Returns:
        The looks; without examples, ones that leave all to the generator.
    """
    if not examples:
        return [Appearance()] * count
    ordered = sorted(examples, key=lambda look: look.contrast_hu or 0.0)
    ranks = ((np.arange(count) + 0.5) / count * len(ordered)).astype(int)
    return [ordered[int(rank)] for rank in rng.permutation(ranks)]


def measured_look(place: Place, window_hu: tuple[float, float]) -> Appearance:
    """The look of a real tumour: its contrast against the organ around it, and its low-pass sd, in HU."""
    host_hu = np.clip(place.host_hu, *window_hu)
    level_hu = ring_level_hu(host_hu, place.organ, place.distance_mm)
    low_sd_hu, _ = measures.split_texture(host_hu, place.label, place.scan.spacing_mm)
    contrast_hu = float(host_hu[place.label].mean()) - level_hu
    if not np.isfinite(contrast_hu):
        return Appearance(heterogeneity_hu=low_sd_hu)
    contrast_hu = float(np.clip(contrast_hu, -_CONTRAST_LIMIT_HU, _CONTRAST_LIMIT_HU))
    return Appearance(contrast_hu=contrast_hu, heterogeneity_hu=low_sd_hu)


def _other_seeds(
    places: Sequence[Place], sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> list[MadeTumor]:
    """The first tumour of some radii again, with other seeds."""
    seen: set[float] = set()
    repeated = []
    for place in places:
        if place.spec.radius_mm in settings.diversity_radii_mm and place.spec.radius_mm not in seen:
            seen.add(place.spec.radius_mm)
            seeds = rng.integers(2**62, size=settings.diversity_seeds - 1)
            repeated += [(draw + 1, place.asking(place.spec.appearance, int(seed))) for draw, seed in enumerate(seeds)]
    tissues = generate_tissue([place for _, place in repeated], sources.generator)
    return [
        MadeTumor(place, making.GENERATED, draw, blend(place, smooth, sources.generator.window_hu, has_residual=True))
        for (draw, place), smooth in zip(repeated, tissues, strict=True)
    ]


def is_first_draw(made: MadeTumor) -> bool:
    """False for repetitions of a transplant with other seeds, which only the diversity is measured on."""
    return made.place.setting != TRANSPLANT or made.draw == 0
