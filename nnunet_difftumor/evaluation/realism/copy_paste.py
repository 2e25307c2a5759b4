"""Copy-paste for the evaluation: texture of another patient's tumour at the places of the generated ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.evaluation.realism.tumors.places import Place
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.synthesis.tissue.donors import Donor, make_donor, paste_texture
from nnunet_difftumor.tumor.rim import ring_level_hu

FloatArray = NDArray[np.float32]


def donor_of_scan(scan: EvaluationScan, window_hu: tuple[float, float]) -> Donor:
    """Take the largest tumour of a scan as a donor of texture.

    Args:
        window_hu: Window to which values are limited, in HU.
    """
    image_hu = np.clip(scan.image_hu, *window_hu)
    return make_donor(scan.identifier, image_hu, scan.target, scan.organ, scan.spacing_mm)


def paste(
    place: Place, donors: Sequence[Donor], window_hu: tuple[float, float], rng: np.random.Generator
) -> FloatArray | None:
    """Fill a place with the texture of another patient's tumour at the requested contrast.

    Args:
        place: Where to paste; donors are on the same grid.
        window_hu: Window to which values are limited, in HU.

    Returns:
        Tissue in HU, to be blended without a residual, or None if no other patient gives texture. Shape of
        the place's box.
    """
    others = [donor for donor in donors if donor.identifier != place.scan.identifier]
    if not others:
        return None
    host_hu = np.clip(place.host_hu, *window_hu)
    level_hu = ring_level_hu(host_hu, place.organ, place.distance_mm)
    level_hu = level_hu if np.isfinite(level_hu) else float(np.median(host_hu[place.weight > 0]))
    return paste_texture(others, place.label, place.spec.radius_mm, place.spec.contrast_hu, level_hu, rng)
