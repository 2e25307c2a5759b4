from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from diffusion.flow import draw_noise, draw_noise_levels, flow_loss, flow_sigmas, interpolate, velocity_target


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    x_0 = torch.randn(2, 8, 4, 4, 4, generator=generator(0))
    return x_0, torch.randn(x_0.shape, generator=generator(1))


def test_sigmas_of_four_steps_waste_no_call():
    assert flow_sigmas(4) == [1.0, 0.75, 0.5, 0.25]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=flow_sigmas(4))
    assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        flow_sigmas(0)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 7])
def test_true_velocity_leads_from_noise_to_the_data(pair, num_steps):
    x_0, noise = pair
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=flow_sigmas(num_steps))
    x_t = noise
    for timestep in scheduler.timesteps:
        x_t = scheduler.step(velocity_target(x_0, noise), timestep, x_t, return_dict=False)[0]
    torch.testing.assert_close(x_t, x_0, atol=1e-5, rtol=0.0)


def test_path_begins_at_the_data_and_ends_in_noise(pair):
    x_0, noise = pair
    assert torch.equal(interpolate(x_0, noise, torch.zeros(2)), x_0)
    assert torch.equal(interpolate(x_0, noise, torch.ones(2)), noise)


def test_velocity_is_the_slope_of_the_path(pair):
    x_0, noise = pair
    levels = torch.tensor([0.2, 0.6])
    step = interpolate(x_0, noise, levels + 0.25) - interpolate(x_0, noise, levels)
    torch.testing.assert_close(step / 0.25, velocity_target(x_0, noise), atol=1e-5, rtol=0.0)


def test_noise_levels_are_logit_normal():
    levels = draw_noise_levels(20_000, torch.device("cpu"), generator())
    logits = levels.logit()
    assert levels.min() > 0
    assert levels.max() < 1
    assert abs(logits.mean().item()) < 0.03
    assert abs(logits.std().item() - 1.0) < 0.03


def test_same_generator_state_same_noise(pair):
    x_0, _ = pair
    assert torch.equal(draw_noise(x_0, generator(5)), draw_noise(x_0, generator(5)))
    assert not torch.equal(draw_noise(x_0, generator(5)), draw_noise(x_0, generator(6)))


def test_loss_by_hand():
    target = torch.zeros(2, 1, 1, 1, 4)
    velocity = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 0.0]]).view(2, 1, 1, 1, 4)
    share = torch.tensor([[0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.25, 0.0]]).view(2, 1, 1, 1, 4)
    loss = flow_loss(velocity, target, share)
    assert loss.everywhere.item() == pytest.approx(13 / 8)
    assert loss.inside.item() == pytest.approx((0.5 + 4.0) / 2)


def test_small_tumour_weighs_as_much_as_a_large_one():
    velocity = torch.ones(2, 8, 4, 4, 4)
    share = torch.zeros(2, 1, 4, 4, 4)
    share[0, 0, 0, 0, 0] = 1 / 64
    share[1] = 1.0
    small_only, both = velocity.clone(), flow_loss(velocity, torch.zeros_like(velocity), share)
    small_only[1] = 0.0
    half = flow_loss(small_only, torch.zeros_like(velocity), share)
    assert both.inside.item() == pytest.approx(1.0)
    assert half.inside.item() == pytest.approx(0.5)


def test_sample_without_tumour_adds_nothing_inside():
    velocity = torch.ones(2, 8, 4, 4, 4)
    share = torch.zeros(2, 1, 4, 4, 4)
    assert flow_loss(velocity, torch.zeros_like(velocity), share).inside.item() == 0.0
    share[0, 0, 1, 1, 1] = 0.5
    assert flow_loss(velocity, torch.zeros_like(velocity), share).inside.item() == pytest.approx(1.0)
