"""What the log of a training says where it is not what a reader would take it for."""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

COPIED_FROM = "2.8.1"
COPIED_SHA256 = "5f59e2b907cfa2d1"
"""First digits of the hash of the source of `nnUNetTrainer.get_dataloaders`, of which `mixin` has an explicit copy."""


def changed_source_notes() -> tuple[str, ...]:
    """One line for the log if nnU-Net's `get_dataloaders` is another than the one that was copied, else none."""
    source = inspect.getsource(nnUNetTrainer.get_dataloaders)
    if hashlib.sha256(source.encode()).hexdigest().startswith(COPIED_SHA256):
        return ()
    return (
        f"nnU-Net {version('nnunetv2')} makes its data loaders in another way than {COPIED_FROM}, which this trainer "
        "follows: samples may differ from stock nnU-Net's in more than the tumours. For a comparison with stock "
        f"nnU-Net, train both with nnunetv2=={COPIED_FROM} (pip install nnunetv2=={COPIED_FROM}).",
    )


def batch_dice_notes(trainer: nnUNetTrainer, *, trains_on_healthy: bool) -> tuple[str, ...]:
    """Tell that a Dice of single patches is blind to what a healthy patch says about the tumour class.

    The Dice of one patch without tumour is smooth / (predicted + smooth): with nnU-Net's smooth of 1e-5 beside
    thousands of voxels it is flat, and with a smooth of 0 it is 0 whatever is predicted.

    Returns:
        One line for the log, or none where it does not apply.
    """
    if trainer.configuration_manager.batch_dice or not trains_on_healthy:
        return ()
    plans_name, configuration = trainer.plans_manager.plans_name, trainer.configuration_name
    copy = f"{plans_name}BatchDice"
    return (
        f'{plans_name} has "batch_dice": false in {configuration}: a Dice loss is then that of single patches, and in '
        "a patch without tumour the Dice of the tumour has practically no gradient, so that healthy samples teach "
        "about tumours through the other terms alone (cross-entropy; the organ's Dice). To change that, copy "
        f'{plans_name}.json to {copy}.json beside it, set "plans_name": "{copy}" and, in {configuration}, '
        f'"batch_dice": true, and train with -p {copy}; nothing is preprocessed again '
        "(docs/how-to/backbones.md, Losses). nnUNetTrainerDiceCELoss_noSmooth, often advised for empty patches, "
        "does not help: its gradient there is exactly 0.",
    )
