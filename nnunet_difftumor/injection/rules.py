"""What holds for every tumour of a target: intensities of the crops, sizes, looks, places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.synthesis.placement import INSIDE, Zone
from nnunet_difftumor.tumor.appearance import AppearanceRule
from nnunet_difftumor.tumor.sizes import SizeClass

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics

BACKGROUND, PADDING_LABEL = 0, -1
REAL_TUMOR_RIM_MM = 4.0
"""Distance that synthetic tumours, their soft rims included, keep from annotated ones, in mm."""
_SMALLEST_STD = 1e-8
_PLAN_KEYS = ("mean", "std", "percentile_00_5", "percentile_99_5")


@dataclass(frozen=True, kw_only=True)
class CTIntensities:
    """The constants of nnU-Net's CTNormalization: mean, standard deviation, 0.5th and 99.5th percentile of foreground.

    nnU-Net clips a CT to [low_hu, high_hu], subtracts the mean and divides by the standard deviation.
    Inside the clip window this can be undone; what was clipped stays at the window's ends.
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
    def from_plans(cls, plans: Mapping[str, Any]) -> CTIntensities:
        """Read the constants of the only channel from nnU-Net's plans, the content of nnUNetPlans.json.

        Raises:
            ConfigurationError: If the plans do not hold them.
        """
        properties = plans.get("foreground_intensity_properties_per_channel", {}).get("0", {})
        missing = [key for key in _PLAN_KEYS if key not in properties]
        if missing:
            raise ConfigurationError(
                f"The plans lack {missing} in foreground_intensity_properties_per_channel['0']. "
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


@dataclass(frozen=True, kw_only=True)
class InjectionRules:
    """What may be put where in the crops of one data set.

    Attributes:
        exophytic: Tumours may replace background voxels as well.
        spacing_mm: Spacing of the preprocessed data in mm, array order.
        appearances: What contrast and heterogeneity are drawn from; without examples, those of the generator's
            training tumours are taken.
        zone: Where in the organ tumours lie.
        tumor_counts: Numbers of tumours that a case may get, drawn from alike: those of the annotated cases. None: as
            many as the size class that is drawn for the case allows.
        edges: Where the visible edge of tumours lies against their outlines, by size; empty takes the generator's own.
        real_tumor_labels: Labels of annotated tumours, which are not touched.
    """

    organ_label: int
    tumor_label: int
    exophytic: bool
    spacing_mm: tuple[float, float, float]
    intensities: CTIntensities
    size_classes: tuple[SizeClass, ...]
    appearances: AppearanceRule = field(default_factory=AppearanceRule)
    zone: Zone = INSIDE
    avoid_labels: tuple[int, ...] = ()
    tumor_counts: tuple[int, ...] | None = None
    edges: tuple[EdgeStatistics, ...] = ()
    real_tumor_labels: tuple[int, ...] = ()

    def replaceable(self, labels: NDArray[np.integer]) -> NDArray[np.bool_]:
        """True where a label may become tumour: organ, and background if tumours may leave it. Shape of the labels."""
        organ = labels == self.organ_label
        return organ | (labels == BACKGROUND) if self.exophytic else organ
