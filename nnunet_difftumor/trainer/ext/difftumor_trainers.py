"""Where nnU-Net finds the trainers: export nnUNet_extTrainer=$(difftumor ext-trainer)."""

from nnunet_difftumor.trainer.backbones.trainers import (  # noqa: F401
    nnUNetTrainerCopyPasteSwinUNETR,
    nnUNetTrainerCopyPasteUNet,
    nnUNetTrainerDiffTumorSwinUNETR,
    nnUNetTrainerDiffTumorUNet,
    nnUNetTrainerHandcraftedSwinUNETR,
    nnUNetTrainerHandcraftedUNet,
    nnUNetTrainerHealthyOnlySwinUNETR,
    nnUNetTrainerHealthyOnlyUNet,
    nnUNetTrainerSwinUNETR,
    nnUNetTrainerUNet,
)
from nnunet_difftumor.trainer.trainers import (  # noqa: F401
    nnUNetTrainerCopyPaste,
    nnUNetTrainerDiffTumor,
    nnUNetTrainerHandcrafted,
    nnUNetTrainerHealthyOnly,
    nnUNetTrainerMisplaced,
    nnUNetTrainerScheduled,
)
