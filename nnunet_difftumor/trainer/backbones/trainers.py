"""nnU-Net's trainer with the networks of the DiffTumor paper: U-Net and Swin UNETR, each with and without injection."""

from __future__ import annotations

from math import cos, pi, prod
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nnunet_difftumor.injection.sources import COPY_PASTE, HANDCRAFTED, HEALTHY_ONLY
from nnunet_difftumor.trainer.backbones.networks import SWIN_UNETR, UNET, Backbone, format_size
from nnunet_difftumor.trainer.mixin import DiffTumorMixin
from nnunet_difftumor.trainer.schedule import ScheduleMixin

_WARMUP_SHARE = 0.05


class _BackboneTrainer(ScheduleMixin, nnUNetTrainerNoDeepSupervision):
    """nnU-Net's trainer with a network of MONAI, which has no deep supervision."""

    backbone: ClassVar[Backbone]

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """Build the network for the configuration's patch (see `Backbone.build`), to train and to predict."""
        return cls.backbone.build(configuration_manager.patch_size, num_input_channels, num_output_channels)

    def initialize(self) -> None:
        """Initialise as nnU-Net does, and log how much the network pads."""
        super().initialize()
        patch_size = tuple(self.configuration_manager.patch_size)
        padded = self.backbone.padded_size(patch_size)
        if padded != patch_size:
            more = 100 * (prod(padded) / prod(patch_size) - 1)
            self.print_to_log_file(
                f"The {self.backbone.name} takes multiples of {self.backbone.multiple} voxels: patches of "
                f"{format_size(patch_size)} are padded to {format_size(padded)} inside it, {more:.0f} % more voxels. "
                'A "patch_size" of such multiples in the plans avoids it.'
            )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: there is no deep supervision to switch."""


class nnUNetTrainerUNet(_BackboneTrainer):
    """nnU-Net with MONAI's residual U-Net; everything but network and deep supervision is stock."""

    backbone = UNET


def warmup_cosine(epoch: int, epochs: int, warmup_epochs: int) -> float:
    """Return the share of the highest learning rate for an epoch, in (0, 1].

    Args:
        epoch: From 0.
        warmup_epochs: Epochs in which the rate rises; the last of them has the highest rate.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    return 0.5 * (1.0 + cos(pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


class WarmupCosine(LRScheduler):
    """Sets the learning rate from the epoch's number alone, so that a training can be gone on with at any epoch."""

    def __init__(self, optimizer: Optimizer, highest_rate: float, epochs: int, warmup_epochs: int) -> None:
        self.highest_rate = highest_rate
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the rate of an epoch, from 0; None for the one after the last that was set."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rate = self.highest_rate * warmup_cosine(self.last_epoch, self.epochs, self.warmup_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate for _ in self.optimizer.param_groups]


class nnUNetTrainerSwinUNETR(_BackboneTrainer):
    """nnU-Net with MONAI's Swin UNETR and the optimiser that it was published with.

    nnU-Net's SGD with a learning rate of 0.01 is too fast for transformers (https://github.com/MIC-DKFZ/nnUNet/issues/2197).
    """

    backbone = SWIN_UNETR

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        """Create the trainer with the learning rate and weight decay of the authors' training on BTCV."""
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 1e-4
        self.weight_decay = 1e-5

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return AdamW, and a warm-up over the first 50 of 1000 epochs with a cosine after it."""
        network: nn.Module = self.network  # type: ignore[assignment]
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        warmup_epochs = round(_WARMUP_SHARE * self.num_epochs)
        return optimizer, WarmupCosine(optimizer, self.initial_lr, self.num_epochs, warmup_epochs)


class nnUNetTrainerDiffTumorUNet(DiffTumorMixin, nnUNetTrainerUNet):
    """MONAI's residual U-Net; healthy training samples get synthetic tumours."""


class nnUNetTrainerDiffTumorSwinUNETR(DiffTumorMixin, nnUNetTrainerSwinUNETR):
    """MONAI's Swin UNETR; healthy training samples get synthetic tumours."""


class nnUNetTrainerHealthyOnlyUNet(DiffTumorMixin, nnUNetTrainerUNet):
    """MONAI's residual U-Net; control with the same crops and nothing put in."""

    arm = HEALTHY_ONLY


class nnUNetTrainerCopyPasteUNet(DiffTumorMixin, nnUNetTrainerUNet):
    """MONAI's residual U-Net; control with real tumours of the training fold."""

    arm = COPY_PASTE


class nnUNetTrainerHandcraftedUNet(DiffTumorMixin, nnUNetTrainerUNet):
    """MONAI's residual U-Net; control with a drawn texture and no generator."""

    arm = HANDCRAFTED


class nnUNetTrainerHealthyOnlySwinUNETR(DiffTumorMixin, nnUNetTrainerSwinUNETR):
    """MONAI's Swin UNETR; control with the same crops and nothing put in."""

    arm = HEALTHY_ONLY


class nnUNetTrainerCopyPasteSwinUNETR(DiffTumorMixin, nnUNetTrainerSwinUNETR):
    """MONAI's Swin UNETR; control with real tumours of the training fold."""

    arm = COPY_PASTE


class nnUNetTrainerHandcraftedSwinUNETR(DiffTumorMixin, nnUNetTrainerSwinUNETR):
    """MONAI's Swin UNETR; control with a drawn texture and no generator."""

    arm = HANDCRAFTED
