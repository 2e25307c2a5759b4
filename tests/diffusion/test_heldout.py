from __future__ import annotations

import numpy as np
import pytest
import torch

from autoencoder.intensity import IntensityWindow
from diffusion.heldout import HeldoutSample, in_mask_statistics, picture_of, synthesize_heldout
from diffusion.pipeline import make_pipeline
from diffusion.presets import DIFFUSION_PRESETS

WINDOW = IntensityWindow(-100.0, 100.0)


def sample(real: tuple[float, float], synthetic: tuple[float, float]) -> HeldoutSample:
    """A crop of 8 voxels per side whose tumour is two voxels, in slice 5."""
    mask = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    mask[0, 5, 3, 3:5] = True

    def image(values: tuple[float, float]) -> torch.Tensor:
        image_hu = torch.full((1, 8, 8, 8), -77.0)
        image_hu[mask] = torch.tensor(values)
        return image_hu

    flat = image((0.0, 0.0))
    return HeldoutSample(image(real), mask, flat, image(synthetic), flat, image(real))


def test_statistics_by_hand():
    samples = [sample((10.0, 30.0), (20.0, 20.0)), sample((50.0, 50.0), (40.0, 500.0))]
    statistics = in_mask_statistics(samples, WINDOW)
    assert statistics["real"]["mean_hu"] == 35.0
    assert statistics["real"]["wasserstein_hu"] == 0.0
    synthetic = statistics["synthetic"]  # 20, 20 and 40, 100: the window ends at 100
    assert synthetic["mean_hu"] == 45.0
    assert synthetic["sd_hu"] == pytest.approx(np.std([20, 20, 40, 100]))
    assert synthetic["crop_sd_hu"] == pytest.approx((0 + 30) / 2)
    assert synthetic["crop_mean_error_hu"] == pytest.approx((0 + 20) / 2)
    assert synthetic["wasserstein_hu"] == pytest.approx((10 + 10 + 10 + 50) / 4)  # sorted, pairwise
    assert statistics["fill_only"]["mean_hu"] == 0.0
    assert statistics["reconstruction"] == statistics["real"]


def test_no_sample_is_named():
    with pytest.raises(ValueError, match="No held-out sample"):
        in_mask_statistics([], WINDOW)


def test_picture_shows_the_slice_of_the_tumour():
    picture = picture_of(sample((100.0, 100.0), (0.0, 0.0)), WINDOW)
    assert picture.shape == (8, 32)
    host, filled, synthetic, real = np.split(picture, 4, axis=1)
    assert (real[3, 3:5] == 1.0).all()
    assert (synthetic[3, 3:5] == 0.5).all()
    assert (filled[3, 3:5] == 0.5).all()
    assert (host[2, 2:6] == 1.0).all()  # the outline, which no other tile has
    assert (real[2, 2:6] < 0.2).all()


def test_a_crops_sample_does_not_depend_on_the_batches(pipeline, make_crops):
    image_hu, mask = make_crops(3)
    together = [{"image_hu": image_hu, "tumor_mask": mask}]
    apart = [{"image_hu": image_hu[i : i + 1], "tumor_mask": mask[i : i + 1]} for i in range(3)]
    first, second = synthesize_heldout(pipeline, together, seed=4), synthesize_heldout(pipeline, apart, seed=4)
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert (one.synthetic_hu - other.synthetic_hu).abs().max() < 0.05
        assert torch.equal(one.filled_hu, other.filled_hu)


def test_without_a_network_a_sample_is_the_fill_with_its_texture(autoencoder, make_crops):
    """A denoiser whose last layer is zero, in differences of nearly no width: the yardstick must be level with it."""
    denoiser = DIFFUSION_PRESETS["nano"].build_model(autoencoder.config["latent_channels"], torch.Generator())
    channels = autoencoder.config["latent_channels"]
    denoiser.set_differences([1e-3] * channels, [1e-3] * channels, [0.0] * channels)
    denoiser.set_texture_share(1.0)
    image_hu, mask = make_crops(2, 32, radius=8.0)
    image_hu[..., 16:] += 30.0 * mask[..., 16:]  # half of each tumour is brighter: texture to ask for
    batch = {"image_hu": image_hu, "tumor_mask": mask}
    for one in synthesize_heldout(make_pipeline(autoencoder, denoiser.eval()), [batch]):
        assert one.filled_hu[one.tumor_mask].std() > 3.0
        assert (one.synthetic_hu - one.fill_only_hu).abs().max() < 0.5
