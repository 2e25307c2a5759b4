"""The Hounsfield-unit window that the networks see, mapped linearly onto [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ArrayT = TypeVar("ArrayT", Tensor, NDArray[Any])


@dataclass(frozen=True)
class IntensityWindow:
    """Hounsfield-unit window, mapped linearly from low_hu at -1 to high_hu at +1; values outside it saturate.

    Images may have any shape, which stays; results are floating point.
    """

    low_hu: float
    high_hu: float

    def __post_init__(self) -> None:
        if not self.low_hu < self.high_hu:
            raise ValueError(
                f"IntensityWindow needs low_hu < high_hu, got low_hu={self.low_hu} and "
                f"high_hu={self.high_hu}. For abdominal CT try low_hu=-175, high_hu=250."
            )

    def clip(self, image_hu: ArrayT) -> ArrayT:
        """Limit an image in HU to [low_hu, high_hu]."""
        return _as_floating(image_hu).clip(self.low_hu, self.high_hu)

    def to_unit(self, image_hu: ArrayT) -> ArrayT:
        """Map an image in HU onto [-1, 1]; values outside the window saturate."""
        return (self.clip(image_hu) - self.low_hu) * (2.0 / (self.high_hu - self.low_hu)) - 1.0

    def to_hu(self, unit: ArrayT) -> ArrayT:
        """Map the unit range back to HU, linearly and without a limit: values beyond [-1, 1] are extrapolated."""
        return (_as_floating(unit) + 1.0) * (0.5 * (self.high_hu - self.low_hu)) + self.low_hu


ABDOMEN_WINDOW = IntensityWindow(low_hu=-175.0, high_hu=250.0)
"""Soft-tissue window of the abdomen, the default of both generator stages."""


def _as_floating(values: ArrayT) -> ArrayT:
    """Integer values become float32."""
    if isinstance(values, Tensor):
        return values if values.is_floating_point() else values.to(torch.float32)
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float32)
