"""A patch discriminator that is trained with the autoencoder: it asks for fine texture where the mean would blur it.

Both learn from one loss and one optimiser. The hinge loss teaches the discriminator to tell decoded from real crops;
on its way into the autoencoder its gradient is reversed (Ganin and Lempitsky, "Unsupervised Domain Adaptation by
Backpropagation", 2015), which is the generator's hinge loss wherever the discriminator is not sure yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from autoencoder.layers import draw_initial_weights_
from autoencoder.model import AutoencoderKL3D
from autoencoder.network import AutoencoderOutput


class Scores(NamedTuple):
    """What the discriminator says of real and decoded patches: positive means real. Shapes (B, 1, d, h, w)."""

    real: Tensor
    decoded: Tensor  # its gradient is reversed towards the autoencoder


def require_discriminator() -> type[nn.Module]:
    """Return MONAI's discriminator, or raise an ImportError that names the extra."""
    try:
        from monai.networks.nets import PatchDiscriminator
    except ImportError as error:
        raise ImportError('The adversarial term needs MONAI: pip install "nnunet-difftumor[adversarial]".') from error
    return PatchDiscriminator


def make_discriminator(seed: int) -> nn.Module:
    """Make MONAI's PatchGAN discriminator (Isola et al., "Image-to-Image Translation ...", CVPR 2017) in 3D.

    A score sees 34 voxels a side. Group norm has no running statistics, which would not be averaged with the weights.
    """
    norm = ("GROUP", {"num_groups": 1})
    with torch.random.fork_rng(devices=[]):
        network = require_discriminator()(spatial_dims=3, in_channels=1, channels=32, num_layers_d=2, norm=norm)
    draw_initial_weights_(network, torch.Generator().manual_seed(seed))
    return network


class AdversarialPair(nn.Module):
    """An autoencoder with its discriminator, which is not saved with it, to be trained as one model."""

    def __init__(self, autoencoder: AutoencoderKL3D, discriminator: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = discriminator

    def forward(
        self, unit: Tensor, generator: torch.Generator | None, strength: float
    ) -> tuple[AutoencoderOutput, Scores | None]:
        """Encode and decode as the autoencoder does and, unless the reversed gradient's strength is 0, score."""
        output = self.autoencoder(unit, generator)
        if strength == 0.0:  # zero gradients, not none: several processes wait for each other's
            idle = sum(parameter.sum() for parameter in self.discriminator.parameters()) * 0.0
            return output._replace(reconstruction=output.reconstruction + idle), None
        decoded = output.reconstruction.float()
        decoded = decoded.detach() - strength * (decoded - decoded.detach())  # the same values, another gradient
        return output, Scores(self.discriminator(unit.float())[-1], self.discriminator(decoded)[-1])


def hinge_loss(scores: Scores) -> Tensor:
    """Hinge loss of the discriminator: 2 where it cannot tell, 0 where it is sure."""
    return relu(1.0 - scores.real).mean() + relu(1.0 + scores.decoded).mean()
