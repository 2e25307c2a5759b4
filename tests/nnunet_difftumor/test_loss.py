"""nnU-Net's losses with synthetic tumours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss, TopKLoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import (
    nnUNetTrainerDiceCELoss_noSmooth,
    nnUNetTrainerDiceLoss,
)
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerTopkLoss import (
    nnUNetTrainerDiceTopK10Loss,
    nnUNetTrainerTopk10Loss,
    nnUNetTrainerTopk10LossLS01,
)

from nnunet_difftumor.data_loader import REPORT_KEY
from nnunet_difftumor.trainer_mixin import DiffTumorMixin


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project()
    project.activate(monkeypatch)
    return project


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        (nnUNetTrainerCELoss, RobustCrossEntropyLoss),
        (nnUNetTrainerTopk10Loss, TopKLoss),
        (nnUNetTrainerTopk10LossLS01, TopKLoss),
        (nnUNetTrainerDiceTopK10Loss, DC_and_topk_loss),
        (nnUNetTrainerDiceLoss, MemoryEfficientSoftDiceLoss),
        (nnUNetTrainerDiceCELoss_noSmooth, DC_and_CE_loss),
    ],
    ids=lambda value: value.__name__,
)
def test_each_of_nnunets_losses_learns_from_synthetic_tumors(project, base, kind):
    combined = type("Combined", (DiffTumorMixin, base), {})
    assert combined._build_loss is base._build_loss
    trainer = project.make_trainer(combined)
    trainer.on_train_start()
    assert type(trainer.loss.loss) is kind
    trainer.on_train_epoch_start()
    weights = [weight.detach().clone() for weight in trainer.network.parameters()]
    batch = next(trainer.dataloader_train)
    assert REPORT_KEY in batch
    result = trainer.train_step(batch)
    assert np.isfinite(result["loss"])
    assert any(not torch.equal(old, new) for old, new in zip(weights, trainer.network.parameters(), strict=True))
    trainer.on_train_epoch_end([result])
    assert "Synthetic tumours: healthy samples" in Path(trainer.log_file).read_text()
