"""One row of measures for every real or made tumour."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.evaluation.realism.measures import textures
from nnunet_difftumor.evaluation.realism.measures.ring import look_at_ring
from nnunet_difftumor.evaluation.realism.tumors.making import MadeTumor, Place
from nnunet_difftumor.synthesis.tissue.interface import or_nan
from nnunet_difftumor.synthesis.visibility import Noise
from nnunet_difftumor.tumor.rim import RING_MM, ring_level_hu

DIAMETER_BINS_MM = {
    "<10 mm": (0.0, 10.0),
    "10-20 mm": (10.0, 20.0),
    "20-50 mm": (20.0, 50.0),
    ">=50 mm": (50.0, math.inf),
}
_SHELLS = [f"{int(edge + 1):+d}mm" for edge in textures.PROFILE_EDGES_MM[:-1]]
PROFILE_COLUMNS = [f"profile_hu_{shell}" for shell in _SHELLS]
DEVIATION_COLUMNS = [f"deviation_hu_{shell}" for shell in _SHELLS]
BAND_COLUMNS = [f"band_hu2_{edge:g}_per_mm" for edge in textures.BAND_EDGES_PER_MM[:-1]]
CURVES = {"band_hu2": BAND_COLUMNS, "profile_hu": PROFILE_COLUMNS, "deviation_hu": DEVIATION_COLUMNS}
FILE_COLUMNS = [
    *("experiment", "patient", "case", "setting", "place", "method", "draw", "diameter_mm"),
    *("requested_contrast_hu", "requested_heterogeneity_hu", "mean_hu", "sd_hu", "lowpass_sd_hu", "highpass_sd_hu"),
    *("real_lowpass_sd_hu", "host_highpass_sd_hu", "contrast_hu", "depth_hu", "cnr", "is_visible"),
    *("inside_share", "volume_ratio", "cap_rim_curvature", "cut_vessels_per_cm2"),
    *("centre_minus_ring_hu", "beyond_rim_hu", "highpass_ratio", "ring_depth_hu"),
    *PROFILE_COLUMNS,
    *DEVIATION_COLUMNS,
    *BAND_COLUMNS,
]
"""Columns of `tumors.csv`."""


def measure_tumor(place: Place, method: str, made: MadeTumor | None) -> dict[str, Any]:
    """Measure one tumour, made by a method: a row of the table of tumours.

    Args:
        made: The tumour; None if it could not be seen and so was left out: then `is_visible` is 0 and nothing else is
            measured.

    Returns:
        Columns of `tumors.csv` without experiment and `real_lowpass_sd_hu`; besides `radius_mm` (requested), `of` (the
        place) and `made`.
    """
    return {
        "patient": place.scan.patient,
        "case": place.scan.identifier,
        "setting": place.setting,
        "place": place.name,
        "method": method,
        "draw": place.draw,
        "requested_contrast_hu": or_nan(place.spec.contrast_hu),
        "requested_heterogeneity_hu": or_nan(place.spec.heterogeneity_hu),
        "radius_mm": place.spec.radius_mm,
        "of": place,
        "made": made,
        "is_visible": float(made is not None),
        **(_measures(place, made) if made else {}),
    }


def _measures(place: Place, made: MadeTumor) -> dict[str, float]:
    """Measures of one tumour; NaN where one cannot be taken.

    Returns:
        diameter_mm: Of the sphere of the label's volume.
        mean_hu, sd_hu: Of the voxels inside the label.
        lowpass_sd_hu, highpass_sd_hu: Standard deviation after smoothing by 3 mm inside the label, and of what the
            smoothing takes away.
        contrast_hu: Mean inside minus mean of the organ 1.5 to 6 mm outside the label.
        depth_hu: Contrast of the tissue that was made, whatever part of it the label shows.
        cnr: Contrast over the host's high-pass standard deviation.
        inside_share: Share of the drawn label that was not clipped.
        volume_ratio: Drawn over requested volume, before clipping.
        centre_minus_ring_hu: Core (deeper than 6 mm) minus the organ around the label.
        beyond_rim_hu: Largest change of the scan farther out than the soft rim and a voxel's diagonal; NaN where the
            label was clipped.
        cap_rim_curvature, cut_vessels_per_cm2: How sharp the outline ends at the organ's surface, and bright vessels
            that end at it (see `look_at_ring`).
        highpass_ratio: High-pass standard deviation over the host's.
        ring_depth_hu: Lowest of the three shells of the outermost 6 mm inside, minus the core.
        profile_hu_*: Shell means minus the organ around the label (see `ring_profile`).
        deviation_hu_*: Shell means of the change of the host.
        band_hu2_*: Variance by spatial frequency (see `band_variances`).
    """
    spacing, distance_mm = made.scan.spacing_mm, made.distance_mm
    image_hu, host_hu = (np.clip(values, *made.scan.window_hu) for values in (made.image_hu, made.host_hu))
    inside_hu, change_hu = image_hu[made.label], image_hu - host_hu
    low_sd, high_sd = textures.split_texture(image_hu, made.label, spacing)
    radius_mm, host_sd = place.spec.radius_mm, place.noise_hu
    if host_sd is None:
        host_sd = textures.split_texture(host_hu, made.label, spacing)[1]
    level_hu = ring_level_hu(host_hu, made.organ, distance_mm)
    contrast_hu = float(inside_hu.mean()) - level_hu
    counted = made.label | made.organ
    profile = np.array(textures.ring_profile(image_hu, counted, distance_mm)) - level_hu
    centre_hu = textures.centre_level_hu(image_hu, distance_mm) - level_hu
    ring = look_at_ring(made.label, image_hu, made.organ, spacing)
    return {
        "diameter_mm": equivalent_diameter_mm(made.label_mm3),
        "mean_hu": float(inside_hu.mean()),
        "sd_hu": float(inside_hu.std()),
        "lowpass_sd_hu": low_sd,
        "highpass_sd_hu": high_sd,
        "host_highpass_sd_hu": host_sd,
        "contrast_hu": contrast_hu,
        "depth_hu": made.depth_hu,
        "cnr": contrast_hu / host_sd if host_sd > 0 else math.nan,
        "inside_share": made.label_mm3 / made.drawn_mm3,
        "volume_ratio": made.drawn_mm3 / (4.0 / 3.0 * math.pi * radius_mm**3),
        "cap_rim_curvature": ring.rim_curvature,
        "cut_vessels_per_cm2": ring.cut_vessels_per_cm2,
        "centre_minus_ring_hu": centre_hu,
        "beyond_rim_hu": _beyond_rim(made, max(0.0, place.spec.edge.outer_mm), change_hu),
        "highpass_ratio": high_sd / host_sd if host_sd > 0 else math.nan,
        "ring_depth_hu": float(np.fmin.reduce(profile[1:4])) - centre_hu,
        **dict(zip(PROFILE_COLUMNS, profile.tolist(), strict=True)),
        **dict(zip(DEVIATION_COLUMNS, textures.ring_profile(change_hu, counted, distance_mm), strict=True)),
        **dict(zip(BAND_COLUMNS, textures.band_variances(image_hu, made.label, spacing), strict=True)),
    }


def real_visibility(made: MadeTumor) -> float:
    """1 if a real tumour stands out from the organ around it (see `Noise.shows`), else 0."""
    low_mm, high_mm = RING_MM
    ring = made.organ & (made.distance_mm > low_mm) & (made.distance_mm <= high_mm)
    image_hu = np.clip(made.image_hu, *made.scan.window_hu)
    if not ring.any():
        return 0.0
    contrast_hu = float(image_hu[made.label].mean() - image_hu[ring].mean())
    signal_hu = abs(contrast_hu) * math.sqrt(made.label.sum())
    return float(Noise.of(image_hu, ring).shows(contrast_hu, signal_hu, int(ring.sum())))


def _beyond_rim(made: MadeTumor, reach_mm: float, change_hu: NDArray[np.floating]) -> float:
    beyond = made.distance_mm > reach_mm + float(np.linalg.norm(made.scan.spacing_mm))
    is_whole = made.label_mm3 == made.drawn_mm3
    return float(np.abs(change_hu[beyond]).max()) if is_whole and beyond.any() else math.nan
