from __future__ import annotations

import math

import pytest
import torch

from diffusion.objectives import OBJECTIVES, cosine_betas

LEVELS = {
    "flow": torch.tensor([0.2, 0.6, 1.0]),
    "v": torch.tensor([0.1, 0.5, 1.0]),
    "epsilon": torch.tensor([0.25, 0.75, 1.0]),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    x_0 = torch.randn(3, 8, 4, 4, 4, generator=generator(0))
    return x_0, torch.randn(x_0.shape, generator=generator(1))


def cosine_alpha_bar(level: float) -> float:
    return math.cos(0.5 * math.pi * (level + 0.008) / 1.008) ** 2 / math.cos(0.5 * math.pi * 0.008 / 1.008) ** 2


def test_paper_schedule_at_four_steps_is_the_closed_form():
    """alpha_bar of 4 cosine steps with betas below 0.9999: .847, .494, .144 and 1.44e-5; x_0 error gain 263."""
    alpha_bar = torch.cumprod(1.0 - torch.tensor(cosine_betas(4), dtype=torch.float64), 0)
    assert alpha_bar[:3].tolist() == pytest.approx([cosine_alpha_bar(step / 4) for step in (1, 2, 3)], rel=1e-9)
    assert alpha_bar[3].item() == pytest.approx(cosine_alpha_bar(0.75) * 1e-4, rel=1e-6)
    assert ((1 - alpha_bar[3]) / alpha_bar[3]).sqrt().item() == pytest.approx(263, abs=1)
    stored = OBJECTIVES["epsilon"].make_scheduler().alphas_cumprod
    assert stored.tolist() == pytest.approx(alpha_bar.tolist(), rel=1e-2)


def test_v_begins_at_pure_noise_and_keeps_the_variance():
    objective = OBJECTIVES["v"]
    alpha, sigma = objective.path(torch.tensor([1.0]))
    assert alpha.item() == pytest.approx(0.0, abs=1e-6)
    assert sigma.item() == pytest.approx(1.0)
    alpha, sigma = objective.path(torch.linspace(0.001, 1.0, 50))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(50), atol=1e-6)


def test_v_samples_at_trailing_timesteps():
    scheduler = OBJECTIVES["v"].make_scheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


@pytest.mark.parametrize("name", ["flow", "v"])
def test_a_perfect_estimate_of_the_data_gives_the_target(pair, name):
    x_0, noise = pair
    objective, levels = OBJECTIVES[name], LEVELS[name]
    x_t = objective.noisy(x_0, noise, levels)
    torch.testing.assert_close(
        objective.from_clean(x_t, x_0, levels), objective.target(x_0, noise, levels), atol=2e-4, rtol=1e-3
    )


@pytest.mark.parametrize("name", ["flow", "v"])
def test_weight_turns_an_error_of_the_prediction_into_one_of_the_data(pair, name):
    x_0, noise = pair
    objective, levels = OBJECTIVES[name], LEVELS[name]
    x_t = objective.noisy(x_0, noise, levels)
    error = objective.from_clean(x_t, x_0 + 0.1, levels) - objective.from_clean(x_t, x_0, levels)
    weighted = objective.weight(levels).view(-1, 1, 1, 1, 1) * error
    torch.testing.assert_close(weighted.abs(), torch.full_like(weighted, 0.1), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(("name", "noise_left"), [("flow", 0.0264), ("v", 0.0), ("epsilon", 0.0)])
def test_a_perfect_network_leads_from_noise_to_the_data(pair, name, noise_left):
    """Steps in the angle leave the product of 1 - pi / 8 cot(theta), theta = 3/8, 2/8 and 1/8 pi, of the noise."""
    x_0, noise = pair
    x_0 = x_0.clamp(-3.5, 3.5)
    objective = OBJECTIVES[name]

    def predict(x_t: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (value.view(-1, 1, 1, 1, 1) for value in objective.path(levels))
        return objective.target(x_0, (x_t - alpha * x_0) / sigma, levels)

    rngs = [generator(seed) for seed in range(3)]
    drawn = objective.sample(objective.make_scheduler(), predict, noise, 4, rngs)
    assert (drawn - x_0 - noise_left * noise).abs().max() < 0.05


def test_epsilon_target_is_the_noise_and_its_steps_are_fixed(pair):
    x_0, noise = pair
    objective = OBJECTIVES["epsilon"]
    assert torch.equal(objective.target(x_0, noise, LEVELS["epsilon"]), noise)
    with pytest.raises(ValueError, match="trained with 4 steps"):
        objective.sample(objective.make_scheduler(), lambda x_t, levels: x_t, noise, 10, [generator()] * 3)


@pytest.mark.parametrize("name", ["v", "epsilon"])
def test_training_levels_are_timesteps(name):
    levels = OBJECTIVES[name].draw_levels(4000, torch.device("cpu"), generator())
    count = {"v": 1000, "epsilon": 4}[name]
    assert torch.equal((levels * count).round() / count, levels)
    assert levels.min() > 0
    assert levels.max().item() == 1.0
