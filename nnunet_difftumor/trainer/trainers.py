"""The trainers that nnU-Net finds: nnUNetv2_train DATASET 3d_fullres FOLD -tr nnUNetTrainerDiffTumor."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_difftumor.injection.sources import COPY_PASTE, HANDCRAFTED, HEALTHY_ONLY, MISPLACED
from nnunet_difftumor.trainer.mixin import DiffTumorMixin
from nnunet_difftumor.trainer.schedule import ScheduleMixin


class nnUNetTrainerDiffTumor(DiffTumorMixin, nnUNetTrainer):
    """nnU-Net's trainer; healthy training samples get synthetic tumours, everything else is stock."""


class nnUNetTrainerScheduled(ScheduleMixin, nnUNetTrainer):
    """nnU-Net's trainer with epochs and iterations from the settings; everything else, data included, is stock."""


class nnUNetTrainerHealthyOnly(DiffTumorMixin, nnUNetTrainer):
    """Control: the same healthy cases and the same crops, nothing put in."""

    arm = HEALTHY_ONLY


class nnUNetTrainerCopyPaste(DiffTumorMixin, nnUNetTrainer):
    """Control: real tumours of the training fold in the same places, masks and blending."""

    arm = COPY_PASTE


class nnUNetTrainerHandcrafted(DiffTumorMixin, nnUNetTrainer):
    """Control: the same fill with a drawn texture, and no network."""

    arm = HANDCRAFTED


class nnUNetTrainerMisplaced(DiffTumorMixin, nnUNetTrainer):
    """Negative control: the same tumours, each labelled at another random place of the organ."""

    arm = MISPLACED
