from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autoencoder.layers import draw_noise
from diffusion.conditioning import fill_tumor_region
from diffusion.objectives import OBJECTIVES
from diffusion.pipeline import make_pipeline
from diffusion.unet import DenoisingUNet3D

TOLERANCE_HU = 0.05


@pytest.mark.parametrize("options", [{}, {"autocast_dtype": torch.bfloat16}], ids=["float32", "bfloat16"])
def test_result_of_a_crop_does_not_depend_on_its_batch(pipeline, make_crops, generators, options):
    image_hu, mask = make_crops(3)
    contrast_hu = torch.tensor([-20.0, torch.nan, 30.0])
    together = pipeline(image_hu, mask, contrast_hu=contrast_hu, generators=generators(3), **options)
    for i in range(3):
        one, own = slice(i, i + 1), [generators(3)[i]]
        alone = pipeline(image_hu[one], mask[one], contrast_hu=contrast_hu[one], generators=own, **options)
        assert (alone.tumor_hu - together.tumor_hu[one]).abs().max() < TOLERANCE_HU
        assert (alone.reconstruction_hu - together.reconstruction_hu[one]).abs().max() < TOLERANCE_HU


def test_same_generators_same_bits(pipeline, make_crops, generators):
    image_hu, mask = make_crops(2)
    first = pipeline(image_hu, mask, generators=generators(2))
    second = pipeline(image_hu, mask, generators=generators(2))
    assert torch.equal(first.tumor_hu, second.tumor_hu)


def test_lower_precision_of_the_networks_changes_little(pipeline, make_crops, generators):
    image_hu, mask = make_crops(2)
    types = []
    hook = pipeline.denoiser.entry.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    own = pipeline(image_hu, mask, generators=generators(2))
    lower = pipeline(image_hu, mask, generators=generators(2), autocast_dtype=torch.bfloat16)
    hook.remove()
    assert types == [torch.float32] * 4 + [torch.bfloat16] * 4
    for before, after in zip(own, lower, strict=True):
        assert after.dtype == torch.float32
        difference_hu = after - before
        assert 0.0 < difference_hu.std() < 0.5
        assert difference_hu.mean().abs() < 0.1
    assert not torch.is_autocast_enabled("cpu")


def test_each_crop_has_its_own_noise(pipeline, make_crops, generators):
    image_hu, mask = make_crops(1)
    image_hu, mask = image_hu.expand(2, -1, -1, -1, -1), mask.expand(2, -1, -1, -1, -1)
    output = pipeline(image_hu, mask, generators=generators(2))
    assert (output.tumor_hu[0] - output.tumor_hu[1]).abs().max() > 1.0
    torch.testing.assert_close(output.reconstruction_hu[0], output.reconstruction_hu[1])


def test_nothing_is_drawn_from_the_global_stream(pipeline, make_crops, generators):
    image_hu, mask = make_crops(1)
    before = torch.get_rng_state()
    pipeline(image_hu, mask, generators=generators(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_reconstruction_is_the_autoencoders(pipeline, make_crops, generators):
    image_hu, mask = make_crops(2)
    output = pipeline(image_hu, mask, generators=generators(2))
    expected = pipeline.autoencoder.reconstruct(image_hu)
    assert (output.reconstruction_hu - expected).abs().max() < TOLERANCE_HU


def test_what_lies_under_the_mask_does_not_reach_the_tumour(pipeline, make_crops, generators):
    image_hu, mask = make_crops(2)
    contrast_hu = torch.tensor([-20.0, 20.0])
    hidden_hu = torch.where(mask, torch.full_like(image_hu, 200.0), image_hu)
    first = pipeline(image_hu, mask, contrast_hu=contrast_hu, generators=generators(2))
    second = pipeline(hidden_hu, mask, contrast_hu=contrast_hu, generators=generators(2))
    assert (first.tumor_hu - second.tumor_hu).abs().max() < TOLERANCE_HU


class TrueVelocity(nn.Module):
    """Knows the answer: the latents of the filled image are the data at the end of every path."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.noise_levels: list[float] = []

    objective = OBJECTIVES["flow"]
    texture_share = 0.0
    texture_profiles = ()

    def from_frame(self, sample, condition_latents, heterogeneity_hu):
        return sample

    def forward(self, latents_noisy, condition_latents, mask_unshuffled, contrast_hu, heterogeneity_hu, timestep):
        self.noise_levels.append(timestep[0].item())
        return (latents_noisy - condition_latents) / timestep.view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(("count", "num_steps", "noise_left"), [(1, 1, 0.0), (2, 1, 0.0), (2, 4, 0.0264)])
def test_perfect_velocity_gives_the_data(
    autoencoder, make_crops, generators, monkeypatch, count, num_steps, noise_left
):
    """Steps in the angle leave a little noise where there is nothing to draw (see tests/diffusion/test_objectives)."""
    pipeline = make_pipeline(autoencoder, DenoisingUNet3D(channels=(16, 32)))
    denoiser = TrueVelocity()
    monkeypatch.setattr(pipeline, "denoiser", denoiser)
    image_hu, mask = make_crops(count)
    contrast_hu = torch.full((count,), 25.0)
    output = pipeline(
        image_hu,
        mask,
        contrast_hu=contrast_hu,
        generators=generators(count),
        num_inference_steps=num_steps,
    )
    latents = autoencoder.encode(fill_tumor_region(image_hu, mask, contrast_hu))
    noise = torch.cat([draw_noise(latents[:1], generator) for generator in generators(count)])
    expected = autoencoder.decode(latents + noise_left * noise)
    assert (output.tumor_hu - expected).abs().max() < TOLERANCE_HU
    angles = [0.5 * math.pi * (1 - step / num_steps) for step in range(num_steps)]
    assert denoiser.noise_levels == pytest.approx([math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles])


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_an_untrained_denoiser_gives_the_filled_image(autoencoder, make_crops, generators, steps):
    pipeline = make_pipeline(autoencoder, DenoisingUNet3D(channels=(16, 32)))
    pipeline.denoiser.set_differences([0.01] * 8, [0.01] * 8, [0.0] * 8)
    image_hu, mask = make_crops(2)
    contrast_hu = torch.tensor([-30.0, 20.0])
    options = {"contrast_hu": contrast_hu, "generators": generators(2), "num_inference_steps": steps}
    filled = autoencoder.reconstruct(fill_tumor_region(image_hu, mask, contrast_hu))
    output = pipeline(image_hu, mask, **options)
    assert (output.tumor_hu - filled).abs().max() < 1.0  # a hundredth of the noise, in latents of 0.01


def test_noise_comes_from_the_crops_generator_alone(autoencoder, make_crops, generators, monkeypatch):
    denoiser = DenoisingUNet3D(channels=(16, 32))
    monkeypatch.setattr(denoiser, "forward", lambda latents_noisy, *_: torch.zeros_like(latents_noisy))
    pipeline = make_pipeline(autoencoder, denoiser)
    # without velocity a sample of one step is the noise
    image_hu, mask = make_crops(2)
    output = pipeline(image_hu, mask, generators=generators(2), num_inference_steps=1)
    noise = torch.cat([draw_noise(torch.empty(1, 8, 4, 4, 4), generator) for generator in generators(2)])
    assert (output.tumor_hu - autoencoder.decode(noise)).abs().max() < TOLERANCE_HU


def test_texture_in_the_fill_reaches_the_sample(pipeline, make_crops, generators):
    image_hu, mask = make_crops(2)
    texture_hu = 30.0 * torch.randn(image_hu.shape, generator=torch.Generator().manual_seed(9))
    plain = pipeline(image_hu, mask, generators=generators(2))
    textured = pipeline(image_hu, mask, generators=generators(2), texture_hu=texture_hu)
    assert (plain.tumor_hu - textured.tumor_hu).abs().max() > 0.5


def test_sides_of_any_multiple_of_four(pipeline, make_crops, generators):
    image_hu, mask = make_crops(1, 24)
    image_hu, mask = image_hu[..., 4:16, 2:22, :], mask[..., 4:16, 2:22, :]
    output = pipeline(image_hu, mask, generators=generators(1))
    assert output.tumor_hu.shape == output.reconstruction_hu.shape == (1, 1, 12, 20, 24)


def test_bad_inputs_are_named(pipeline, make_crops, generators):
    image_hu, mask = make_crops(2)
    with pytest.raises(ValueError, match=r"one torch\.Generator per crop, got 1 for 2"):
        pipeline(image_hu, mask, generators=generators(1))
    with pytest.raises(ValueError, match="NaN"):
        pipeline(torch.full_like(image_hu, torch.nan), mask, generators=generators(2))
    with pytest.raises(ValueError, match="tumor_mask is empty"):
        pipeline(image_hu, torch.stack([mask[0], torch.zeros_like(mask[1])]), generators=generators(2))
    with pytest.raises(ValueError, match="must share one shape"):
        pipeline(image_hu, mask[..., :8], generators=generators(2))
    with pytest.raises(ValueError, match="multiples of 4"):
        pipeline(image_hu[..., :14], mask[..., :14], generators=generators(2))
    with pytest.raises(ValueError, match="at least 1"):
        pipeline(image_hu, mask, generators=generators(2), num_inference_steps=0)
