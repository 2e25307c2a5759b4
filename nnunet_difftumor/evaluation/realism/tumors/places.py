"""Places of evaluated tumours: real tumours that are replaced, and tumour-free tissue for transplants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.evaluation.realism.settings import DISTANCE_TO_TUMOR_MM
from nnunet_difftumor.evaluation.realism.tumors.healthy_host import without_target
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import DrawnSize, HostGround, TumorPlan, Zone, place_tumors
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.drawing import MaskSurface, rim_width_mm
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.spec import TumorSpec, draw_tumor_spec

IN_PLACE, TRANSPLANT = "in place", "transplant"
_TRIES = 300
_INSIDE_SHARES = (0.99, 0.9)  # wanted, and enough where no place has that much


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tumour is made and what is asked for; every method works on the same places.

    Attributes:
        setting: "in place" or "transplant".
        name: Name within the scan.
        host: What receives the tumour; in place of a real one, the scan with healthy tissue there.
        tumor: What is drawn.
    """

    scan: EvaluationScan
    setting: str
    name: str
    host: Host
    tumor: TumorSpec | MaskSurface

    @property
    def spec(self) -> TumorSpec:
        """What is requested; of a mask, its radius with the look and the seed."""
        return self.tumor.spec if isinstance(self.tumor, MaskSurface) else self.tumor

    def asking(self, look: Appearance, seed: int | None = None) -> Place:
        """Return the same place with another requested look; a mask takes another seed too and keeps its shape."""
        spec = replace(self.spec, contrast_hu=look.contrast_hu, heterogeneity_hu=look.heterogeneity_hu)
        if not isinstance(self.tumor, MaskSurface):
            return replace(self, tumor=spec)
        surface = copy(self.tumor)
        surface.spec = spec if seed is None else replace(spec, seed=seed)
        return replace(self, tumor=surface)


def place_of_target(scan: EvaluationScan, window_hu: tuple[float, float], rng: np.random.Generator) -> Place:
    """The place of a scan's largest tumour, on a host without it (see `without_target`).

    The soft rim is kept to the organ, as in any synthesis: it never covers fat or bone beside the tumour.
    """
    allowed = scan.organ | scan.target
    host = Host(without_target(scan, window_hu, rng), scan.spacing_mm, allowed, allowed, np.ones_like(allowed))
    return Place(scan, IN_PLACE, "largest tumour", host, MaskSurface(scan.target, scan.spacing_mm, seed=0))


def find_places(
    scan: EvaluationScan, radii_mm: Sequence[float], count: int, looks: AppearanceRule, rng: np.random.Generator
) -> tuple[list[Place], Counter[str]]:
    """Draw tumours into tumour-free tissue of the organ.

    99% of a tumour lie in organ that is at least 5 mm (and the soft rim) away from every tumour; where 300 centres
    give no such place, 90% are enough; if 300 more give none either, the tumour is counted.

    Returns:
        The places, and how many tumours had none by radius ("20 mm").
    """
    far_mm = scan.distance_to_tumors_mm()
    places: list[Place] = []
    failed: Counter[str] = Counter()
    for radius_mm in radii_mm:
        free = scan.organ & (far_mm > DISTANCE_TO_TUMOR_MM + rim_width_mm(radius_mm))
        host = Host(scan.image_hu, scan.spacing_mm, scan.organ, free, np.ones_like(free))
        size = SizeClass(name=f"{radius_mm:g} mm", radius_mm=(radius_mm, radius_mm), probability=1.0)
        ground = _ground(host, radius_mm)
        for index in range(count):
            drawn = DrawnSize(draw_tumor_spec(size, (0.0, 0.0, 0.0), looks.draw(rng), rng), size)
            spec = _placed(ground, drawn, rng) if ground else None
            if spec is None:
                failed[size.name] += 1
            else:
                places.append(Place(scan, TRANSPLANT, f"{size.name}, {index}", host, spec))
    return places, failed


def _ground(host: Host, radius_mm: float) -> HostGround | None:
    """Tissue deep enough for the centre of a tumour, or None without any."""
    try:
        zone = Zone(surface_distance_mm=(0.5 * radius_mm, math.inf))
        return HostGround(replace(host, organ_mask=host.replaceable_mask), zone)
    except EmptyOrganError:
        return None


def _placed(ground: HostGround, drawn: DrawnSize, rng: np.random.Generator) -> TumorSpec | None:
    for share in _INSIDE_SHARES:
        plan = TumorPlan(size_classes=(drawn.size_class,), minimum_inside_share=share, tries=_TRIES, shrinks=0)
        placed, _ = place_tumors(ground, plan, [drawn], rng)
        if placed:
            return placed[0]
    return None
