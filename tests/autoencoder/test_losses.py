from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl_divergence

from autoencoder.losses import autoencoder_losses, fft_loss, gradient_loss, kl_divergence, multi_scale_loss
from autoencoder.network import AutoencoderOutput
from autoencoder.presets import LossWeights

ALL_TERMS = LossWeights(l1=1.0, multi_scale=0.25, gradient=0.5, fft=0.1, kl=1e-5)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_reconstruction_costs_nothing() -> None:
    unit = _random(2, 1, 16, 16, 16)
    output = AutoencoderOutput(unit, torch.zeros(2, 8, 4, 4, 4), torch.zeros(2, 8, 4, 4, 4))
    assert autoencoder_losses(output, unit, ALL_TERMS)["total"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_constant_offset_shows_in_every_pooled_scale_but_not_in_the_gradient() -> None:
    unit = _random(1, 1, 16, 16, 16)
    assert multi_scale_loss(unit + 0.1, unit).item() == pytest.approx(0.3, abs=1e-5)
    assert gradient_loss(unit + 0.1, unit).item() == pytest.approx(0.0, abs=1e-6)


def test_a_ramp_along_one_axis_has_a_third_of_its_slope_as_gradient_loss() -> None:
    ramp = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8)
    assert gradient_loss(ramp, torch.zeros_like(ramp)).item() == pytest.approx(1 / 3)


def test_a_single_voxel_has_a_flat_spectrum() -> None:
    impulse = torch.zeros(1, 1, 8, 8, 8)
    impulse[..., 3, 4, 5] = 1.0
    assert fft_loss(impulse, torch.zeros_like(impulse)).item() == pytest.approx(1 / math.sqrt(8**3), rel=1e-4)


def test_pooling_scales_larger_than_the_crop_are_left_out() -> None:
    unit = torch.zeros(1, 1, 4, 4, 4)
    assert multi_scale_loss(unit + 0.1, unit).item() == pytest.approx(0.2, abs=1e-6)


def test_kl_divergence_is_the_closed_form_of_torch_distributions() -> None:
    mean, log_variance = _random(2, 8, 3, 3, 3), _random(2, 8, 3, 3, 3, seed=1)
    posterior, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(()), torch.ones(()))
    expected = torch_kl_divergence(posterior, prior).sum(dim=1).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_the_total_is_the_weighted_sum_and_a_weight_of_zero_leaves_a_term_out() -> None:
    unit = _random(1, 1, 16, 16, 16)
    output = AutoencoderOutput(unit * 0.5, _random(1, 8, 4, 4, 4), _random(1, 8, 4, 4, 4, seed=2))
    losses = autoencoder_losses(output, unit, ALL_TERMS)
    expected = sum(getattr(ALL_TERMS, name) * losses[name] for name in losses if name != "total")
    torch.testing.assert_close(losses["total"], expected)
    assert set(autoencoder_losses(output, unit, LossWeights())) == {"total", "l1"}


def test_gradients_stay_finite_at_a_perfect_reconstruction() -> None:
    unit = _random(1, 1, 8, 8, 8)
    reconstruction = unit.clone().requires_grad_()
    output = AutoencoderOutput(reconstruction, torch.zeros(1, 8, 2, 2, 2), torch.zeros(1, 8, 2, 2, 2))
    autoencoder_losses(output, unit, ALL_TERMS)["total"].backward()
    assert reconstruction.grad is not None
    assert torch.isfinite(reconstruction.grad).all()


@pytest.mark.parametrize("weights", [{"l1": 0.0}, {"kl": -1.0}])
def test_useless_loss_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Loss weights need"):
        LossWeights(**weights)
