"""One tumour of a mask: where it is, how large, and which are too small."""

import numpy as np
import pytest

from nnunet_difftumor.ct.components import (
    SMALLEST_COMPONENT_VOXELS,
    equivalent_diameter_mm,
    equivalent_radius_mm,
    find_tumors,
    number_within_box,
)

SPACING_MM = (5.0, 1.0, 2.0)


@pytest.fixture
def mask():
    """Two voxels in line over a corner, a block of 12 and one of 8; nothing at the border of the scan."""
    mask = np.zeros((12, 14, 16), dtype=bool)
    mask[2, 3, 4] = mask[3, 4, 5] = True
    mask[7:9, 6:8, 9:12] = True
    mask[5:7, 10:12, 2:4] = True
    return mask


def test_tumors_are_found_where_they_lie_in_the_scan(mask):
    small, large = find_tumors(mask, SPACING_MM)
    assert (small.start, small.stop) == ((5, 10, 2), (7, 12, 4))
    assert (large.start, large.stop) == ((7, 6, 9), (9, 8, 12))
    assert (small.volume_mm3, large.volume_mm3) == (80.0, 120.0)
    assert large.centre_mm(SPACING_MM) == pytest.approx([37.5, 6.5, 20.0])


def test_what_is_too_small_is_left_out_and_corners_connect(mask):
    assert SMALLEST_COMPONENT_VOXELS == 8
    first, *_ = find_tumors(mask, SPACING_MM, smallest_voxels=1)
    assert (first.start, first.stop, first.volume_mm3) == ((2, 3, 4), (4, 5, 6), 20.0)
    assert len(find_tumors(mask, SPACING_MM, smallest_voxels=9)) == 1


def test_a_mask_without_a_tumor_has_none():
    nothing = np.zeros((4, 5, 6), dtype=bool)
    assert find_tumors(nothing, SPACING_MM) == ()
    assert number_within_box(nothing)[2] == 0


def test_the_radius_is_that_of_the_sphere_of_equal_volume():
    assert equivalent_radius_mm(4 / 3 * np.pi * 6.0**3) == pytest.approx(6.0)
    assert equivalent_diameter_mm(4 / 3 * np.pi * 6.0**3) == pytest.approx(12.0)
