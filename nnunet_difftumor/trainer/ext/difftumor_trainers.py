"""Where nnU-Net finds the trainers: export nnUNet_extTrainer=$(difftumor ext-trainer)."""

from nnunet_difftumor.trainer.backbones.trainers import (
    nnUNetTrainerCopyPasteSwinUNETR as nnUNetTrainerCopyPasteSwinUNETR,
)
from nnunet_difftumor.trainer.backbones.trainers import nnUNetTrainerCopyPasteUNet as nnUNetTrainerCopyPasteUNet
from nnunet_difftumor.trainer.backbones.trainers import (
    nnUNetTrainerDiffTumorSwinUNETR as nnUNetTrainerDiffTumorSwinUNETR,
)
from nnunet_difftumor.trainer.backbones.trainers import nnUNetTrainerDiffTumorUNet as nnUNetTrainerDiffTumorUNet
from nnunet_difftumor.trainer.backbones.trainers import (
    nnUNetTrainerHandcraftedSwinUNETR as nnUNetTrainerHandcraftedSwinUNETR,
)
from nnunet_difftumor.trainer.backbones.trainers import nnUNetTrainerHandcraftedUNet as nnUNetTrainerHandcraftedUNet
from nnunet_difftumor.trainer.backbones.trainers import (
    nnUNetTrainerHealthyOnlySwinUNETR as nnUNetTrainerHealthyOnlySwinUNETR,
)
from nnunet_difftumor.trainer.backbones.trainers import nnUNetTrainerHealthyOnlyUNet as nnUNetTrainerHealthyOnlyUNet
from nnunet_difftumor.trainer.backbones.trainers import nnUNetTrainerSwinUNETR as nnUNetTrainerSwinUNETR
from nnunet_difftumor.trainer.backbones.trainers import nnUNetTrainerUNet as nnUNetTrainerUNet
from nnunet_difftumor.trainer.trainers import nnUNetTrainerCopyPaste as nnUNetTrainerCopyPaste
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor as nnUNetTrainerDiffTumor
from nnunet_difftumor.trainer.trainers import nnUNetTrainerHandcrafted as nnUNetTrainerHandcrafted
from nnunet_difftumor.trainer.trainers import nnUNetTrainerHealthyOnly as nnUNetTrainerHealthyOnly
from nnunet_difftumor.trainer.trainers import nnUNetTrainerMisplaced as nnUNetTrainerMisplaced
from nnunet_difftumor.trainer.trainers import nnUNetTrainerScheduled as nnUNetTrainerScheduled
