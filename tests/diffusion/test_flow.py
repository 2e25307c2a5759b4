from __future__ import annotations

import math

import pytest
import torch

from autoencoder.layers import draw_noise
from diffusion.objectives import OBJECTIVES
from diffusion.training import mean_errors

FLOW = OBJECTIVES["flow"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    x_0 = torch.randn(2, 8, 4, 4, 4, generator=generator(0))
    return x_0, torch.randn(x_0.shape, generator=generator(1))


def test_four_steps_are_of_equal_angles_and_waste_no_call(pair):
    _, noise = pair
    called = []
    FLOW.sample(None, lambda x_t, levels: called.append(levels[0].item()) or x_t, noise, 4, [])
    angles = [math.atan2(level, 1 - level) / (0.5 * math.pi) for level in called]
    assert angles == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_steps_are_to_the_bit_those_of_the_scheduler_in_the_folder(pair):
    """`y + (next - now) * slope` is what diffusers' Euler steps do with the same sigmas."""
    _, noise = pair
    scheduler = FLOW.make_scheduler()
    scheduler.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    points, velocities = [], []

    def predict(x_t, levels):
        points.append(x_t)
        velocities.append((x_t * 1.7 + 0.3).sin())
        return velocities[-1]

    drawn = FLOW.sample(None, predict, noise, 3, [])
    angles = [0.5 * math.pi * share for share in scheduler.sigmas.tolist()]
    y, mean = noise, torch.zeros_like(noise)
    for step, timestep in enumerate(scheduler.timesteps):
        cos, sin, next_cos = math.cos(angles[step]), math.sin(angles[step]), math.cos(angles[step + 1])
        level = sin / (sin + cos)
        assert torch.equal(points[step], y / (sin + cos))
        x_0, n = points[step] - level * velocities[step], points[step] + (1.0 - level) * velocities[step]
        mean = x_0 if step == 0 else mean
        slope = cos * n - sin * (x_0 - mean) + (next_cos - cos) / (angles[step + 1] - angles[step]) * mean
        y = scheduler.step(0.5 * math.pi * slope, timestep, y, return_dict=False)[0]
    assert torch.equal(drawn, y)


class GaussianData:
    """Velocity of a perfect network for data N(mean, sd): the conditional expectation of n - x_0."""

    def __init__(self, mean: float, sd: float) -> None:
        self.mean, self.sd = mean, sd

    def __call__(self, x_t: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        s = levels.double().view(-1, 1, 1, 1, 1)
        variance = (1 - s) ** 2 * self.sd**2 + s**2
        x_0 = self.mean + (1 - s) * self.sd**2 / variance * (x_t - (1 - s) * self.mean)
        return ((x_t - x_0) / s).to(x_t.dtype)


def sample(predict, num_steps: int) -> torch.Tensor:
    noise = torch.randn(1, 1, 20, 20, 20, generator=generator(3), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    return FLOW.sample(None, predict, noise, num_steps, [])


@pytest.mark.parametrize("num_steps", [2, 4, 10])
@pytest.mark.parametrize("mean", [0.0, -3.0])
def test_steps_in_the_angle_keep_mean_and_variance_of_standard_data(num_steps, mean):
    drawn = sample(GaussianData(mean, 1.0), num_steps)
    assert drawn.mean().item() == pytest.approx(mean, abs=1e-4)
    assert drawn.std().item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("width", "kept"), [(0.1, 0.58), (0.25, 0.77), (0.5, 0.96), (1.0, 1.0), (2.0, 0.89)])
def test_four_steps_in_the_angle_keep_the_share_that_the_docs_say(width, kept):
    drawn = sample(GaussianData(0.0, width), 4)
    assert drawn.std().item() / width == pytest.approx(kept, abs=0.006)


def test_steps_in_the_angle_leave_little_noise_where_there_is_nothing_to_draw():
    drawn = sample(GaussianData(2.0, 1e-6), 4)
    assert drawn.mean().item() == pytest.approx(2.0, abs=1e-3)
    assert drawn.std().item() < 0.03


def test_one_step_in_the_angle_is_the_mean():
    drawn = sample(GaussianData(1.5, 1.0), 1)
    assert drawn.mean().item() == pytest.approx(1.5)
    assert drawn.std().item() < 1e-6


def test_noise_levels_are_uniform_in_the_angle():
    levels = FLOW.draw_levels(20_000, torch.device("cpu"), generator())
    angles = torch.atan2(levels, 1 - levels) / (0.5 * torch.pi)
    assert angles.min() >= 0
    assert angles.max() <= 1
    assert torch.histc(angles, 10, 0, 1).min() > 1800


def test_same_generator_state_same_noise(pair):
    x_0, _ = pair
    assert torch.equal(draw_noise(x_0, generator(5)), draw_noise(x_0, generator(5)))
    assert not torch.equal(draw_noise(x_0, generator(5)), draw_noise(x_0, generator(6)))


def test_loss_by_hand():
    target = torch.zeros(2, 1, 1, 1, 4)
    velocity = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0]]).view(2, 1, 1, 1, 4)
    share = torch.tensor([[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.25, 0.0]]).view(2, 1, 1, 1, 4)
    loss = mean_errors(velocity, target, share)
    assert loss["everywhere"].item() == pytest.approx(13 / 8)
    assert loss["inside"].item() == pytest.approx((0.5 + 4.0) / 2)


def test_small_tumour_weighs_as_much_as_a_large_one():
    velocity = torch.ones(2, 8, 4, 4, 4)
    share = torch.zeros(2, 1, 4, 4, 4)
    share[0, 0, 0, 0, 0] = 1 / 64
    share[1] = 1.0
    small_only, both = velocity.clone(), mean_errors(velocity, torch.zeros_like(velocity), share)
    small_only[1] = 0.0
    half = mean_errors(small_only, torch.zeros_like(velocity), share)
    assert both["inside"].item() == pytest.approx(1.0)
    assert half["inside"].item() == pytest.approx(0.5)


def test_sample_without_tumour_adds_nothing_inside():
    velocity = torch.ones(2, 8, 4, 4, 4)
    share = torch.zeros(2, 1, 4, 4, 4)
    assert mean_errors(velocity, torch.zeros_like(velocity), share)["inside"].item() == 0.0
    share[0, 0, 1, 1, 1] = 0.5
    assert mean_errors(velocity, torch.zeros_like(velocity), share)["inside"].item() == pytest.approx(1.0)
