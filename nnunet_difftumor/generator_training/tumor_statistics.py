"""Contrast, heterogeneity and edges of the tumours that a generator learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from autoencoder.intensity import ABDOMEN_WINDOW, IntensityWindow
from diffusion.conditioning import CONTRAST_LIMIT_HU, SOFT_TISSUE_LOW_HU, measure_heterogeneity
from diffusion.generator.info import EdgeStatistics, TrainingTumor
from diffusion.texture import solid_part
from nnunet_difftumor.cases.known_cases import NOTHING_KNOWN, KnownCases
from nnunet_difftumor.ct.components import TumorComponent
from nnunet_difftumor.generator_training import SPACING_RANGE_MM
from nnunet_difftumor.generator_training.batches import usable_tumors
from nnunet_difftumor.generator_training.crop_cache import CachedCase, copy_box
from nnunet_difftumor.generator_training.crops import centred_tumor_crop, read_component, rim_of, sample_tumor_crop
from nnunet_difftumor.tumor.annotated_edges import margin_voxels
from nnunet_difftumor.tumor.edge import Edge, of_size
from nnunet_difftumor.tumor.edge_law import pool_edges
from nnunet_difftumor.tumor.edge_profile import TumorEdge, measure_edge
from nnunet_difftumor.tumor.rim import signed_distance_mm

_SIDE = 48
_SMALLEST_SOFT_SHARE = 0.1
_MOST_TUMORS = 1000
_SHARE_IN_MIDDLE = 0.9
_FEWEST_VOXELS = 8


def measure_training_tumors(
    cases: Sequence[CachedCase],
    *,
    early_only: bool = False,
    window: IntensityWindow = ABDOMEN_WINDOW,
    finest_mm: float = SPACING_RANGE_MM[0],
    edges: Sequence[EdgeStatistics] = (),
) -> tuple[TrainingTumor, ...]:
    """Measure the tumours that train, on the grid on which the generator would make them.

    The contrast is the depth, that of the tumour's middle: of the voxels so deep in the label that the edge's share of
    tumour tissue is 0.9 and more, or, without a law of the edge or where it leaves too few, of its inner half. It is
    against soft tissue (above -30 HU) of the rim: synthetic tumours are placed in an organ, and one measured against
    fat would be 100 HU off there. Tumours with hardly any are left out. Other tumours nearby belong neither to the
    tumour nor to its rim. Nor does fat or air under the edge of a label that reaches too far (see `solid_part`): it
    made muscle-like tumours dark and smooth ones mottled.

    Args:
        early_only: Only tumours with a radius of at most 10 mm.
        window: HU window of the generator; values outside are limited to it.
        finest_mm: Finest spacing of the generator in mm.
        edges: Where the visible edges of these tumours lie, by size.

    Returns:
        One record for each tumour that could be measured, of at most 1000 spread evenly over the cases.

    Raises:
        MissingLabelError: If there is no tumour.
    """
    chosen = _spread_evenly(cases, early_only=early_only)
    measured = [_measure(case, tumor, window, finest_mm, edges) for case, tumor in chosen]
    return tuple(record for record in measured if record is not None)


def measure_training_edges(
    cases: Sequence[CachedCase], *, early_only: bool = False, known: KnownCases = NOTHING_KNOWN
) -> tuple[EdgeStatistics, ...]:
    """Measure where the visible edge of the same tumours lies against their outlines, on the CTs' own grids.

    The host is the label that borders most on the tumour; where none does, what is not labelled.

    Args:
        known: Which cases are scans of one patient.
    """
    edges, patients = [], []
    for case, tumor in _spread_evenly(cases, early_only=early_only):
        edge = _measure_edge(case, tumor)
        if edge is not None:
            edges.append(edge)
            patients.append(known.patient_of(case.identifier))
    return pool_edges(edges, patients, np.random.default_rng(0))  # the intervals alone depend on what is drawn


def _spread_evenly(cases: Sequence[CachedCase], *, early_only: bool) -> list[tuple[CachedCase, TumorComponent]]:
    pairs = [(case, tumor) for case, tumors in usable_tumors(cases, early_only=early_only) for tumor in tumors]
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), _MOST_TUMORS)).round().astype(int))
    return [pairs[index] for index in chosen]


def _measure_edge(case: CachedCase, tumor: TumorComponent) -> TumorEdge | None:
    margin = margin_voxels(case.spacing_mm)
    start, stop = np.maximum(tumor.start - margin, 0), np.minimum(tumor.stop + margin, case.shape)
    labels = case.read_label_box(start, stop)
    alone = copy_box(read_component(case, tumor), start, stop, outside=0, first=tumor.start) > 0
    near = np.asarray(binary_dilation(alone, iterations=2), dtype=bool)
    around = labels[near & ~np.isin(labels, (0, *case.tumor_values))]
    host = np.bincount(around).argmax() if (around > 0).any() else 0
    return measure_edge(case.read_box(start, stop).astype(np.float32), alone, labels == host, case.spacing_mm)


def _measure(
    case: CachedCase,
    tumor: TumorComponent,
    window: IntensityWindow,
    finest_mm: float,
    edges: Sequence[EdgeStatistics],
) -> TrainingTumor | None:
    crop, mask = sample_tumor_crop(centred_tumor_crop(case, tumor, _SIDE, finest_mm), tumor, alone=True)
    image_hu = np.clip(crop.image_hu(), window.low_hu, window.high_hu)
    other_tumors = crop.tumor_share() > crop.share_of(tumor)
    rim_hu = image_hu[rim_of(mask) & ~other_tumors]
    soft_hu = rim_hu[rim_hu > SOFT_TISSUE_LOW_HU]
    if soft_hu.size < _SMALLEST_SOFT_SHARE * max(rim_hu.size, 1):
        return None
    solid = solid_part(image_hu, mask)
    batched = torch.from_numpy(solid)[None, None]
    middle = _middle(mask, solid, crop.spacing_mm, _edge_of(edges, tumor.radius_mm))
    depth_hu = image_hu[middle].mean() - np.median(soft_hu)
    return TrainingTumor(
        radius_mm=tumor.radius_mm,
        contrast_hu=float(np.clip(depth_hu, -CONTRAST_LIMIT_HU, CONTRAST_LIMIT_HU)),
        heterogeneity_hu=float(measure_heterogeneity(torch.from_numpy(image_hu)[None, None], batched)[0]),
    )


def _middle(
    mask: NDArray[np.bool_], solid: NDArray[np.bool_], spacing_mm: float, edge: Edge | None
) -> NDArray[np.bool_]:
    """The solid voxels of a mask that hold hardly any of the host's tissue; never empty where there is a solid one."""
    depth_mm = -signed_distance_mm(mask, (spacing_mm,) * 3)
    if edge is not None:
        middle = solid & (edge.share(-depth_mm) >= _SHARE_IN_MIDDLE)
        if middle.sum() >= _FEWEST_VOXELS:
            return middle
    return solid & (depth_mm >= np.median(depth_mm[solid]))


def _edge_of(edges: Sequence[EdgeStatistics], radius_mm: float) -> Edge | None:
    """The mean edge of tumours of a radius, as far as they have room for it (see `draw_edge`)."""
    own = of_size(edges, radius_mm)
    return own and Edge(offset_mm=own.offset_mm, width_mm=own.width_mm).limited_to(radius_mm)
