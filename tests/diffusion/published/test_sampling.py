"""Schedules, samplers and condition against the authors' own outputs, and against what holds for any model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from autoencoder.published.network import PublishedAutoencoder
from diffusion.published.checkpoint import autoencoder_tensors, denoiser_tensors, read_checkpoint
from diffusion.published.network import PublishedDenoiser
from diffusion.published.sampling import (
    ddim_indices,
    published_condition,
    published_schedule,
    sample_ancestral,
    sample_as_published,
    sample_ddim,
)


@pytest.fixture(scope="module", autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(official_format: Path) -> tuple[PublishedAutoencoder, PublishedDenoiser]:
    paths = official_format / "autoencoder.ckpt", official_format / "early.pt"
    autoencoder, denoiser = PublishedAutoencoder(), PublishedDenoiser()
    autoencoder.load_state_dict(autoencoder_tensors(read_checkpoint(paths[0]), paths[0]))
    denoiser.load_state_dict(denoiser_tensors(read_checkpoint(paths[1]), paths[1]).weights)
    return autoencoder.eval(), denoiser.eval()


class Recorder:
    """Predicts with a denoiser and keeps what it was asked, and the estimate of x_0 that follows."""

    def __init__(self, denoiser: PublishedDenoiser, condition: Tensor, timesteps: int) -> None:
        self.denoiser, self.condition = denoiser, condition
        self.levels = published_schedule(timesteps).alphas_cumprod
        self.x_t: list[Tensor] = []
        self.x_0: list[Tensor] = []
        self.t: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        epsilon = self.denoiser(x_t, self.condition, t)
        level = self.levels[t[0]]
        self.x_t.append(x_t)
        self.x_0.append((x_t - (1 - level).sqrt() * epsilon) / level.sqrt())
        self.t.append(int(t[0]))
        return epsilon


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + number) for number in range(count)]


def _noise(count: int) -> Tensor:
    return torch.randn(count, 8, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def _half(x_t: Tensor, t: Tensor) -> Tensor:
    return 0.5 * x_t + 0.01 * t.view(-1, 1, 1, 1, 1)


def test_the_schedules_agree(official):
    schedule = published_schedule(4)
    for name, values in schedule._asdict().items():
        assert torch.allclose(values, official[f"T4_{name}"], rtol=1e-6, atol=0.0), name
    assert torch.allclose(published_schedule(200).alphas_cumprod, official["T200_alphas_cumprod"], rtol=1e-6, atol=0.0)


def test_ancestral_steps_agree(models, official):
    autoencoder, denoiser = models
    recorder = Recorder(denoiser, official["den_cond"], 4)
    noises = official["samp_noise"]
    sample = sample_ancestral(published_schedule(4), recorder, noises[0], step_noises=noises[1:])
    assert recorder.t == [3, 2, 1, 0]
    for mine, expected in zip([*recorder.x_t, sample], official["samp_traj"], strict=True):
        assert _largest(mine - expected) < 5e-3
    for mine, expected in zip(recorder.x_0, official["samp_x0"], strict=True):
        assert _largest(mine.clamp(-1, 1) - expected) < 5e-3
    latents = autoencoder.denormalise(sample)
    assert _largest(latents - official["samp_latent"]) < 5e-3
    assert torch.equal(autoencoder.nearest_codes(latents), official["samp_idx"])
    assert _largest(autoencoder.decode_unit(latents) - official["samp_dec"]) < 1e-4


def test_ddim_steps_agree(models, official):
    recorder = Recorder(models[1], official["den_cond"], 200)
    schedule = published_schedule(200)
    sample = sample_ddim(schedule, recorder, official["ddim_xT"])
    assert recorder.t == official["ddim_ts"].flip(0).tolist()
    assert torch.allclose(schedule.alphas_cumprod[recorder.t].flip(0), official["ddim_alphas"])
    path = torch.stack([*recorder.x_t, sample])
    saved = official["ddim_steps_saved"]
    assert _largest(path[torch.cat([torch.tensor([0]), saved + 1])] - official["ddim_traj"]) < 5e-3
    assert _largest(torch.stack(recorder.x_0)[saved] - official["ddim_x0"]) < 5e-3


def test_a_crop_becomes_the_published_image(models, official):
    autoencoder, denoiser = models
    shown, mask = (official[name].permute(0, 1, 4, 3, 2) for name in ("img_ct01", "img_tumour"))  # Z, Y, X
    condition = published_condition(autoencoder, autoencoder.window.to_hu(2 * shown - 1), mask)
    assert _largest(condition - official["img_cond"]) < 3e-5

    noises = official["img_noise"]
    schedule = published_schedule(4)
    sample = sample_ancestral(schedule, Recorder(denoiser, condition, 4), noises[0], step_noises=noises[1:])
    assert _largest(sample - official["img_z"]) < 5e-3
    assert _largest(autoencoder.denormalise(sample) - official["img_latent"]) < 5e-3
    assert torch.equal(autoencoder.nearest_codes(autoencoder.denormalise(sample)), official["img_idx"])

    synthetic = (autoencoder.window.to_unit(autoencoder.decode(sample)) + 1) / 2  # limited to [0, 1]
    assert _largest(synthetic - ((official["img_decoded"].transpose(-1, -2) + 1) / 2).clamp(0, 1)) < 1e-4
    pancreas = official["img_final_pancreas"].permute(0, 1, 4, 3, 2)
    assert _largest(synthetic - pancreas.clamp(0, 1)) < 1e-4
    sigma = float(official["img_sigma"])
    soft = torch.from_numpy(gaussian_filter(mask.numpy(), (0, 0, sigma, sigma, sigma)))
    liver = (1 - soft) * shown + soft * synthetic
    assert _largest(liver - official["img_final_liver"].permute(0, 1, 4, 3, 2)) < 1e-4


@pytest.mark.parametrize("timesteps", [4, 200])
def test_steps_begin_nearly_clean_and_end_in_noise(timesteps):
    schedule = published_schedule(timesteps)
    assert schedule.timesteps == timesteps
    assert (schedule.alphas_cumprod.diff() < 0).all()
    assert schedule.alphas_cumprod[-1] < 1e-4
    assert schedule.posterior_mean_coef1[0] == 1.0
    assert schedule.posterior_mean_coef2[0] == 0.0


@pytest.mark.parametrize("timesteps", [4, 200])
def test_the_right_noise_leads_to_the_latents(timesteps):
    schedule = published_schedule(timesteps)
    clean = _noise(2).clamp(-1, 1)
    levels = schedule.alphas_cumprod

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        level = levels[t].view(-1, 1, 1, 1, 1)
        return (x_t - level.sqrt() * clean) / (1 - level).sqrt()

    sample = sample_as_published(schedule, predict, _noise(2), _generators(2))
    left = 0.0 if timesteps == 4 else 0.1  # DDIM stops at the level of step 0, whose noise is 0.016 wide
    assert _largest(sample - clean) < left + 1e-4


def test_early_models_take_every_step_and_others_fifty():
    asked: list[int] = []

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        asked.append(int(t[0]))
        return torch.zeros_like(x_t)

    sample_as_published(published_schedule(4), predict, _noise(1), _generators(1))
    assert asked == [3, 2, 1, 0]
    asked.clear()
    sample_as_published(published_schedule(200), predict, _noise(1), _generators(1))
    assert asked == list(range(197, 0, -4))


def test_a_crops_sample_does_not_depend_on_its_neighbours():
    schedule = published_schedule(4)
    together = sample_ancestral(schedule, _half, _noise(3), _generators(3))
    alone = sample_ancestral(schedule, _half, _noise(3)[2:], _generators(3)[2:])
    assert torch.equal(together[2:], alone)


def test_samples_of_other_seeds_differ_and_stay_in_the_unit_range():
    schedule = published_schedule(4)
    first = sample_ancestral(schedule, _half, _noise(1), _generators(2)[:1])
    second = sample_ancestral(schedule, _half, _noise(1), _generators(2)[1:])
    assert not torch.equal(first, second)
    assert _largest(first) <= 1.0


def test_ddim_of_one_crop_equals_that_in_a_batch():
    schedule = published_schedule(200)
    noise = _noise(3)
    assert torch.equal(sample_ddim(schedule, _half, noise, 10)[1:2], sample_ddim(schedule, _half, noise[1:2], 10))


@pytest.mark.parametrize(
    ("timesteps", "steps", "expected"), [(4, 4, [0, 1, 2, 3]), (7, 3, [1, 3, 5]), (200, 2, [1, 101]), (200, 1, [1])]
)
def test_steps_of_ddim(timesteps, steps, expected):
    assert ddim_indices(timesteps, steps) == expected


@pytest.mark.parametrize("steps", [0, 201])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="1 to 200 steps"):
        ddim_indices(200, steps)


def test_a_schedule_needs_a_step():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        published_schedule(0)


def test_each_crop_needs_a_generator():
    with pytest.raises(ValueError, match="got 1 for 2 crops"):
        sample_ancestral(published_schedule(4), _half, _noise(2), _generators(1))


def test_the_condition_knows_nothing_of_the_tissue_under_the_mask():
    autoencoder = PublishedAutoencoder().eval()
    autoencoder.codebook.embeddings.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 8, 32, 64)
    mask[..., 2:6, 8:20, 12:41] = 1
    image_hu = 100 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    condition = published_condition(autoencoder, image_hu, mask)
    assert condition.shape == (1, 9, 2, 16, 8)
    assert torch.equal(condition, published_condition(autoencoder, image_hu + 70 * mask, mask))
    assert torch.equal(condition, published_condition(autoencoder, image_hu, mask.bool()))
    filled = torch.where(mask.bool(), 37.5, image_hu)
    assert torch.allclose(condition[:, :8], autoencoder.encode(filled), atol=1e-5)
    inside = torch.zeros(2, 16, 8, dtype=torch.bool)
    inside[1, 3:11, 2:5] = True  # the first of 4 voxels counts: Z 4, X 12 to 40, Y 8 to 16
    assert torch.equal(condition[0, 8] == 1, inside)
    assert torch.equal(condition[0, 8] == -1, ~inside)


def test_image_and_mask_share_their_shape():
    with pytest.raises(ValueError, match="same bounding box"):
        published_condition(PublishedAutoencoder(), torch.zeros(1, 1, 8, 32, 32), torch.zeros(1, 1, 8, 32, 64))
