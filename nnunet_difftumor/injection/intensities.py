"""nnU-Net's CT normalisation and its inverse inside the clip window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import ConfigurationError

_SMALLEST_STD = 1e-8
_PLAN_KEYS = ("mean", "std", "percentile_00_5", "percentile_99_5")


@dataclass(frozen=True, kw_only=True)
class CTIntensities:
    """The constants of nnU-Net's CTNormalization for one channel.

    nnU-Net clips a CT to [low_hu, high_hu], subtracts the mean and divides by the standard deviation.
    Inside the clip window this can be undone; what was clipped stays at the window's ends.

    Attributes:
        mean_hu: Mean of the foreground, in HU.
        std_hu: Standard deviation of the foreground, in HU.
        low_hu: 0.5th percentile of the foreground: lower end of the clip window, in HU.
        high_hu: 99.5th percentile of the foreground: upper end of the clip window, in HU.
    """

    mean_hu: float
    std_hu: float
    low_hu: float
    high_hu: float

    def __post_init__(self) -> None:
        if not self.low_hu < self.high_hu:
            raise ConfigurationError(
                f"The plans clip the CT to [{self.low_hu}, {self.high_hu}] HU, which is no window. The images of "
                "this data set are probably not CT in HU; check channel_names in dataset.json and plan again."
            )

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any], channel: int = 0) -> CTIntensities:
        """Read the constants of a channel from nnU-Net's plans, the content of nnUNetPlans.json.

        Raises:
            ConfigurationError: If the plans do not hold them.
        """
        channels = plans.get("foreground_intensity_properties_per_channel", {})
        properties = channels.get(str(channel), {})
        missing = [key for key in _PLAN_KEYS if key not in properties]
        if missing:
            raise ConfigurationError(
                f"The plans lack {missing} in foreground_intensity_properties_per_channel['{channel}']. "
                "Run nnUNetv2_plan_and_preprocess again."
            )
        mean, std, low, high = (float(properties[key]) for key in _PLAN_KEYS)
        return cls(mean_hu=mean, std_hu=std, low_hu=low, high_hu=high)

    def normalise(self, image_hu: NDArray[np.floating]) -> NDArray[np.float32]:
        """Clip and normalise an image in HU, any shape, as nnU-Net does, in its order of operations (bit for bit)."""
        clipped = np.clip(np.asarray(image_hu, dtype=np.float32), self.low_hu, self.high_hu)
        clipped -= self.mean_hu
        clipped /= max(self.std_hu, _SMALLEST_STD)
        return clipped

    def to_hu(self, normalised: NDArray[np.floating]) -> NDArray[np.float32]:
        """Undo the normalisation of any shape; in HU. Values outside the clip window cannot come back."""
        image_hu = np.asarray(normalised, dtype=np.float32) * np.float32(max(self.std_hu, _SMALLEST_STD))
        image_hu += np.float32(self.mean_hu)
        return image_hu
