"""Layers that compute a single crop on a CPU as they compute one of several: faster, and with the same bits.

For one small crop on one thread torch chooses a slow convolution, and another matrix product for one row than
for two. Here the convolution is asked for by name, and the row is doubled, which costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d`; without gradients a single crop takes oneDNN's convolution, as several crops do."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve features of shape (B, C, D, H, W)."""
        if not _is_single_on_cpu(input) or not torch.backends.mkldnn.is_available() or self._is_native_anyway:
            return super().forward(input)
        return torch.ops.aten.mkldnn_convolution(
            input.contiguous(), self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )

    @property
    def _is_native_anyway(self) -> bool:
        """True where torch does not use oneDNN for several crops either."""
        is_pointwise = all(size == 1 for size in self.kernel_size)
        return self.padding_mode != "zeros" or (is_pointwise and torch.get_num_threads() == 1)


class Linear(nn.Linear):
    """`torch.nn.Linear`; without gradients the only row of a batch is computed as one of two."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform rows of shape (B, C)."""
        if not _is_single_on_cpu(input):
            return super().forward(input)
        return super().forward(input.repeat(2, 1))[:1]


def _is_single_on_cpu(value: Tensor) -> bool:
    is_plain = value.device.type == "cpu" and value.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return is_plain and len(value) == 1 and not torch.is_grad_enabled()
