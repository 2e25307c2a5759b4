"""What tests of trained models share."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_difftumor.injection.log import COUNTS_FILE_NAME
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor


def train_nothing(project, fold, secret):
    """What nnU-Net leaves of a training, with weights as they were drawn, and a patient's name wherever one may be."""
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    dataset_json |= {"difftumor": {"healthy_cases": [secret]}, "description": secret}
    plans |= {"continue_training": False, "made_from": [secret]}
    trainer = nnUNetTrainerDiffTumor(plans, "3d_fullres", fold, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer._best_ema = np.float64(0.5)
    for key, value in (("train_losses", np.float32(0.1)), ("mean_fg_dice", np.float64(0.5))):
        trainer.logger.log(key, value, 0)
    output = Path(trainer.output_folder)
    trainer.save_checkpoint(str(output / "checkpoint_final.pth"))
    for name in ("plans.json", "dataset.json"):
        (output.parent / name).write_text(json.dumps(plans if name == "plans.json" else dataset_json))
    (output.parent / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1, 1]]}))
    (output / COUNTS_FILE_NAME).write_text("epoch,healthy_samples,carrying,injected\n0,3,2,1\n")
    (output / "validation").mkdir()
    (output / "validation" / f"{secret}.nii.gz").write_bytes(b"")
    return output.parent


@pytest.fixture(scope="module")
def trained(make_nnunet_project):
    """The folder of a model with folds 0 and 1."""
    project = make_nnunet_project()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in project.environment().items():
            if key.startswith("nnUNet_"):
                patch.setenv(key, value)
        for fold in (0, 1):
            folder = train_nothing(project, fold, "patient_4711")
    return folder
