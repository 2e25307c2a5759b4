"""Where the visible edge of real tumours lies against their outlines, measured on scans as they were annotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nnunet_difftumor.cases.known_cases import KnownCases
from nnunet_difftumor.ct.label_roles import LabelRoles
from nnunet_difftumor.ct.reading import read_ct, read_mask
from nnunet_difftumor.errors import ConfigurationError, list_some
from nnunet_difftumor.support.files.fact_cache import FactCache, stamp_of
from nnunet_difftumor.tumor.annotated_edges import edges_of_case
from nnunet_difftumor.tumor.edge_law import pool_edges
from nnunet_difftumor.tumor.edge_profile import TumorEdge

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics

_METHOD = 1  # another number, and what caches hold is measured again


def real_edge_law(
    images: Mapping[str, Path],
    label_files: Mapping[str, Path],
    roles: LabelRoles,
    known: KnownCases,
    cache: FactCache,
) -> tuple[EdgeStatistics, ...]:
    """Measure the edges of a fold's real tumours, by size, on the raw CTs of its training cases with tumours.

    Args:
        images, label_files: CT and label file of each case, on their raw grids.

    Raises:
        ConfigurationError: If a CT is not at hand, or no tumour can be measured.
    """
    missing = sorted(label_files.keys() - images.keys())
    if missing:
        raise ConfigurationError(
            f'edge is "fold", which is measured on raw CTs, but those of {len(missing)} training cases with tumours '
            f"are not in nnUNet_raw: {list_some(missing)}. Set the environment variable nnUNet_raw to where they lie, "
            'or "edge": "generator" or [offset_mm, width_mm].'
        )
    edges, patients = [], []
    for case in tqdm(sorted(label_files), "Measuring edges of tumours", leave=False, delay=3.0):
        values = (roles.tumor, *roles.tumor_parts)
        fact = f"edges {_METHOD} of {values} in {roles.organ} of {stamp_of(images[case])}"
        measure = partial(_measure_as_json, images[case], label_files[case], roles)
        found = cache.get_or_compute(label_files[case], fact, measure)
        edges += [TumorEdge(**each) for each in found]
        patients += [known.patient_of(case)] * len(found)
    cache.save()
    law = pool_edges(edges, patients, np.random.default_rng(0))  # the intervals alone depend on what is drawn
    if not law:
        raise ConfigurationError(
            f'edge is "fold", but none of the {len(label_files)} training cases with tumours has one of label '
            f"{roles.tumor}, of 8 voxels or more, that stands out against label {roles.organ} beside it. Set "
            '"edge": "generator" or [offset_mm, width_mm].'
        )
    return law


def measure_case(image: Path, labels: Path, roles: LabelRoles) -> Sequence[TumorEdge | None]:
    """Measure all tumours of a case, of at least 8 voxels; None for one without tissue of the organ beside it."""
    ct = read_ct(image)
    values = read_mask(labels, ct)
    tumors = np.isin(values, (roles.tumor, *roles.tumor_parts))
    return list(edges_of_case(ct.image_hu, tumors, values == roles.organ, ct.spacing_mm))


def _measure_as_json(image: Path, labels: Path, roles: LabelRoles) -> list[dict[str, Any]]:
    return [asdict(edge) for edge in measure_case(image, labels, roles) if edge is not None]
