"""Whether a CPU can be trained on in bfloat16."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn.functional import conv3d

_SIDES = ((2, 2, 2), (2, 4, 4), (4, 4, 4))  # of the features deep in a network
_KINDS = (torch.float32, torch.bfloat16)
_ERROR = 0.1  # of the largest entry; rounding to bfloat16 gives 0.005

UNSOUND = (
    "In bfloat16 this CPU gives wrong gradients of convolutions (of two slices, say; a fault of its library), so the "
    "training is in float32, which is slower and right."
)


@cache
def is_sound() -> bool:
    """True if gradients of small convolutions in bfloat16 are those in float32, but for rounding."""
    generator = torch.Generator().manual_seed(0)
    for sides in _SIDES:
        features = torch.randn(2, 16, *sides, generator=generator)
        change = torch.randn(2, 16, *sides, generator=generator)
        weight = torch.randn(16, 16, 3, 3, 3, generator=generator)
        exact, rounded = (_weight_gradient(features.to(kind), weight.to(kind), change.to(kind)) for kind in _KINDS)
        if not bool((exact - rounded).abs().max() <= _ERROR * exact.abs().max()):  # not-a-number is not sound
            return False
    return True


def _weight_gradient(features: torch.Tensor, weight: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        weight = weight.detach().clone().requires_grad_()
        output = conv3d(features, weight, padding=1)
        return torch.autograd.grad(output, weight, change)[0].float()
