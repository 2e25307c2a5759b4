"""Sizes and numbers of a fold's real tumours, to draw synthetic ones from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from nnunet_difftumor.ct.components import SMALLEST_REAL_MM3, find_tumors
from nnunet_difftumor.ct.reading import read_labels
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.support.files.fact_cache import FactCache
from nnunet_difftumor.tumor.sizes import SizeClass

_SPREAD = 0.05


def real_size_classes(
    label_files: Sequence[Path], tumor_labels: Sequence[int], cache: FactCache
) -> tuple[SizeClass, ...]:
    """Make one size class for each real tumour, all as frequent: one tumour a sample, with radii 5% around its own.

    The label files are those of the training cases with tumours, on their raw grids.

    Raises:
        ConfigurationError: If no file has a tumour of at least 14 mm3.
    """
    radii = sorted(chain.from_iterable(_radii_of_cases(label_files, tumor_labels, cache)))
    if not radii:
        raise ConfigurationError(
            f'size_classes is "training_tumors", but none of the {len(label_files)} training cases with tumours has '
            f"one of label {tumor_labels[0]}. Give a list of size classes, or leave the setting out."
        )
    return tuple(
        SizeClass(name="real", radius_mm=((1 - _SPREAD) * radius, (1 + _SPREAD) * radius), probability=1.0)
        for radius in radii
    )


def real_tumor_counts(label_files: Sequence[Path], tumor_labels: Sequence[int], cache: FactCache) -> tuple[int, ...]:
    """Count the tumours of at least 14 mm3 of each case that has any (see `real_size_classes`)."""
    return tuple(len(radii) for radii in _radii_of_cases(label_files, tumor_labels, cache) if radii)


def _radii_of_cases(label_files: Sequence[Path], tumor_labels: Sequence[int], cache: FactCache) -> list[list[float]]:
    fact = "tumor_radii_mm_" + "_".join(str(value) for value in tumor_labels)
    found = [cache.get_or_compute(path, fact, partial(_measure_radii_mm, path, tumor_labels)) for path in label_files]
    cache.save()
    return found


def _measure_radii_mm(path: Path, tumor_labels: Sequence[int]) -> list[float]:
    labels, geometry = read_labels(path)
    tumors = find_tumors(np.isin(labels, tumor_labels), geometry.spacing_mm, smallest_voxels=1)
    return [tumor.radius_mm for tumor in tumors if tumor.volume_mm3 >= SMALLEST_REAL_MM3]
