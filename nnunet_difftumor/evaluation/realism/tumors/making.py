"""Making of tumours at their places: generate, bring onto the scan, blend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.resample import average_onto
from nnunet_difftumor.evaluation.realism.tumors.places import Place
from nnunet_difftumor.synthesis.blending import composite, limit_residual, robust_sd
from nnunet_difftumor.synthesis.tissue.interface import TissueGenerator
from nnunet_difftumor.tumor.region import RegionOfInterest

FloatArray = NDArray[np.float32]

REAL = "real"
GENERATED = "generated"
NO_RESIDUAL = "generated, no residual"
COPY_PASTE = "copy-paste"
NO_DIFFUSION = "no diffusion"
TEXTURED_FILL = "textured fill"
AUTOENCODER = "autoencoder"
METHODS = (REAL, GENERATED, NO_RESIDUAL, COPY_PASTE, NO_DIFFUSION, TEXTURED_FILL, AUTOENCODER)

_BATCH = 4
_ENOUGH_VOXELS = 20


@dataclass(frozen=True, eq=False)
class MadeTumor:
    """A tumour in its scan, real or made.

    Attributes:
        place: Where it is and what was requested.
        method: How it was made.
        draw: Number of the draw at this place.
        image_hu: The scan with the tumour, limited to the generator's window. Shape of the place's box.
    """

    place: Place
    method: str
    draw: int
    image_hu: FloatArray


@dataclass(frozen=True, eq=False)
class SmoothTissue:
    """Generated tissue on the scan's grid, before blending.

    Attributes:
        tumor_hu: Tumour in HU. Shape of the place's box.
        reconstruction_hu: Reconstruction of the host in HU. Same shape.
    """

    tumor_hu: FloatArray
    reconstruction_hu: FloatArray


def generate_tissue(places: Sequence[Place], tissue: TissueGenerator) -> list[SmoothTissue]:
    """Generate tissue for places, in batches of regions of one side.

    Args:
        places: Where to generate and what is requested.

    Returns:
        One item a place, in their order.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, place in enumerate(places):
        groups[place.roi.side].append(index)
    result: list[SmoothTissue | None] = [None] * len(places)
    for indices in groups.values():
        for start in range(0, len(indices), _BATCH):
            chosen = indices[start : start + _BATCH]
            batch = [places[index] for index in chosen]
            regions = tissue.generate(
                np.stack([place.roi.sample(place.scan.image_hu, place.scan.spacing_mm) for place in batch]),
                np.stack([place.roi_mask for place in batch]),
                [place.spec.appearance for place in batch],
                [place.spec.seed for place in batch],
            )
            for index, place, tumor_hu, reconstruction_hu in zip(
                chosen, batch, regions.tumor_hu, regions.reconstruction_hu, strict=True
            ):
                result[index] = SmoothTissue(
                    _onto_box(tumor_hu, place.roi, place), _onto_box(reconstruction_hu, place.roi, place)
                )
    return [item for item in result if item is not None]


def blend(place: Place, smooth: SmoothTissue, window_hu: tuple[float, float], *, has_residual: bool) -> FloatArray:
    """Blend tissue into tumour-free surroundings as `TumorSynthesizer` does.

    Args:
        window_hu: Window of the generator in HU.
        has_residual: Add the host's residual, its noise.

    Returns:
        The scan with the tumour, limited to the window. Shape of the place's box.
    """
    sd_hu = _residual_sd_hu(place, smooth, window_hu) if has_residual else 0.0
    blended = composite(place.host_hu, smooth.tumor_hu, smooth.reconstruction_hu, place.weight, sd_hu, window_hu)
    return np.clip(blended, *window_hu)


def blend_in_place(
    place: Place, smooth: SmoothTissue, window_hu: tuple[float, float], borrowed_hu: FloatArray | None
) -> FloatArray:
    """Replace a real tumour: inside the label nothing of it is left, its rim is blended with the scan.

    Args:
        place: Where to blend; its weight is 1 inside the label.
        window_hu: Window of the generator in HU.
        borrowed_hu: Residual of tumour-free tissue that stands in for the tumour's own; None adds none.
            Shape of the place's box.

    Returns:
        The scan with the tumour, limited to the window. Shape of the place's box.
    """
    host_hu = np.clip(place.host_hu, *window_hu)
    residual_hu = np.zeros_like(host_hu)
    if borrowed_hu is not None:
        sd_hu = _residual_sd_hu(place, smooth, window_hu)
        own_hu = limit_residual(host_hu - smooth.reconstruction_hu, place.weight, sd_hu)
        residual_hu = np.where(place.label, borrowed_hu, own_hu)
    blended = (1.0 - place.weight) * host_hu + place.weight * (smooth.tumor_hu + residual_hu)
    return np.clip(np.where(place.weight > 0, blended, host_hu), *window_hu).astype(np.float32)


def _residual_sd_hu(place: Place, smooth: SmoothTissue, window_hu: tuple[float, float]) -> float:
    residual_hu = np.clip(place.host_hu, *window_hu) - smooth.reconstruction_hu
    enough = int(place.organ.sum()) >= _ENOUGH_VOXELS
    return robust_sd(residual_hu[place.organ]) if enough else robust_sd(residual_hu)


def _onto_box(region_hu: FloatArray, roi: RegionOfInterest, place: Place) -> FloatArray:
    """Average a region over the scan's voxels of a place's box."""
    start = np.array([part.start for part in place.box])
    offset_mm = start * np.asarray(place.scan.spacing_mm) - np.asarray(roi.start_mm)
    roi_mm = (roi.spacing_mm,) * 3
    return average_onto(region_hu, roi_mm, place.label.shape, place.scan.spacing_mm, offset_mm)
