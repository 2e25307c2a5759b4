"""What a healthy patch teaches: gradients of nnU-Net's losses, the notice, plans with batch_dice, loss variants."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
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

from nnunet_difftumor.injection.data_loader import REPORT_KEY
from nnunet_difftumor.trainer.mixin import DiffTumorMixin
from nnunet_difftumor.trainer.notices import batch_dice_notes
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor, nnUNetTrainerHealthyOnly

ROOT = Path(__file__).resolve().parents[3]
HOW_TO = ROOT / "docs" / "how-to" / "backbones.md"
SMOOTH = 1e-5
SIDE = 64
BLOCK = slice(28, 36)
ORGAN = slice(16, 48)


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project()
    project.activate(monkeypatch)
    return project


def two_patches(classes):
    """Logits and labels of a patch with a tumour, the last class, and of one without. Shape (2, ., 64, 64, 64)."""
    labels = torch.zeros(2, 1, SIDE, SIDE, SIDE)
    if classes == 3:
        labels[:, :, ORGAN, ORGAN, ORGAN] = 1
    labels[0, :, BLOCK, BLOCK, BLOCK] = classes - 1
    logits = torch.randn(2, classes, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    logits[:, -1] -= 3  # tumours are rare, and predicted so
    return logits, labels


def tumor_gradient(loss, logits, target):
    """Mean absolute gradient a voxel of the tumour's logits in the patch without tumour."""
    logits = logits.clone().requires_grad_()
    loss(logits, target).backward()
    return logits.grad[1, -1].abs().mean().item()


def dice_and_ce(*, batch_dice, smooth=SMOOTH, weight_dice=1, weight_ce=0):
    dice = {"batch_dice": batch_dice, "smooth": smooth, "do_bg": False, "ddp": False}
    options: dict[str, Any] = {"dice_class": MemoryEfficientSoftDiceLoss}  # nnU-Net's annotation names the other class
    return DC_and_CE_loss(dice, {}, weight_ce=weight_ce, weight_dice=weight_dice, **options)


def dice_and_bce(*, batch_dice, smooth=SMOOTH):
    dice = {"batch_dice": batch_dice, "smooth": smooth, "do_bg": True, "ddp": False}
    return DC_and_BCE_loss({}, dice, weight_ce=0, dice_class=MemoryEfficientSoftDiceLoss)


def regions_of(labels):
    """Organ with tumour, and tumour: one channel each."""
    return torch.cat([labels >= 1, labels >= 2], dim=1).float()


@pytest.mark.parametrize(
    ("make_loss", "classes", "encode"),
    [(dice_and_ce, 2, lambda labels: labels), (dice_and_bce, 3, regions_of)],
    ids=["softmax", "regions"],
)
def test_the_dice_of_a_patch_without_tumor_is_flat_and_that_of_a_batch_is_not(make_loss, classes, encode):
    logits, labels = two_patches(classes)
    logits, target = logits[:, -2:], encode(labels)
    single = tumor_gradient(make_loss(batch_dice=False), logits, target)
    whole = tumor_gradient(make_loss(batch_dice=True), logits, target)
    without_smooth = tumor_gradient(make_loss(batch_dice=False, smooth=0), logits, target)
    assert 0 < single < 1e-14  # measured: 6.1e-16 with a softmax, 4.5e-16 with regions
    assert whole > 1e4 * single  # measured: 2.5e-9 with a softmax, 1.6e-9 with regions
    assert without_smooth == 0


FALSE_TUMOR = (1, slice(None), slice(20, 26), slice(20, 26), slice(20, 26))


def good_network_with_a_false_tumor():
    """Logits that are sure and right, but for half of the tumour and a doubtful false one in the healthy organ."""
    _, labels = two_patches(3)
    logits = torch.full((2, 3, SIDE, SIDE, SIDE), -3.0).scatter_(1, labels.long(), 3.0)
    half = (0, slice(None), slice(28, 32), BLOCK, BLOCK)
    for place, values in ((half, [-3.0, 3.0, -3.0]), (FALSE_TUMOR, [-3.0, 0.0, 0.0])):
        logits[place] = torch.tensor(values).reshape(3, 1, 1, 1)
    return logits, labels


def push_on_the_false_tumor(loss):
    """Mean gradient of its logits: how hard the loss pushes them down."""
    logits, labels = good_network_with_a_false_tumor()
    loss(logits.requires_grad_(), labels).backward()
    assert logits.grad is not None
    return logits.grad[FALSE_TUMOR][2].mean().item()


def test_with_a_softmax_the_organs_dice_pushes_a_false_tumor_down_and_the_tumors_far_harder():
    organ_alone = push_on_the_false_tumor(dice_and_ce(batch_dice=False, smooth=0))
    single = push_on_the_false_tumor(dice_and_ce(batch_dice=False))
    whole = push_on_the_false_tumor(dice_and_ce(batch_dice=True))
    cross_entropy = push_on_the_false_tumor(dice_and_ce(batch_dice=False, weight_dice=0, weight_ce=1))
    assert single == pytest.approx(organ_alone, rel=1e-4)  # measured: 9.2e-7
    assert single == pytest.approx(cross_entropy, rel=0.1)  # measured: 9.3e-7
    assert whole > 10 * single  # measured: 1.5e-5


def notes(*, plans_name="nnUNetPlans", configuration="3d_fullres", is_batch_dice=False, trains_on_healthy=True):
    trainer: Any = SimpleNamespace(
        plans_manager=SimpleNamespace(plans_name=plans_name),
        configuration_name=configuration,
        configuration_manager=SimpleNamespace(batch_dice=is_batch_dice),
    )
    return batch_dice_notes(trainer, trains_on_healthy=trains_on_healthy)


def test_the_notice_is_one_line_with_the_remedy_by_name():
    (note,) = notes(plans_name="nnUNetResEncUNetLPlans", configuration="3d_lowres")
    assert "\n" not in note
    assert "copy nnUNetResEncUNetLPlans.json to nnUNetResEncUNetLPlansBatchDice.json" in note
    assert 'in 3d_lowres, "batch_dice": true, and train with -p nnUNetResEncUNetLPlansBatchDice' in note
    assert "nnUNetTrainerDiceCELoss_noSmooth" in note
    assert "docs/how-to/backbones.md, Losses" in note
    assert "## Losses" in HOW_TO.read_text(encoding="utf-8")


@pytest.mark.parametrize("changes", [{"is_batch_dice": True}, {"trains_on_healthy": False}], ids=str)
def test_there_is_no_notice_where_it_does_not_apply(changes):
    assert notes(**changes) == ()


def log_at_start(trainer):
    trainer.on_train_start()
    return Path(trainer.log_file).read_text()


@pytest.mark.parametrize("trainer", [nnUNetTrainerDiffTumor, nnUNetTrainerHealthyOnly], ids=lambda each: each.__name__)
def test_a_training_with_the_dice_of_single_patches_says_so_once(project, trainer):
    log = log_at_start(project.make_trainer(trainer))
    assert log.count('nnUNetPlans has "batch_dice": false in 3d_fullres') == 1


def test_a_training_without_healthy_cases_does_not_say_so(project):
    project.configure(healthy_cases=[], injection_probability=0)
    assert "a Dice loss is then" not in log_at_start(project.make_trainer(nnUNetTrainerDiffTumor))


def copy_plans_as_documented(project):
    (line,) = [line for line in HOW_TO.read_text(encoding="utf-8").splitlines() if line.startswith("sed ")]
    subprocess.run(["bash", "-euc", line], cwd=project.preprocessed, check=True)


def test_the_documented_copy_of_the_plans_trains_on_the_same_data_with_the_dice_of_the_batch(project):
    copy_plans_as_documented(project)
    words = {"trainer_name": "nnUNetTrainerDiffTumor", "device": torch.device("cpu")}
    before = get_trainer_from_args("905", "3d_fullres", 0, **words)
    trainer: Any = get_trainer_from_args("905", "3d_fullres", 0, plans_identifier="nnUNetPlansBatchDice", **words)
    assert trainer.preprocessed_dataset_folder == before.preprocessed_dataset_folder
    assert "nnUNetTrainerDiffTumor__nnUNetPlansBatchDice__3d_fullres" in trainer.output_folder
    assert "a Dice loss is then" not in log_at_start(trainer)
    assert trainer.loss.loss.dc.batch_dice
    changed = {**trainer.plans_manager.plans, "plans_name": "nnUNetPlans"}
    changed["configurations"]["3d_fullres"]["batch_dice"] = False
    assert changed == before.plans_manager.plans


@pytest.mark.slow
def test_nnunets_commands_take_the_documented_copy_of_the_plans(make_nnunet_project, tmp_path):
    project = make_nnunet_project()
    project.add_extra(["donor_0"], is_preprocessed=False)
    copy_plans_as_documented(project)
    added = ["-d", "905", "--from", "906", "--plans", "nnUNetPlansBatchDice", "--confirmed-healthy", "--write"]
    project.run("difftumor", "add-healthy", *added, "--workers", "1")
    words = ["-tr", "nnUNetTrainerDiffTumor", "-p", "nnUNetPlansBatchDice", "-device", "cpu"]
    printed = project.run("nnUNetv2_train", "905", "3d_fullres", "0", *words)
    assert "Extra healthy cases of Dataset906_Extra: 1." in printed
    assert "a Dice loss is then" not in printed
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(project.raw / "imagesTr" / "tumor_0_0000.nii.gz", images)
    places = ["-i", str(images), "-o", str(tmp_path / "predicted"), "-d", "905", "-c", "3d_fullres", "-f", "0"]
    project.run("nnUNetv2_predict", *places, *words, "-npp", "1", "-nps", "1")
    assert (tmp_path / "predicted" / "tumor_0.nii.gz").is_file()


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
