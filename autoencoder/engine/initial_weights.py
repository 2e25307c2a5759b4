"""Initial weights that come from a given generator instead of torch's global one."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def draw_initial_weights_(model: nn.Module, generator: torch.Generator) -> None:
    """Draw torch's usual start of every convolution and linear layer again, from `generator`, in place and on the CPU.

    Weight and bias are uniform in +-1/sqrt(fan-in). A parameter that is all zero stays zero: such
    layers are meant to start without effect.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            continue
        bound = 1.0 / math.sqrt(module.weight[0].numel())
        for parameter in (module.weight, module.bias):
            if parameter is not None and parameter.any():
                parameter.uniform_(-bound, bound, generator=generator)
