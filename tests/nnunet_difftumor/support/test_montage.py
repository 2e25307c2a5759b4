"""Pictures show the planes of the patient, however the file orders its axes."""

from itertools import permutations, product

import numpy as np
import pytest

from nnunet_difftumor.support.pictures.montage import display_spacing_mm, draw_montage, make_row, turn_to_display

PATIENT = np.random.default_rng(0).normal(size=(3, 4, 5))  # superior to inferior, anterior to posterior, right to left
STEPS_MM = np.array([5.0, 0.8, 0.7])
TOWARDS = -np.eye(3)[::-1]  # of these axes, in right-anterior-superior ones, one a column


@pytest.mark.parametrize("axes", permutations(range(3)))
@pytest.mark.parametrize("signs", product((1, -1), repeat=3))
def test_a_picture_is_the_same_for_every_order_of_axes(axes, signs):
    stored = PATIENT.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = (TOWARDS * STEPS_MM)[:, axes] * signs
    assert np.array_equal(turn_to_display(stored, affine), PATIENT)
    assert display_spacing_mm(affine) == pytest.approx(STEPS_MM)


def test_a_slightly_turned_scan_goes_to_the_nearest_planes():
    affine = np.eye(4)
    affine[:3, :3] = TOWARDS * STEPS_MM
    affine[0, 1] = 0.2
    assert np.array_equal(turn_to_display(PATIENT, affine), PATIENT)


@pytest.mark.parametrize("axis", range(3))
def test_a_scan_of_one_slice_shows_one_plane_only(axis, tmp_path):
    shape = np.insert([20, 24], axis, 1)
    label = np.zeros(shape, bool)
    label[tuple(np.where(shape == 1, 0, 10))] = True
    affine = np.eye(4)
    affine[:3, :3] = TOWARDS * STEPS_MM
    figure = draw_montage([make_row((np.zeros(shape), np.ones(shape), label), affine, "a tumour")], "One slice")
    visible = [index for index, each in enumerate(figure.axes) if each.get_visible()]
    assert visible == [3 * axis, 3 * axis + 1, 3 * axis + 2]
    assert figure.axes[3 * axis].get_ylabel() == "a tumour"
    figure.savefig(tmp_path / "montage.png")
