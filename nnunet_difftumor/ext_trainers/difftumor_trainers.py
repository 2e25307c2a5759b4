"""Where nnU-Net finds the trainers: export nnUNet_extTrainer=$(difftumor ext-trainer)."""

from nnunet_difftumor.backbone_trainers import (
    nnUNetTrainerDiffTumorSwinUNETR as nnUNetTrainerDiffTumorSwinUNETR,
)
from nnunet_difftumor.backbone_trainers import nnUNetTrainerDiffTumorUNet as nnUNetTrainerDiffTumorUNet
from nnunet_difftumor.backbone_trainers import nnUNetTrainerSwinUNETR as nnUNetTrainerSwinUNETR
from nnunet_difftumor.backbone_trainers import nnUNetTrainerUNet as nnUNetTrainerUNet
from nnunet_difftumor.trainer import nnUNetTrainerCopyPaste as nnUNetTrainerCopyPaste
from nnunet_difftumor.trainer import nnUNetTrainerDiffTumor as nnUNetTrainerDiffTumor
from nnunet_difftumor.trainer import nnUNetTrainerHandcrafted as nnUNetTrainerHandcrafted
from nnunet_difftumor.trainer import nnUNetTrainerHealthyOnly as nnUNetTrainerHealthyOnly
