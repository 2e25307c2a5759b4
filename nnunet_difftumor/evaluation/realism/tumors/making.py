"""Places of evaluated tumours, and the tumours that are made there by the synthesizer that training uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffusion.generator.info import EdgeStatistics
from nnunet_difftumor.ct.boxes import Box, box_around
from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.evaluation.realism.settings import DISTANCE_TO_TUMOR_MM
from nnunet_difftumor.evaluation.realism.tumors.healthy_host import FreeTissue, without_target
from nnunet_difftumor.evaluation.realism.tumors.scans import BoolArray, EvaluationScan, FloatArray
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import (
    DrawnSize,
    HostGround,
    TumorPlan,
    Zone,
    place_tumors,
    with_edge,
    with_look,
)
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.rim import signed_distance_mm
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.spec import TumorSpec, draw_tumor_spec

REAL = "real"
GENERATED = "generated"
NO_RESIDUAL = "generated, no residual"
COPY_PASTE = "copy-paste"
NO_DIFFUSION = "no diffusion"
TEXTURED_FILL = "textured fill"
AUTOENCODER = "autoencoder"
SHAM, REDRAWN = "sham", "sham, redrawn"
METHODS = (REAL, GENERATED, NO_RESIDUAL, COPY_PASTE, NO_DIFFUSION, TEXTURED_FILL, AUTOENCODER)

IN_PLACE, TRANSPLANT = "in place", "transplant"

_TRIES = 300
_INSIDE_SHARES = (0.99, 0.9)  # wanted, and enough where no place has that much
_MARGIN_MM, _RIM_MM = 12.0, 3.0


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tumour is made and what is asked for; every method works on the same places.

    Attributes:
        setting: "in place" or "transplant".
        name: Name within the scan.
        host: What receives the tumour; in place of a real one, the scan with healthy tissue there.
        tumor: What is drawn.
        draw: Number of the look that is asked for here.
        noise_hu: What high-pass standard deviations compare with, in HU; None: that of the host in the label.
        edges: What the visible edge of a real tumour's mask is drawn from.
    """

    scan: EvaluationScan
    setting: str
    name: str
    host: Host
    tumor: TumorSpec | MaskSurface
    draw: int = 0
    noise_hu: float | None = None
    edges: tuple[EdgeStatistics, ...] = ()

    @property
    def spec(self) -> TumorSpec:
        """What is requested; of a mask, its radius with the look and the seed."""
        return self.tumor.spec if isinstance(self.tumor, MaskSurface) else self.tumor

    def asking(self, look: Appearance, seed: int = 0, draw: int = 0) -> Place:
        """Return the same place with another requested look; a real tumour's mask takes the seed too."""
        if isinstance(self.tumor, MaskSurface):
            tumor = MaskSurface(self.scan.target, self.scan.spacing_mm, seed, look, self.edges)
        else:
            tumor = replace(self.tumor, contrast_hu=look.contrast_hu, heterogeneity_hu=look.heterogeneity_hu)
        return replace(self, tumor=tumor, draw=draw)


@dataclass(frozen=True, eq=False)
class MadeTumor:
    """A tumour in its scan, real or made, in the box of its label with a margin of 12 mm. All have the box's shape.

    Attributes:
        place: Name of its place within the scan.
        box: Where the arrays lie in the scan.
        label: True inside the tumour.
        distance_mm: Signed distance to the label's surface in mm.
        image_hu: The scan with the tumour.
        drawn_mm3: Volume that was drawn, before clipping to the organ, in mm3.
        depth_hu: Contrast of the tissue in HU, as the synthesis recorded it; NaN of a real tumour or a sham.
    """

    scan: EvaluationScan
    place: str
    box: Box
    label: BoolArray
    distance_mm: FloatArray
    image_hu: FloatArray
    drawn_mm3: float
    depth_hu: float = math.nan

    @property
    def host_hu(self) -> FloatArray:
        """The scan as it is, in HU."""
        return self.scan.image_hu[self.box]

    @property
    def organ(self) -> BoolArray:
        """The organ, tumours left out."""
        return self.scan.organ[self.box]

    @property
    def label_mm3(self) -> float:
        """Volume of the label in mm3."""
        return float(self.label.sum() * np.prod(self.scan.spacing_mm))


def make(place: Place, synthesizer: TumorSynthesizer) -> MadeTumor | None:
    """Make the tumour of a place as training would.

    Returns:
        The tumour, or None if training would leave it out: it cannot be seen as it was requested.
    """
    result = synthesizer.synthesize(place.host, [place.tumor])
    if not result.tumors:
        return None
    image_hu, record = result.apply_to(place.host.image_hu), result.tumors[0].record
    made = _in_box(place, image_hu, result.label_mask(image_hu.shape), record.drawn_mm3)
    return replace(made, depth_hu=record.depth_hu)


def make_sham(place: Place, synthesizer: TumorSynthesizer, look: Appearance | None = None) -> MadeTumor | None:
    """Make what every tumour goes through, encoding, decoding and blending, without a tumour, seen or not.

    Args:
        place: That of a transplant.
        synthesizer: One without tumours; or one with, whose tissue is shifted to the mean of what it takes the place
            of.
        look: What is asked of the tissue, if any.

    Returns:
        The sham, or None where the tumour would have no place.
    """
    host = place.host
    pending, _ = synthesizer.prepared(host, [place.asking(look or Appearance()).tumor])
    if not pending:
        return None
    ((prepared, blended_hu),) = synthesizer.blended(host, pending, 0)
    image_hu, label = host.image_hu.copy(), np.zeros(host.image_hu.shape, dtype=bool)
    if look:
        missing_hu = (host.image_hu[prepared.box] - blended_hu)[prepared.label].mean()
        shown = max(float(prepared.weight[prepared.label].mean()), 1e-6)
        blended_hu = blended_hu + prepared.weight * (missing_hu / shown)
    image_hu[prepared.box], label[prepared.box] = blended_hu, prepared.label
    return _in_box(place, image_hu, label, prepared.drawn_voxels * float(np.prod(host.spacing_mm)))


def real_tumor(place: Place) -> MadeTumor:
    """The target of a place's scan as it is."""
    scan = place.scan
    return _in_box(place, scan.image_hu, scan.target, float(scan.target.sum() * np.prod(scan.spacing_mm)))


def _in_box(place: Place, image_hu: FloatArray, label: BoolArray, drawn_mm3: float) -> MadeTumor:
    scan = place.scan
    box = box_around(label, scan.spacing_mm, _MARGIN_MM)
    distance_mm = signed_distance_mm(label[box], scan.spacing_mm)
    return MadeTumor(scan, place.name, box, label[box], distance_mm, image_hu[box].copy(), drawn_mm3)


def place_of_target(
    scan: EvaluationScan,
    name: str,
    tissue: FreeTissue,
    rng: np.random.Generator,
    edges: tuple[EdgeStatistics, ...] = (),
) -> Place:
    """The place of a scan's target, on a host without it (see `without_target`).

    The soft rim is kept to the organ, as in any synthesis: it never covers fat or bone beside the tumour. Its noise is
    that of the organ away from tumours.
    """
    allowed = scan.organ | scan.target
    host = Host.of_organ(without_target(scan, tissue, rng), scan.spacing_mm, allowed)
    mask = MaskSurface(scan.target, scan.spacing_mm, seed=0, edges=edges)
    return Place(scan, IN_PLACE, name, host, mask, noise_hu=tissue.highpass_sd_hu, edges=edges)


def find_places(
    scan: EvaluationScan,
    radii_mm: Sequence[float],
    count: int,
    looks: AppearanceRule,
    rng: np.random.Generator,
    edges: tuple[EdgeStatistics, ...] = (),
) -> tuple[list[Place], list[float]]:
    """Draw tumours into tumour-free tissue of the organ.

    99% of a tumour lie in organ that is at least 5 mm (and the soft rim) away from every tumour; where 300 centres
    give no such place, 90% are enough; if 300 more give none either, there is no place.

    Returns:
        The places, and the radius in mm of each tumour that has none.
    """
    far_mm = scan.distance_to_tumors_mm()
    places: list[Place] = []
    without_place_mm: list[float] = []
    for radius_mm in radii_mm:
        free = scan.organ & (far_mm > DISTANCE_TO_TUMOR_MM + _RIM_MM)
        host = Host(scan.image_hu, scan.spacing_mm, scan.organ, free, np.ones_like(free))
        size = SizeClass(name=f"{radius_mm:g} mm", radius_mm=(radius_mm, radius_mm), probability=1.0)
        try:
            deep = Zone(surface_distance_mm=(0.5 * radius_mm, math.inf))
            ground = HostGround(replace(host, organ_mask=free), deep)
        except EmptyOrganError:
            ground = None
        for index in range(count):
            drawn = with_edge(draw_tumor_spec(size, (0.0, 0.0, 0.0), Appearance(), rng), edges)
            spec = _placed(ground, DrawnSize(drawn, size), rng) if ground else None
            if spec is None:
                without_place_mm.append(radius_mm)
            else:
                spec = with_look(spec, looks, host_hu=host.level_hu(spec.centre_mm))
                places.append(Place(scan, TRANSPLANT, f"{size.name}, {index}", host, spec))
    return places, without_place_mm


def _placed(ground: HostGround, drawn: DrawnSize, rng: np.random.Generator) -> TumorSpec | None:
    for share in _INSIDE_SHARES:
        plan = TumorPlan(size_classes=(drawn.size_class,), minimum_inside_share=share, tries=_TRIES, shrinks=0)
        placed, _ = place_tumors(ground, plan, [drawn], rng)
        if placed:
            return placed[0]
    return None
