from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.synthesis.blending import at_level
from nnunet_difftumor.synthesis.visibility import Noise


def test_correlated_noise_counts_as_fewer_voxels():
    tissue = np.ones((40, 40, 40), dtype=bool)
    noise = np.random.default_rng(0).normal(size=tissue.shape)
    white, smooth = (10.0 * each / each.std() for each in (noise, gaussian_filter(noise, 1.5, mode="wrap")))
    assert Noise.of(white, tissue).correlated_voxels == pytest.approx(1.0, abs=0.1)
    assert Noise.of(white, tissue).sd_hu == pytest.approx(10.0, rel=0.05)
    expected = (2.0 * np.sqrt(np.pi) * 1.5) ** 3  # integral of the autocorrelation of a Gaussian's noise
    assert Noise.of(smooth, tissue).correlated_voxels == pytest.approx(expected, rel=0.2)


def test_tissue_at_a_level_keeps_its_texture_and_loses_its_radial_profile():
    grid = np.moveaxis(np.indices((24, 24, 24)), 0, -1) - 11.5
    distance_mm = (np.linalg.norm(grid, axis=-1) - 9.0).astype(np.float32)
    share = (distance_mm < 0).astype(np.float32)
    dome, texture = 3.0 * distance_mm, 5.0 * np.sign(grid[..., 0]).astype(np.float32)
    flat = at_level(40.0 + dome + texture, distance_mm, share, 1.0, 20.0)
    inside = share > 0
    assert flat[inside].mean() == pytest.approx(20.0, abs=1e-3)
    assert np.std((flat - texture)[inside]) < 1.0
    assert (flat[~inside] == 20.0).all()
    kept = at_level(40.0 + dome + texture, distance_mm, share, 1.0, None)
    assert kept[inside].mean() == pytest.approx((40.0 + dome + texture)[inside].mean(), abs=1e-3)
