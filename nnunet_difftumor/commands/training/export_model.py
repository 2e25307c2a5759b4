"""`difftumor export-model`: a trained model for hospitals that have stock nnU-Net only."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Rewrite a folder that nnU-Net trained into, so that stock nnU-Net predicts with it.

A checkpoint names its trainer, and nnU-Net refuses to predict where that trainer is not installed. The exported
checkpoints name nnUNetTrainer. They and the folder hold what nnU-Net reads to predict, a README and a manifest:
no list of cases, no split, no log, no validation prediction, no record of synthetic tumours.

Then both folders are loaded by nnU-Net's own predictor and predict the same image. If one probability differs,
the command fails and nothing is left of the output. A model whose trainer builds its own network is refused:
stock nnU-Net could not build it.

nnU-Net's checkpoints are pickles. They are loaded as nnU-Net loads them (torch.load with weights_only=False),
which runs code that a file may hold: export only what you trained or trust. The exported checkpoints hold tensors
and plain values only, and can be read with weights_only=True."""
EXAMPLE = (
    "difftumor export-model --model nnUNet_results/Dataset007_Pancreas/nnUNetTrainerDiffTumor__nnUNetPlans__3d_fullres "
    "--output export/Dataset007_Pancreas/nnUNetTrainer__nnUNetPlans__3d_fullres"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="folder TRAINER__PLANS__CONFIGURATION")
    output = "new folder; its name must be nnUNetTrainer__PLANS__CONFIGURATION, as nnUNetv2_predict wants it"
    add("--output", type=Path, required=True, metavar="DIR", help=output)
    add("-f", "--folds", nargs="+", metavar="K", help="folds to export (default: all that have the checkpoint)")
    checkpoint = "which checkpoint of each fold (default checkpoint_final.pth)"
    add("--checkpoint", default="checkpoint_final.pth", metavar="NAME", help=checkpoint)
    keep_optimizer_state = "keep what nnUNetv2_train --c needs to go on, with stock nnU-Net (doubles the size)"
    add("--keep-optimizer-state", action="store_true", help=keep_optimizer_state)
    verify_with = "image to compare predictions on, one file a channel (default: a small synthetic volume)"
    add("--verify-with", type=Path, nargs="+", default=[], metavar="IMAGE", help=verify_with)
    device = "where the comparison runs (default cpu, where equal models predict equal bits)"
    add("--device", default="cpu", choices=["cpu", "cuda", "mps"], help=device)


def run(options: argparse.Namespace) -> int:
    """Export the model."""
    from nnunet_difftumor.trainer.export.model_export import export_model

    model, verification = export_model(
        options.model,
        options.output,
        folds=options.folds,
        checkpoint=options.checkpoint,
        keep_optimizer_state=options.keep_optimizer_state,
        verify_with=options.verify_with,
        device=options.device,
    )
    what = "a synthetic volume" if verification["image"] == "synthetic" else "the given image"
    shape = " x ".join(map(str, verification["shape"]))
    print(f"Wrote {options.output}: fold {', '.join(model.folds)} of {model.trainer}, now for nnUNetTrainer.")
    print(f"Same predictions as the original, to the bit, on {what} of {shape} voxels.")
    if model.left_out:
        print(f"Left out: {', '.join(model.left_out)}.")
    print(f"Stock nnU-Net predicts with it once it lies in $nnUNet_results/{model.plans['dataset_name']}:")
    print(f"  {model.predict_command}")
    return 0
