"""Large bright vessels of an organ, found in the image where no label shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter

from nnunet_difftumor.ct.boxes import box_of
from nnunet_difftumor.ct.components import label_components

_SMOOTHING_MM = 1.5
_QUARTILE_SD = 0.6745
_OUTLINE, _CORE = (10.0, 2.0), (18.0, 4.5)
"""A vessel's smoothed voxels, and some of them at least, exceed the organ's median by so many HU and sd."""
_SMALLEST_MM3 = 120.0
_SHORTEST_MM = 8.0
_ENOUGH_VOXELS = 100


def find_vessels(
    image_hu: NDArray[np.floating], organ_mask: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> NDArray[np.bool_]:
    """Find veins of about 4 mm and more that are brighter than their organ by more than its noise and texture.

    The organ is smoothed by 1.5 mm, nothing beside it included. A vessel is a connected part of at least 120 mm3 and
    8 mm length, 10 HU and 2 standard deviations above the organ's median, in places 18 HU and 4.5: nothing in an
    unenhanced scan. The standard deviation is that of the smoothed organ by its quartiles, of the side that vessels or
    tumours widen less.

    Args:
        image_hu: A scan or a box of one. Shape (D, H, W).
        organ_mask: True in the organ. Same shape.

    Returns:
        True in vessels; nowhere with fewer than 100 voxels of organ. Same shape.
    """
    found = np.zeros(organ_mask.shape, dtype=bool)
    if np.count_nonzero(organ_mask) < _ENOUGH_VOXELS:
        return found
    box = box_of(organ_mask)
    organ, spacing = organ_mask[box], np.asarray(spacing_mm, dtype=np.float64)
    values_hu = image_hu[box][organ]
    smooth_hu = np.full(organ.shape, np.median(values_hu), dtype=np.float32)
    smooth_hu[organ] = values_hu
    smooth_hu = gaussian_filter(smooth_hu, _SMOOTHING_MM / spacing, truncate=2.0)
    low, middle, high = np.percentile(smooth_hu[organ], (25.0, 50.0, 75.0))
    sd_hu = min(middle - low, high - middle) / _QUARTILE_SD
    outline_hu, core_hu = (middle + max(hu, factor * sd_hu) for hu, factor in (_OUTLINE, _CORE))

    numbers, count = label_components((smooth_hu > outline_hu) & organ)
    sizes_mm3 = np.bincount(numbers.ravel(), minlength=count + 1) * float(np.prod(spacing))
    is_vessel = sizes_mm3 >= _SMALLEST_MM3
    is_vessel &= np.bincount(numbers[smooth_hu > core_hu], minlength=count + 1) > 0
    for number, part in enumerate(find_objects(numbers), start=1):
        length_mm = np.linalg.norm([(axis.stop - axis.start) * mm for axis, mm in zip(part, spacing, strict=True)])
        is_vessel[number] &= length_mm >= _SHORTEST_MM
    is_vessel[0] = False
    found[box] = is_vessel[numbers]
    return found
