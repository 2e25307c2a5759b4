from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.synthesis.blending import HostNoise, at_level, composite
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


def test_composite_by_hand():
    one = np.ones((1, 1, 1), dtype=np.float32)
    noise = HostNoise(10 * one, 0.8 * one, 2.0)  # host minus reconstruction
    inside = composite(60 * one, 20 * one, noise, one)
    assert inside.item() == pytest.approx(20 + 6)  # the residual of 8 is clipped to 3 * 2
    rim = composite(60 * one, 20 * one, noise, 0.5 * one)
    assert rim.item() == pytest.approx(0.5 * 60 + 0.5 * (20 + 9))  # half of the structure; the limit is 3 * 2 / 0.25
    with pytest.raises(DiffTumorError, match="share one shape"):
        composite(one, one, noise, one[0])


def test_a_tumour_keeps_its_hosts_noise_and_not_the_fat_between_its_fibres():
    rng = np.random.default_rng(0)
    noise_hu = gaussian_filter(rng.normal(size=(40, 40, 40)), 0.7).astype(np.float32)
    noise_hu *= 10.0 / noise_hu.std()
    everywhere = np.ones(noise_hu.shape, dtype=bool)
    kept = HostNoise.of(noise_hu, everywhere, (2.0, 2.0, 2.0)).in_tumor(np.ones_like(noise_hu))
    assert kept.std() == pytest.approx(noise_hu.std(), rel=0.1)
    streaks = np.zeros(noise_hu.shape, dtype=bool)
    streaks[:, ::8, 20:] = True  # of fat, in half of the tissue
    structured = HostNoise.of(noise_hu - np.float32(60.0) * streaks, everywhere, (2.0, 2.0, 2.0))
    left = structured.in_tumor(np.ones_like(noise_hu))
    far = np.index_exp[:, :, 26:]
    assert left[far].std() == pytest.approx(noise_hu.std(), rel=0.25)
    assert (noise_hu - 60.0 * streaks)[far].std() > 2.0 * noise_hu.std()
    at_the_edge = structured.in_tumor(np.full_like(noise_hu, 0.05))
    assert np.abs(at_the_edge - structured.residual_hu).max() < 5.0  # the host's structure stays sharp there
