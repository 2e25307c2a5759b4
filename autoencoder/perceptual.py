"""A perceptual term: decoded and true slices shall look alike to a network that was trained on photographs.

The weights come from a file of the user's; nothing is downloaded. To make one where the internet may be used:

    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1
    save_file(squeezenet1_1(weights="DEFAULT").state_dict(), "squeezenet1_1.safetensors")
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

SMALLEST_SIDE = 20
"""Voxels that a side of a slice must have: three poolings come before the last layer that is compared."""
_COMPARED_LAYERS = (1, 4, 7, 9, 12)  # after the first ReLU and after Fire modules, fine to coarse
_PHOTOGRAPH_MEAN = (0.485, 0.456, 0.406)
_PHOTOGRAPH_STD = (0.229, 0.224, 0.225)
_PREFIX = "features."


class PerceptualLoss(nn.Module):
    """Squared distance of unit-length features of torchvision's `squeezenet1_1`, on one slice along each axis.

    After Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, with all
    channels weighing the same.

    Raises:
        ImportError: If torchvision is not installed.
        ValueError: If the file, safetensors, cannot be read or holds other weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights_file: Path) -> None:
        super().__init__()
        try:
            from torchvision.models import squeezenet1_1
        except ImportError as error:
            raise ImportError(
                "--perceptual-weights needs torchvision: pip install 'nnunet-difftumor[perceptual]'."
            ) from error
        network = squeezenet1_1(weights=None).features
        try:
            state = load_file(weights_file)
            network.load_state_dict({name[len(_PREFIX) :]: state[name] for name in state if name.startswith(_PREFIX)})
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"{weights_file} must hold the weights of torchvision's squeezenet1_1 as safetensors: "
                f"{' '.join(str(error).split())[:200]}. How to make such a file: autoencoder/perceptual.py."
            ) from error
        self.layers = network[: max(_COMPARED_LAYERS) + 1].eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(_PHOTOGRAPH_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_PHOTOGRAPH_STD).view(1, 3, 1, 1))

    def forward(self, reconstruction: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """Compare crops in unit range (B, 1, D, H, W) on slices that the generator draws; a scalar."""
        terms = []
        for axis in (2, 3, 4):
            size = target.shape[axis]
            index = int(torch.randint(size, (), generator=generator, device=generator.device))
            terms.append(self._distance(reconstruction.float().select(axis, index), target.float().select(axis, index)))
        return torch.stack(terms).mean()

    def _distance(self, decoded: Tensor, true: Tensor) -> Tensor:
        """Distance of slices of shape (B, 1, H, W)."""
        features = torch.cat([decoded, true]).expand(-1, 3, -1, -1)
        features = (0.5 * (features + 1.0) - self.mean) / self.std
        distances = []
        for number, layer in enumerate(self.layers):
            features = layer(features)
            if number in _COMPARED_LAYERS:
                unit = features / (features.norm(dim=1, keepdim=True) + 1e-6)
                first, second = unit.chunk(2)
                distances.append((first - second).square().sum(dim=1).mean())
        return torch.stack(distances).mean()
