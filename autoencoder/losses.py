"""Reconstruction losses that need no downloaded weights.

Decoded and true images have the shape (B, 1, D, H, W); each loss is a scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from autoencoder.adversarial import Scores, hinge_loss
from autoencoder.network import AutoencoderOutput
from autoencoder.presets import LossWeights

_POOLING_FACTORS = (2, 4, 8)


def autoencoder_losses(
    output: AutoencoderOutput, unit: Tensor, weights: LossWeights, scores: Scores | None = None
) -> dict[str, Tensor]:
    """Compute every term with a weight above 0, by its name in `weights`, and their weighted sum, "total".

    The target is `unit`, in [-1, 1]. A discriminator's loss, if there are scores, counts whole; its strength in the
    autoencoder is that of the reversed gradient.
    """
    reconstruction = output.reconstruction.float()
    terms = {"l1": (reconstruction - unit).abs().mean()}
    if weights.multi_scale > 0:
        terms["multi_scale"] = multi_scale_loss(reconstruction, unit)
    if weights.gradient > 0:
        terms["gradient"] = gradient_loss(reconstruction, unit)
    if weights.fft > 0:
        terms["fft"] = fft_loss(reconstruction, unit)
    if weights.kl > 0:
        terms["kl"] = kl_divergence(output.mean.float(), output.log_variance.float())
    total = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    if scores is not None:
        terms["adversarial"] = hinge_loss(scores)
        total = total + terms["adversarial"]
    return {"total": total, **terms}


def multi_scale_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Sum of the mean absolute errors after 2x, 4x and 8x average pooling."""
    error = reconstruction - target  # pooling is linear, so the error can be pooled instead of both
    factors = [factor for factor in _POOLING_FACTORS if factor <= min(error.shape[2:])]
    return torch.stack([avg_pool3d(error, factor).abs().mean() for factor in factors]).sum()


def gradient_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the forward differences, averaged over the three axes."""
    error = reconstruction - target
    return torch.stack([error.diff(dim=axis).abs().mean() for axis in (2, 3, 4)]).mean()


def fft_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean modulus of the difference between the orthonormal 3D Fourier coefficients."""
    coefficients = torch.fft.rfftn(reconstruction - target, dim=(2, 3, 4), norm="ortho")
    return torch.view_as_real(coefficients).square().sum(dim=-1).add(1e-12).sqrt().mean()


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the posterior (B, C, d, h, w) to the standard normal, in nats.

    It is summed over the channels and averaged over samples and positions.

    Source:
        Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, appendix B.
    """
    per_channel = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return per_channel.sum(dim=1).mean()
