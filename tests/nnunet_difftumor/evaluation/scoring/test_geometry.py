"""Surfaces, diameters, components and pairs on shapes whose answers can be worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.evaluation.scoring.components import (
    axial_diameter_mm,
    find_components,
    match_components,
    panoptic_quality,
)
from nnunet_difftumor.evaluation.scoring.rules import SIZE_BINS_MM, ScoringRules, bin_of
from nnunet_difftumor.evaluation.scoring.surfaces import element_areas_mm2, surface_agreement

MM = (1.0, 1.0, 1.0)
ALL = ScoringRules(smallest_voxels=1, smallest_mm3=0.0)
DEFAULT = ScoringRules()


def box(shape, *slices):
    mask = np.zeros(shape, dtype=bool)
    for part in slices:
        mask[part] = True
    return mask


# ---------------------------------------------------------------------------------------------- surface elements


def test_area_of_a_flat_element_is_the_face_of_a_voxel():
    areas = element_areas_mm2((5.0, 0.7, 0.9))
    assert areas[0b00001111] == pytest.approx(0.7 * 0.9)  # four voxels of the lower slice
    assert areas[0b01010101] == pytest.approx(5.0 * 0.7)  # four voxels of the left column
    assert areas[0] == areas[255] == 0.0


def test_area_of_a_single_voxel_is_eight_corner_triangles():
    assert element_areas_mm2(MM)[1] == pytest.approx(math.sqrt(3) / 8)  # triangle between three edge midpoints


def test_a_neighbourhood_and_its_complement_have_one_surface():
    areas = element_areas_mm2((3.0, 0.8, 0.6))
    np.testing.assert_array_equal(areas, areas[::-1])


# --------------------------------------------------------------------------------------- normalised surface distance


def test_neighbouring_voxels_share_half_of_their_corners():
    first, second = box((1, 1, 2), np.s_[0, 0, 0]), box((1, 1, 2), np.s_[0, 0, 1])
    assert surface_agreement(first, second, (1.0, 1.0, 3.0), (1.0, 2.0)) == (0.5, 0.5)
    assert surface_agreement(first, second, (1.0, 1.0, 1.5), (1.0, 2.0)) == (0.5, 1.0)


@pytest.mark.parametrize("spacing_mm", [1.4, 0.4, 0.1, 0.7])
def test_a_surface_exactly_at_the_tolerance_agrees(spacing_mm):
    """Rounding of 0.1 + 0.1 + ... must not decide: slabs whose faces lie exactly 2.8 mm apart."""
    steps = round(2.8 / spacing_mm)
    first, second = box((1, 1, 60), np.s_[:, :, :30]), box((1, 1, 60), np.s_[:, :, : 30 - steps])
    beside = (100.0, 100.0, spacing_mm)
    assert surface_agreement(first, second, beside, (2.8,))[0] == pytest.approx(1.0)
    assert surface_agreement(first, second, beside, (2.8 - spacing_mm / 2,))[0] < 1.0


def test_a_plate_one_voxel_too_large_by_hand():
    """5 x 1 against 4 x 1 voxels of 1 x 1 x 3 mm: the end face with its four corners is 3 mm away."""
    first, second = box((1, 1, 5), np.s_[0, 0, :5]), box((1, 1, 5), np.s_[0, 0, :4])
    areas = element_areas_mm2((1.0, 1.0, 3.0))
    corner, edge = areas[1], areas[0b11]  # one voxel; two voxels side by side along the last axis
    inside = (4 * corner + 3 * 4 * edge) + (4 * corner + 3 * 4 * edge)  # common elements, counted for each
    moved = 4 * edge + 4 * corner  # of the longer one: an edge at 4 where the shorter has its end, and its own end
    total = inside + moved + 4 * corner
    agreeing = total - 4 * corner  # only the longer one's own end is far from the other surface
    assert surface_agreement(first, second, (1.0, 1.0, 3.0), (2.0,))[0] == pytest.approx(agreeing / total)


def test_empty_masks():
    empty, voxel = box((2, 2, 2)), box((2, 2, 2), np.s_[0, 0, 0])
    assert all(math.isnan(value) for value in surface_agreement(empty, empty, MM, (1.0, 2.0)))
    assert surface_agreement(empty, voxel, MM, (1.0, 2.0)) == (0.0, 0.0)
    assert surface_agreement(voxel, empty, MM, (1.0, 2.0)) == (0.0, 0.0)


def test_a_mask_cut_by_the_border_has_a_surface_there():
    whole = np.ones((3, 3, 3), dtype=bool)
    inside = box((3, 3, 3), np.s_[1, 1, 1])
    assert surface_agreement(whole, whole, MM, (1.0,)) == (1.0,)
    assert surface_agreement(whole, inside, MM, (0.5,)) == (0.0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(0, 4)] * 6))
def test_more_room_around_the_masks_changes_nothing(seed, room):
    rng = np.random.default_rng(seed)
    masks = [rng.random((4, 5, 6)) < 0.4 for _ in range(2)]
    wider = [np.pad(mask, np.array(room).reshape(3, 2)) for mask in masks]
    spacing_mm = tuple(rng.uniform(0.5, 3.0, 3).tolist())
    expected = surface_agreement(masks[0], masks[1], spacing_mm, (1.0, 2.0))
    assert surface_agreement(wider[0], wider[1], spacing_mm, (1.0, 2.0)) == pytest.approx(expected, nan_ok=True)


# ------------------------------------------------------------------------------------------------------- diameters


def test_equivalent_diameter_of_a_sphere():
    assert equivalent_diameter_mm(4.0 / 3.0 * math.pi * 5.0**3) == pytest.approx(10.0)
    assert equivalent_diameter_mm(14.0) == pytest.approx(3.0, abs=0.01)  # the speck limit


def test_a_row_of_voxels_is_as_long_as_its_voxels():
    row = box((3, 4, 12), np.s_[1, 2, 2:9])
    assert axial_diameter_mm(row, (5.0, 0.7, 0.8), axial_axis=0) == pytest.approx(7 * 0.8)
    assert axial_diameter_mm(row, (5.0, 0.7, 0.8), axial_axis=2) == pytest.approx(5.0)  # a slice has one voxel of 5 mm


def test_a_slanted_diameter_runs_between_the_middles_of_outer_faces():
    pair = box((1, 4, 5), np.s_[0, 0, 0], np.s_[0, 3, 4])
    assert axial_diameter_mm(pair, MM, axial_axis=0) == pytest.approx(math.hypot(3, 4 + 1))


def test_the_diameter_stays_within_one_slice():
    apart = box((2, 1, 9), np.s_[0, 0, 0:3], np.s_[1, 0, 7:9])
    assert axial_diameter_mm(apart, MM, axial_axis=0) == 3.0


def test_the_longest_slice_counts_although_another_has_more_voxels():
    mask = box((2, 9, 9), np.s_[0, 0:4, 0:4], np.s_[1, 0, :])
    assert axial_diameter_mm(mask, MM, axial_axis=0) == 9.0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_axial_diameter_is_the_largest_over_all_pairs_of_outer_faces(seed, axis):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 5, 6)) < rng.uniform(0.02, 0.5)
    spacing_mm = rng.uniform(0.5, 3.0, 3)
    longest = 0.0
    for section in np.moveaxis(mask, axis, 0):
        in_plane = np.delete(spacing_mm, axis)
        centres = np.argwhere(section) * in_plane
        faces = [centres + sign * step * in_plane / 2 for step in np.eye(2) for sign in (-1, 1)]
        points = np.concatenate(faces)
        # a line between faces of different axes is the mean of two lines between like faces, so never the longest
        for axis_points in (points[: 2 * len(centres)], points[2 * len(centres) :]):
            apart = axis_points[:, None] - axis_points[None]
            longest = max(longest, float(np.hypot(*np.moveaxis(apart, -1, 0)).max(initial=0.0)))
    assert axial_diameter_mm(mask, spacing_mm.tolist(), axis) == pytest.approx(longest)


@pytest.mark.parametrize(
    ("diameter_mm", "name"),
    [(0.1, "<10 mm"), (9.99, "<10 mm"), (10.0, "10-20 mm"), (20.0, "20-50 mm"), (50.0, ">=50 mm"), (400.0, ">=50 mm")],
)
def test_a_size_bin_holds_its_lower_end(diameter_mm, name):
    assert bin_of(diameter_mm, SIZE_BINS_MM) == name


# ------------------------------------------------------------------------------------------------------ components


def test_voxels_that_share_a_corner_are_one_tumor():
    diagonal = box((4, 4, 4), np.s_[0, 0, 0], np.s_[1, 1, 1], np.s_[3, 3, 3])
    assert find_components(diagonal, 1.0, ALL).voxels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("voxels", "voxel_mm3", "does_count"),
    [(7, 10.0, False), (8, 10.0, True), (13, 1.0, False), (14, 1.0, True), (8, 1.75, True), (8, 1.7, False)],
)
def test_specks_are_below_8_voxels_or_14_mm3(voxels, voxel_mm3, does_count):
    components = find_components(box((1, 1, 20), np.s_[0, 0, :voxels]), voxel_mm3, DEFAULT)
    assert len(components) == int(does_count)
    assert set(np.unique(components.numbers)) == {0, 1 if does_count else -1}


def test_numbers_skip_specks():
    mask = box((1, 1, 60), np.s_[0, 0, 0:20], np.s_[0, 0, 25:27], np.s_[0, 0, 30:50])
    components = find_components(mask, 1.0, DEFAULT)
    assert components.numbers[0, 0, [0, 25, 30]].tolist() == [1, -1, 2]
    assert components.voxels.tolist() == [20, 20]


def test_ignored_voxels_join_the_parts_of_a_prediction_and_do_not_count():
    mask = box((1, 1, 40), np.s_[0, 0, 0:40])
    ignored = box((1, 1, 40), np.s_[0, 0, 10:20])
    components = find_components(mask, 1.0, ALL, ignored)
    assert components.voxels.tolist() == [30]
    assert components.is_mostly_ignored.tolist() == [False]
    half = find_components(mask, 1.0, ALL, box((1, 1, 40), np.s_[0, 0, 0:20]))
    assert half.is_mostly_ignored.tolist() == [True]


# --------------------------------------------------------------------------------------------------------- pairing


def pair(reference, prediction, smallest_iou=0.1, rules=ALL):
    return match_components(
        find_components(reference, 1.0, rules), find_components(prediction, 1.0, rules), smallest_iou
    )


def line(*parts):
    return box((1, 1, 400), *[np.s_[0, 0, first:last] for first, last in parts])


def test_an_overlap_of_exactly_a_tenth_is_a_pair():
    exactly = pair(line((0, 55)), line((45, 100)))  # 10 of 100
    assert exactly.iou.tolist() == [[0.1]]
    assert exactly.match_of_reference.tolist() == [0]
    below = pair(line((0, 55)), line((45, 101)))
    assert below.match_of_reference.tolist() == [-1]
    assert below.iou.any(axis=1).tolist() == [True]


def test_one_prediction_over_two_tumors_finds_the_one_it_overlaps_more():
    found = pair(line((0, 10), (12, 42)), line((0, 42)))
    assert found.match_of_reference.tolist() == [-1, 0]
    assert found.iou.any(axis=1).tolist() == [True, True]


def test_a_second_prediction_in_a_tumor_has_no_pair():
    found = pair(line((0, 30)), line((0, 10), (12, 30)))
    assert found.match_of_prediction.tolist() == [-1, 0]
    assert found.iou.any(axis=0).tolist() == [True, True]


def test_the_sum_of_overlaps_decides_not_their_number():
    """0.5 alone beats 0.2 and 0.17 together; rules that count pairs first would take the two."""
    reference, prediction = line((0, 60), (70, 80)), line((0, 12), (20, 80))
    found = pair(reference, prediction)
    assert found.iou[0, 1] > found.iou[0, 0] + found.iou[1, 1]
    assert found.iou[1, 1] >= 0.1
    assert found.match_of_reference.tolist() == [1, -1]
    swapped = pair(line((0, 20), (25, 55)), line((0, 18), (19, 55)))
    assert swapped.match_of_reference.tolist() == [0, 1]


def test_predictions_on_specks_are_told():
    found = pair(line((0, 5), (30, 60)), line((0, 20), (40, 60), (80, 100)), rules=DEFAULT)
    assert found.touches_speck.tolist() == [True, False, False]
    assert found.match_of_prediction.tolist() == [-1, 0, -1]


def test_nothing_on_one_side():
    nothing, something = line(), line((0, 20))
    assert pair(nothing, something).match_of_prediction.tolist() == [-1]
    assert pair(something, nothing).iou.any(axis=1).tolist() == [False]
    assert pair(nothing, nothing).iou.shape == (0, 0)


def test_panoptic_quality_by_hand():
    assert panoptic_quality(np.array([0.8, 0.4]), 3, 4) == pytest.approx(1.2 / (2 + 0.5 * 1 + 0.5 * 2))
    assert panoptic_quality(np.array([]), 0, 2) == 0.0
    assert math.isnan(panoptic_quality(np.array([]), 0, 0))


def test_rules_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="match_iou"):
        ScoringRules(match_iou=0.0)
    with pytest.raises(ConfigurationError, match="max, mean"):
        ScoringRules(confidence="median")
