"""Organ and tumours of a case, as a target of the settings sees them."""

from __future__ import annotations

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection.case_tumors import values_of


class TargetReader:
    """Tells whether a training target shows the tumour, be it a label map or one channel a region."""

    def __init__(self, label_manager: LabelManager, organ_label: int, tumor_label: int) -> None:
        """Find the tumour in nnU-Net's targets.

        Raises:
            ConfigurationError: If no region tells the tumour from the organ.
        """
        self._tumor_label = tumor_label
        self._foreground = torch.tensor([organ_label, tumor_label])
        self._channels: list[int] | None = None
        self._organ_channels: list[int] = []
        if label_manager.has_regions:
            regions = [values_of(region) for region in label_manager.foreground_regions]
            self._organ_channels = [index for index, region in enumerate(regions) if organ_label in region]
            self._channels = [
                index for index, region in enumerate(regions) if tumor_label in region and organ_label not in region
            ]
            if not self._channels:
                raise ConfigurationError(
                    f"None of the regions {regions} in dataset.json holds the tumour label {tumor_label} without the "
                    f"organ label {organ_label}, so nothing could be learned about tumours. Add a region, "
                    f'e.g. "tumor": {tumor_label}, and its entry in regions_class_order.'
                )

    def read_labels(self) -> None:
        """Look at label maps from here on, where nnU-Net makes no regions of them."""
        self._channels = None

    def shows_tumor(self, target: torch.Tensor) -> bool:
        """True if a sample's target has a voxel of the tumour. Shape (1, ...), or (regions, ...) for regions."""
        if self._channels is None:
            return bool((target == self._tumor_label).any())
        return bool(target[self._channels].any())

    def shows_organ(self, target: torch.Tensor) -> bool:
        """True if a sample's target has a voxel of the organ or of the tumour. Shape as for `shows_tumor`."""
        if self._channels is None:
            return bool(torch.isin(target, self._foreground.to(target.dtype)).any())
        return bool(target[[*self._organ_channels, *self._channels]].any())
