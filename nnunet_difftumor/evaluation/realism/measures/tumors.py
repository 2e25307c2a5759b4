"""One row of measures for every real or made tumour, and the table of them on disk."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.evaluation.realism.measures import textures as measures
from nnunet_difftumor.evaluation.realism.tumors.making import MadeTumor
from nnunet_difftumor.evaluation.realism.tumors.places import IN_PLACE, Place
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.synthesis.blending import measure_visibility
from nnunet_difftumor.synthesis.tissue.interface import or_nan
from nnunet_difftumor.tumor.drawing import rim_width_mm
from nnunet_difftumor.tumor.rim import RING_MM, ring_level_hu, signed_distance_mm

DIAMETER_BINS_MM = ((0.0, 10.0), (10.0, 20.0), (20.0, 50.0), (50.0, math.inf))
_TUPLES = ("profile_hu", "deviation_hu", "band_hu2")


@dataclass(frozen=True, kw_only=True)
class TumorMeasures:
    """Measures of one tumour; NaN where one cannot be taken.

    Attributes:
        patient: Case identifier.
        setting: "in place" or "transplant".
        place: Name of the place in the scan.
        method: How the tumour was made.
        draw: Number of the draw at this place.
        diameter_mm: Diameter of the sphere of the label's volume, in mm.
        requested_contrast_hu: Requested contrast in HU.
        requested_heterogeneity_hu: Requested heterogeneity in HU.
        mean_hu: Mean inside the label.
        sd_hu: Standard deviation inside the label.
        lowpass_sd_hu: The same after smoothing by 3 mm inside the label.
        highpass_sd_hu: The same of what the smoothing takes away.
        host_highpass_sd_hu: The high-pass of the tumour-free host: in the same label before a transplant, in
            the scan's organ for a tumour in place.
        contrast_hu: Mean inside minus mean of the organ 1.5 to 6 mm outside the label.
        cnr: Contrast over the host's high-pass standard deviation.
        is_visible: 1 if the contrast reaches 5 HU and two standard errors, else 0.
        inside_share: Share of the drawn label that was not clipped.
        volume_ratio: Drawn over requested volume, before clipping.
        centre_minus_ring_hu: Core (deeper than 6 mm) minus the organ around the label.
        beyond_rim_hu: Largest change of the scan farther out than the soft rim.
        profile_hu: Shell means minus the organ around the label (see `measures.ring_profile`).
        deviation_hu: Shell means of the change of the host; transplants only.
        band_hu2: Variance by spatial frequency (see `measures.band_variances`).
    """

    patient: str
    setting: str
    place: str
    method: str
    draw: int
    diameter_mm: float
    requested_contrast_hu: float
    requested_heterogeneity_hu: float
    mean_hu: float
    sd_hu: float
    lowpass_sd_hu: float
    highpass_sd_hu: float
    host_highpass_sd_hu: float
    contrast_hu: float
    cnr: float
    is_visible: float
    inside_share: float
    volume_ratio: float
    centre_minus_ring_hu: float
    beyond_rim_hu: float
    profile_hu: tuple[float, ...]
    deviation_hu: tuple[float, ...]
    band_hu2: tuple[float, ...]

    @property
    def highpass_ratio(self) -> float:
        """High-pass standard deviation over the host's."""
        return self.highpass_sd_hu / self.host_highpass_sd_hu if self.host_highpass_sd_hu > 0 else math.nan

    @property
    def ring_depth_hu(self) -> float:
        """Lowest of the three shells of the outermost 6 mm inside, minus the core."""
        shells = [value for value in self.edge_minus_core_hu if math.isfinite(value)]
        return min(shells) if shells else math.nan

    @property
    def edge_minus_core_hu(self) -> tuple[float, ...]:
        """The three shells of the outermost 6 mm inside minus the core, the outermost one last."""
        return tuple(value - self.centre_minus_ring_hu for value in self.profile_hu[1:4])


def measure_tumor(made: MadeTumor, window_hu: tuple[float, float], organ_highpass_sd_hu: float) -> TumorMeasures:
    """Measure one tumour.

    Args:
        window_hu: Window to which the host is limited, in HU.
        organ_highpass_sd_hu: High-pass standard deviation of the scan's tumour-free organ, for tumours in place.
    """
    place, image_hu = made.place, made.image_hu
    spacing = place.scan.spacing_mm
    host_hu = np.clip(place.host_hu, *window_hu)
    inside_hu = image_hu[place.label]
    low_sd, high_sd = measures.split_texture(image_hu, place.label, spacing)
    host_sd = organ_highpass_sd_hu
    if place.setting != IN_PLACE:
        host_sd = measures.split_texture(host_hu, place.label, spacing)[1]
    level_hu = ring_level_hu(host_hu, place.organ, place.distance_mm)
    contrast_hu = float(inside_hu.mean()) - level_hu
    counted = place.label | place.organ
    profile = measures.ring_profile(image_hu, counted, place.distance_mm)
    change_hu = image_hu - host_hu
    volume_mm3 = float(place.label.sum() * np.prod(spacing))
    return TumorMeasures(
        patient=place.scan.identifier,
        setting=place.setting,
        place=place.name,
        method=made.method,
        draw=made.draw,
        diameter_mm=2.0 * (3.0 * volume_mm3 / (4.0 * math.pi)) ** (1.0 / 3.0),
        requested_contrast_hu=or_nan(place.spec.contrast_hu),
        requested_heterogeneity_hu=or_nan(place.spec.heterogeneity_hu),
        mean_hu=float(inside_hu.mean()),
        sd_hu=float(inside_hu.std()),
        lowpass_sd_hu=low_sd,
        highpass_sd_hu=high_sd,
        host_highpass_sd_hu=host_sd,
        contrast_hu=contrast_hu,
        cnr=contrast_hu / host_sd if host_sd > 0 else math.nan,
        is_visible=_visibility(place, inside_hu, host_hu),
        inside_share=place.inside_share,
        volume_ratio=place.drawn_mm3 / place.requested_mm3,
        centre_minus_ring_hu=measures.centre_level_hu(image_hu, place.distance_mm) - level_hu,
        beyond_rim_hu=_beyond_rim(place, change_hu),
        profile_hu=tuple(value - level_hu for value in profile),
        deviation_hu=measures.ring_profile(change_hu, counted, place.distance_mm),
        band_hu2=measures.band_variances(image_hu, place.label, spacing),
    )


def write_tumors(path: Path, rows: Sequence[tuple[str, TumorMeasures]]) -> None:
    """Write one line a tumour as CSV, under a temporary name first.

    Args:
        path: Where the file is to appear; replaced if it exists.
        rows: Name of the experiment and measures of every tumour.
    """
    with written_whole(path, overwrite=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["experiment", *_columns()])
        writer.writerows([[name, *map(_text, _flat(row))] for name, row in rows])


def _columns() -> list[str]:
    shells = [f"{int(edge + 1):+d}mm" for edge in measures.PROFILE_EDGES_MM[:-1]]
    bands = [f"{edge:g}_per_mm" for edge in measures.BAND_EDGES_PER_MM[:-1]]
    names = [field.name for field in fields(TumorMeasures) if field.name not in _TUPLES]
    extra = [f"{name}_{part}" for name, parts in zip(_TUPLES, (shells, shells, bands), strict=True) for part in parts]
    return [*names, "highpass_ratio", "ring_depth_hu", *extra]


def _flat(row: TumorMeasures) -> list[object]:
    plain = [getattr(row, field.name) for field in fields(TumorMeasures) if field.name not in _TUPLES]
    return [*plain, row.highpass_ratio, row.ring_depth_hu, *row.profile_hu, *row.deviation_hu, *row.band_hu2]


def _text(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    return value


def _visibility(place: Place, inside_hu: NDArray[np.floating], host_hu: NDArray[np.floating]) -> float:
    low_mm, high_mm = RING_MM
    ring = place.organ & (place.distance_mm > low_mm) & (place.distance_mm <= high_mm)
    return float(measure_visibility(inside_hu, host_hu[ring]).is_visible)


def _beyond_rim(place: Place, change_hu: NDArray[np.floating]) -> float:
    """Largest absolute change farther from the drawn label than the rim and a voxel's diagonal, in HU."""
    distance_mm = place.distance_mm
    if not np.array_equal(place.drawn, place.label):
        distance_mm = signed_distance_mm(place.drawn, place.scan.spacing_mm)
    diagonal_mm = math.sqrt(sum(step**2 for step in place.scan.spacing_mm))
    beyond = distance_mm > rim_width_mm(place.spec.radius_mm) + diagonal_mm
    return float(np.abs(change_hu[beyond]).max()) if beyond.any() else math.nan
