"""Where nnU-Net finds the trainer: export nnUNet_extTrainer=$(difftumor ext-trainer)."""

from nnunet_difftumor.trainer import nnUNetTrainerDiffTumor as nnUNetTrainerDiffTumor
