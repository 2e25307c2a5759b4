"""The edges of all annotated tumours of a scan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunet_difftumor.ct.boxes import widened
from nnunet_difftumor.ct.components import SMALLEST_COMPONENT_VOXELS, label_components
from nnunet_difftumor.tumor.edge_profile import REACH_MM, TumorEdge, measure_edge
from nnunet_difftumor.tumor.spec import Triple

_BESIDE_MM = 3.0


def edges_of_case(
    image_hu: NDArray[np.floating], tumors: NDArray[np.bool_], host: NDArray[np.bool_], spacing_mm: Triple
) -> Iterator[TumorEdge | None]:
    """Measure every tumour of a scan that has at least 8 voxels; None for one that cannot be (see `measure_edge`).

    Args:
        image_hu: The CT, or a part of it. Shape (D, H, W).
        tumors: All tumours, of which the 26-connected ones are one each. Shape (D, H, W).
        host: Tissue that they may be compared with: the organ. Shape (D, H, W).
    """
    numbers, _ = label_components(tumors)
    margin = margin_voxels(spacing_mm)
    for number, box in enumerate(find_objects(numbers), start=1):
        near = widened(box, margin, tumors.shape)
        tumor = numbers[near] == number
        if tumor.sum() >= SMALLEST_COMPONENT_VOXELS:
            yield measure_edge(image_hu[near], tumor, host[near] & ~tumors[near], spacing_mm)


def margin_voxels(spacing_mm: Triple) -> NDArray[np.int64]:
    """Voxels beside a tumour, (D, H, W), that its measurement looks at."""
    return np.ceil((REACH_MM + _BESIDE_MM) / np.asarray(spacing_mm)).astype(np.int64)
