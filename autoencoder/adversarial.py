"""A patch discriminator that is trained with the autoencoder: it asks for fine texture where the mean would blur it.

Both learn from one loss and one optimiser. The hinge loss teaches the discriminator to tell decoded from real crops;
on its way into the autoencoder its gradient is reversed (Ganin and Lempitsky, "Unsupervised Domain Adaptation by
Backpropagation", 2015), which is the generator's hinge loss wherever the discriminator is not sure yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from autoencoder.layers import ChannelRMSNorm
from autoencoder.model import AutoencoderKL3D, AutoencoderOutput


class Scores(NamedTuple):
    """What the discriminator says of each patch: positive means real.

    Attributes:
        real: Scores of real crops. Shape (B, 1, d, h, w).
        decoded: Scores of decoded crops, whose gradient is reversed towards the autoencoder. Same shape.
    """

    real: Tensor
    decoded: Tensor


class PatchDiscriminator3D(nn.Module):
    """Convolutions of stride 2; each score sees a patch, not the crop.

    Args:
        channels: Feature channels at half, quarter and so on of the resolution.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *channels), channels, strict=False):
            layers += [nn.Conv3d(before, after, kernel_size=4, stride=2, padding=1), ChannelRMSNorm(after)]
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv3d(channels[-1], 1, kernel_size=3, padding=1))

    def forward(self, unit: Tensor) -> Tensor:
        """Score the patches of crops.

        Args:
            unit: Crops in unit range. Shape (B, 1, D, H, W), sides multiples of 2 for each of the channels.

        Returns:
            Scores. Shape (B, 1, d, h, w).
        """
        return self.layers(unit)


class AdversarialPair(nn.Module):
    """An autoencoder with its discriminator, to be trained as one model.

    Args:
        autoencoder: The autoencoder.
        discriminator: Its opponent; not saved with it.
    """

    def __init__(self, autoencoder: AutoencoderKL3D, discriminator: PatchDiscriminator3D) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = discriminator

    def forward(
        self, unit: Tensor, generator: torch.Generator | None, strength: float
    ) -> tuple[AutoencoderOutput, Scores | None]:
        """Encode, decode and, if the discriminator is switched on, score.

        Args:
            unit: Image in [-1, 1]. Shape (B, 1, D, H, W).
            generator: Source of the posterior sample; None decodes the posterior mean.
            strength: Factor of the reversed gradient; 0 leaves the discriminator out.

        Returns:
            What the autoencoder made, and the scores or None.
        """
        output = self.autoencoder(unit, generator)
        if strength == 0.0:  # zero gradients, not none: several processes wait for each other's
            idle = sum(parameter.sum() for parameter in self.discriminator.parameters()) * 0.0
            return output._replace(reconstruction=output.reconstruction + idle), None
        reversed_gradient: Any = _ReversedGradient.apply(output.reconstruction.float(), strength)
        return output, Scores(self.discriminator(unit.float()), self.discriminator(reversed_gradient))


def hinge_loss(scores: Scores) -> Tensor:
    """Hinge loss of the discriminator.

    Args:
        scores: Its scores.

    Returns:
        Scalar; 2 where it cannot tell, 0 where it is sure.
    """
    return relu(1.0 - scores.real).mean() + relu(1.0 + scores.decoded).mean()


class _ReversedGradient(torch.autograd.Function):
    """The identity, whose gradient changes its sign and is scaled."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -ctx.strength * gradients[0], None
