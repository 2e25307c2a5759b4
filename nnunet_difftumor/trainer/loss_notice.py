"""What the log says where the plans' Dice learns nothing about tumours from patches without one."""

from __future__ import annotations


def batch_dice_notes(
    *, plans_name: str, configuration: str, is_batch_dice: bool, trains_on_healthy: bool
) -> tuple[str, ...]:
    """Tell that a Dice of single patches is blind to what a healthy patch says about the tumour class.

    The Dice of one patch without tumour is smooth / (predicted + smooth): with nnU-Net's smooth of 1e-5 beside
    thousands of voxels it is flat, and with a smooth of 0 it is 0 whatever is predicted.

    Args:
        plans_name: `plans_name` of the plans.
        configuration: Name of the configuration in them, such as 3d_fullres.
        is_batch_dice: `batch_dice` of the configuration: whether a Dice is that of a whole batch.
        trains_on_healthy: Whether healthy cases are among the training cases.

    Returns:
        One line for the log, or none where it does not apply.
    """
    if is_batch_dice or not trains_on_healthy:
        return ()
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
