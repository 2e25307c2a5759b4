from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_difftumor.evaluation.realism.measures import textures as measures
from nnunet_difftumor.tumor.rim import ring_level_hu, signed_distance_mm

SPACING = (2.0, 2.0, 2.0)


def ball(side: int, radius_mm: float) -> np.ndarray:
    grid = (np.indices((side,) * 3) - (side - 1) / 2) * 2.0
    return np.linalg.norm(grid, axis=0) <= radius_mm


def test_a_constant_has_no_texture_whatever_lies_outside():
    image = np.full((20, 20, 20), -900.0, dtype=np.float32)
    mask = ball(20, 12.0)
    image[mask] = 40.0
    low, high = measures.split_texture(image, mask, SPACING)
    assert low == pytest.approx(0.0, abs=1e-3)
    assert high == pytest.approx(0.0, abs=1e-3)


def test_white_noise_is_mostly_high_pass_and_a_slow_wave_low_pass():
    mask = np.ones((32, 32, 32), dtype=bool)
    noise = np.random.default_rng(0).normal(0.0, 10.0, mask.shape)
    low, high = measures.split_texture(noise, mask, SPACING)
    assert low < 2.0
    assert high == pytest.approx(10.0, rel=0.05)
    wave = 10.0 * np.sin(2 * np.pi * np.arange(32) / 32)[:, None, None] + np.zeros(mask.shape)  # 64 mm long
    low, high = measures.split_texture(wave, mask, SPACING)
    assert low == pytest.approx(10.0 / math.sqrt(2), rel=0.08)
    assert high < 1.0


def test_the_bands_hold_a_waves_variance_in_its_own_band():
    """A wave of 16 mm (0.0625 per mm) and amplitude 6 has a variance of 18, in the second band."""
    mask = np.ones((16, 16, 16), dtype=bool)
    wave = 6.0 * np.cos(2 * np.pi * np.arange(16) / 8)[None, :, None] + np.full(mask.shape, 50.0)
    assert measures.band_variances(wave, mask, SPACING) == pytest.approx((0.0, 18.0, 0.0, 0.0, 0.0), abs=1e-6)


def test_the_bands_add_up_to_the_variance_inside_the_mask():
    mask = ball(16, 12.0)
    image = np.random.default_rng(1).normal(30.0, 9.0, mask.shape)
    assert sum(measures.band_variances(image, mask, SPACING)) == pytest.approx(float(image[mask].var()), rel=1e-6)


def test_signed_distance_of_a_slab():
    label = np.zeros((9, 3, 3), dtype=bool)
    label[:4] = True
    distance = signed_distance_mm(label, SPACING)
    assert distance[:, 1, 1].tolist() == [-7.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 7.0, 9.0]


def test_the_profile_of_a_slab_is_the_value_of_each_layer():
    label = np.zeros((8, 4, 4), dtype=bool)
    label[:4] = True
    distance = signed_distance_mm(label, SPACING)
    values = np.arange(8.0)[:, None, None] + np.zeros(label.shape)
    everywhere = np.ones_like(label)
    assert measures.ring_profile(values, everywhere, distance) == tuple(float(value) for value in range(8))
    only_inside = measures.ring_profile(values, label, distance)
    assert all(math.isnan(value) for value in only_inside[4:])


def test_the_ring_counts_organ_only_and_not_the_voxels_at_the_surface():
    label = ball(21, 8.0)
    distance = signed_distance_mm(label, SPACING)
    host = np.full(label.shape, -100.0)  # fat
    organ = np.zeros_like(label)
    organ[:, :11] = True
    host[organ] = 55.0
    host[(distance > 0) & (distance <= 1.5)] = 900.0
    assert ring_level_hu(host, organ & ~label, distance) == pytest.approx(55.0)
    assert math.isnan(ring_level_hu(host, np.zeros_like(organ), distance))


def test_diversity_is_the_sd_of_the_difference():
    """A difference of +-3 in two halves, far apart, has an sd of 3; equal images have none."""
    mask = np.ones((40, 8, 8), dtype=bool)
    first = np.zeros(mask.shape)
    second = np.where(np.arange(40) < 20, 3.0, -3.0)[:, None, None] + np.zeros(mask.shape)
    assert measures.seed_diversity_hu([first, first], mask, SPACING) == 0.0
    assert measures.seed_diversity_hu([first, second], mask, SPACING) == pytest.approx(3.0, rel=0.05)
    assert math.isnan(measures.seed_diversity_hu([first], mask, SPACING))
