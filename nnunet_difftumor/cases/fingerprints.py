"""Fingerprints of cases: the one definition that training, provenance and the leak guard share.

A CT is hashed as `read_ct` decodes it: float32 HU on the file's own grid, (D, H, W). A tumour mask is
hashed as `read_labels` decodes it, on the label file's own grid, so that a label map can be recognised
where its CT is not at hand (nnU-Net's gt_segmentations). Compression, stored type, slope and file format
do not change a hash; resampling, cropping and flipping do. Tumour prints survive those (see `tumor_prints`).
A hash has 64 hexadecimal digits. Files that cannot be used raise their named error, a `DiffTumorError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion.generator.provenance import hash_array, hash_tumor_mask
from diffusion.generator.tumor_print import TumorPrint
from nnunet_difftumor.cases.tumor_prints import take_tumor_prints
from nnunet_difftumor.ct.reading import place_labels, read_ct, read_labels
from nnunet_difftumor.errors import GeometryMismatchError


def hash_ct_file(path: Path) -> str:
    """Hash a CT file's decoded values."""
    return hash_array(read_ct(path).image_hu)


def hash_tumor_file(path: Path, tumor_values: Sequence[int]) -> str | None:
    """Hash the tumour mask of a label file, on its own grid; None if there is no tumour."""
    return hash_tumor_mask(np.isin(read_labels(path)[0], tumor_values))


def print_tumor_file(path: Path, tumor_values: Sequence[int], image_path: Path | None = None) -> tuple[TumorPrint, ...]:
    """Take the prints of a label file's tumours; none without a tumour.

    Args:
        image_path: The CT; without it, or if it lies on another grid, the surroundings are left out.
    """
    labels, geometry = read_labels(path)
    if image_path is not None and np.isin(labels, tumor_values).any():
        ct = read_ct(image_path)
        try:
            placed = place_labels(labels, geometry, path, ct)
        except GeometryMismatchError:
            pass  # a CT elsewhere says nothing about the tumour's surroundings: its shape alone is described
        else:
            return take_tumor_prints(np.isin(placed, tumor_values), ct.spacing_mm, ct.image_hu)
    return take_tumor_prints(np.isin(labels, tumor_values), geometry.spacing_mm)
