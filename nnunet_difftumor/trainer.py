"""The trainers that nnU-Net finds: nnUNetv2_train DATASET 3d_fullres FOLD -tr nnUNetTrainerDiffTumor."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_difftumor.trainer_mixin import DiffTumorMixin


class nnUNetTrainerDiffTumor(DiffTumorMixin, nnUNetTrainer):
    """nnU-Net's trainer; healthy training samples get synthetic tumours, everything else is stock."""
