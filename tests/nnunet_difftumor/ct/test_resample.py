from __future__ import annotations

import numpy as np
import pytest

from nnunet_difftumor.ct.resample import AIR_HU, average_onto, interpolation_matrix, resample


def test_same_grid_returns_the_same_values():
    volume = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    result = resample(volume, (2.0, 1.0, 0.5), volume.shape, (2.0, 1.0, 0.5), (0.0, 0.0, 0.0))
    np.testing.assert_allclose(result, volume, atol=2e-3)


@pytest.mark.parametrize("target_spacing_mm", [0.4, 1.0, 2.7])
def test_a_linear_ramp_is_kept_at_any_spacing(target_spacing_mm: float):
    depth = np.arange(40, dtype=np.float32) * 1.3
    volume = np.broadcast_to(depth[:, None, None], (40, 4, 4)).copy()
    start_mm = 12.0
    result = resample(volume, (1.3, 1.0, 1.0), (6, 1, 1), (target_spacing_mm, 1.0, 1.0), (start_mm, 1.0, 1.0))
    expected = start_mm + np.arange(6) * target_spacing_mm
    tolerance = 1e-3 if target_spacing_mm <= 1.3 else 0.2
    np.testing.assert_allclose(result[:, 0, 0], expected, atol=tolerance)


def test_outside_the_volume_is_air():
    volume = np.full((4, 4, 4), 50.0, dtype=np.float32)
    result = resample(volume, (1, 1, 1), (4, 4, 4), (1, 1, 1), (-10.0, 0.0, 0.0))
    assert (result == AIR_HU).all()


def test_constant_inside_stays_constant():
    volume = np.full((20, 20, 20), 37.0, dtype=np.float32)
    result = resample(volume, (1, 1, 1), (4, 4, 4), (2.0, 3.0, 0.5), (5.0, 5.0, 5.0))
    np.testing.assert_allclose(result, 37.0, atol=1e-3)


def test_coarser_sampling_removes_what_it_cannot_show():
    matrix = interpolation_matrix(64, 1.0, 16, 4.0, 0.0)
    checkerboard = np.where(np.arange(64) % 2 == 0, 1.0, -1.0)
    assert np.abs(matrix[2:-2] @ checkerboard).max() < 0.05


def test_averaging_over_thick_slices_loses_contrast_as_a_scanner_does():
    fine = np.zeros((60, 3, 3), dtype=np.float32)
    fine[29:32] = 100.0  # 3 mm thick plate at 1 mm
    thick = average_onto(fine, (1, 1, 1), (12, 3, 3), (5.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert thick.max() == pytest.approx(60.0, abs=10.0)
    assert thick[:, 1, 1].sum() * 5.0 == pytest.approx(300.0, abs=15.0)


def test_a_volume_can_go_on_beyond_its_faces():
    volume = np.linspace(10.0, 40.0, 4, dtype=np.float32)[:, None, None] * np.ones((1, 3, 3), dtype=np.float32)
    result = resample(volume, (1, 1, 1), (9, 3, 3), (1, 1, 1), (-3.0, -1.0, 2.0), fill_value=None)
    np.testing.assert_allclose(result[:, 0, 0], [10, 10, 10, 10, 20, 30, 40, 40, 40], atol=1e-4)
    np.testing.assert_allclose(result, np.broadcast_to(result[:, :1, :1], result.shape), atol=1e-4)


@pytest.mark.parametrize("spacing_mm", [0.5, 1.0])
def test_a_volume_of_whole_voxels_ends_half_a_voxel_beyond_their_centres(spacing_mm: float):
    volume = np.linspace(10.0, 40.0, 4, dtype=np.float32)[:, None, None] * np.ones((1, 3, 3), dtype=np.float32)
    places_mm = (-5.0, -1.9, -0.9, 0.0, 6.0, 6.9, 8.1, 20.0)  # voxel centres at 0, 2, 4 and 6 mm
    sampled = [
        resample(
            volume, (2, 1, 1), (1, 1, 1), (spacing_mm, 1, 1), (place_mm, 1.0, 1.0), fill_value=0.0, whole_voxels=True
        ).item()
        for place_mm in places_mm
    ]
    assert sampled == pytest.approx([0.0, 10 * 0.05, 10.0, 10.0, 40.0, 40.0, 0.0, 0.0], abs=1e-4)


@pytest.mark.parametrize("spacing_mm", [0.7, 0.8, 1.1, 1.5])
def test_rounding_does_not_decide_what_lies_at_the_very_end_of_a_scan(spacing_mm: float):
    """A crop of the scan's own spacing and an even side has samples exactly half a voxel beyond the outer centres."""
    for centre in range(15):
        start_mm = centre * spacing_mm - 0.5 * 31 * spacing_mm
        matrix = interpolation_matrix(40, spacing_mm, 32, spacing_mm, start_mm, continues_mm=0.5 * spacing_mm)
        assert matrix.sum(axis=1) == pytest.approx([0.0] * (15 - centre) + [1.0] * (17 + centre))
