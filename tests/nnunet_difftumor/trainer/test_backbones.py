"""The paper's backbones: sizes, refusals, the missing extra, learning rates, nnU-Net's seams and commands."""

import inspect
import itertools
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.trainer.backbones import networks as backbones
from nnunet_difftumor.trainer.backbones.networks import SWIN_UNETR, UNET, PaddedNetwork
from nnunet_difftumor.trainer.backbones.trainers import (
    WarmupCosine,
    nnUNetTrainerDiffTumorSwinUNETR,
    nnUNetTrainerDiffTumorUNet,
    nnUNetTrainerSwinUNETR,
    nnUNetTrainerUNet,
    warmup_cosine,
)

needs_monai = pytest.mark.skipif(find_spec("monai") is None, reason="MONAI is not installed (extra: backbones)")
SLOW = pytest.mark.slow
BOTH = pytest.mark.parametrize("backbone", [UNET, SWIN_UNETR], ids=lambda backbone: backbone.name)
STOCK = [nnUNetTrainerUNet, nnUNetTrainerSwinUNETR]
WITH_TUMORS = [nnUNetTrainerDiffTumorUNet, nnUNetTrainerDiffTumorSwinUNETR]
ALL = pytest.mark.parametrize("trainer", [*STOCK, *WITH_TUMORS], ids=lambda trainer: trainer.__name__)


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project()
    project.activate(monkeypatch)
    return project


DISCOVERY = """
import pickle, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
for name in sys.argv[1:]:
    found = recursive_find_trainer_class_by_name(name)
    assert found is recursive_find_trainer_class_by_name(name)
    assert found.__module__ == "nnunet_difftumor.trainer.backbones.trainers"
    assert pickle.loads(pickle.dumps(found)) is found
heavy = [name for name in ("diffusers", "monai", "accelerate") if name in sys.modules]
assert not heavy, heavy
"""


def test_nnunet_finds_the_trainers_and_they_pickle_without_heavy_imports(project):
    names = [trainer.__name__ for trainer in (*STOCK, *WITH_TUMORS)]
    subprocess.run([sys.executable, "-c", DISCOVERY, *names], env=project.environment(), check=True, timeout=120)


@ALL
def test_signatures_are_nnunets(trainer):
    for method in ("__init__", "build_network_architecture"):
        ours, stock = getattr(trainer, method), getattr(nnUNetTrainer, method)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(stock).parameters)


class Recorder(nn.Module):
    """Returns its input, and remembers it."""

    def forward(self, image):
        self.seen = image
        return image


@pytest.mark.parametrize("size", [(16, 16, 32), (5, 16, 33), (1, 31, 15)])
def test_padding_gives_multiples_and_is_cut_off_again(size):
    recorder = Recorder()
    image = torch.arange(2 * size[0] * size[1] * size[2], dtype=torch.float32).reshape(2, 1, *size) + 1
    assert torch.equal(PaddedNetwork(recorder, 16)(image), image)
    assert all(side % 16 == 0 and side - real < 16 for side, real in zip(recorder.seen.shape[2:], size, strict=True))
    assert recorder.seen.sum() == image.sum()  # what was added is 0


@BOTH
def test_2d_patches_are_refused_with_what_to_train_instead(backbone):
    with pytest.raises(ConfigurationError, match=rf"{backbone.name}.*2D patch 512 x 448. Train 3d_fullres"):
        backbone.build((512, 448), 1, 3)


@BOTH
def test_patches_of_which_nothing_is_left_are_refused_with_how_to_plan_larger_ones(backbone):
    side = backbone.multiple
    with pytest.raises(ConfigurationError, match=rf"longer than {side} voxels.*patch_size.*nnUNetv2_plan_experiment"):
        backbone.build((side, side - 3, side), 1, 3)
    assert backbone.padded_size((side, side - 3, side + 1)) == (side, side, 2 * side)


def no_monai(name):
    raise PackageNotFoundError(name)


@BOTH
@pytest.mark.parametrize(
    ("version", "found"), [(no_monai, "not installed"), (lambda name: "1.4.0", "1.4.0 is installed")]
)
def test_a_missing_or_old_monai_is_told_with_the_extra(backbone, version, found, monkeypatch):
    monkeypatch.setattr(backbones, "version", version)
    monkeypatch.setattr(backbones, "import_module", lambda name: None)
    with pytest.raises(ImportError, match=rf"{found}.*pip install 'nnunet-difftumor\[backbones\]'"):
        backbone.build((64, 64, 64), 1, 3)


@needs_monai
@BOTH
@pytest.mark.parametrize("patch", [(128, 128, 128), (40, 224, 224), (20, 320, 256)], ids=str)
def test_every_planned_patch_comes_back_whole_and_every_weight_learns(backbone, patch):
    """In shapes alone (device meta). Weights without gradient would stop nnU-Net's training on several GPUs."""
    network = backbone.build(patch, 2, 4).to("meta")
    output = network(torch.empty(2, 2, *patch, device="meta"))
    assert output.shape == (2, 4, *patch)
    output.sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


@needs_monai
@pytest.mark.parametrize(
    ("backbone", "patch"),
    [pytest.param(UNET, (12, 33, 24), id="U-Net"), pytest.param(SWIN_UNETR, (20, 30, 40), marks=SLOW, id="Swin UNETR")],
)
def test_a_network_learns_a_batch(backbone, patch):
    torch.manual_seed(0)
    network = backbone.build(patch, 1, 2)
    image = torch.randn(1, 1, *patch)
    target = (image[:, 0] > 0.5).long()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_rate_rises_then_falls_and_is_never_zero():
    rates = [warmup_cosine(epoch, 1000, 50) for epoch in range(1000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[49] == rates[50] == 1.0
    assert all(later > earlier for earlier, later in itertools.pairwise(rates[:50]))
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[50:]))
    assert rates[525] == pytest.approx(0.5)  # half of the cosine
    assert rates[-1] > 0
    assert warmup_cosine(0, 1, 0) == 1.0


def test_the_rate_of_an_epoch_does_not_depend_on_the_epochs_before():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=7.0)
    schedule = WarmupCosine(optimizer, 1e-4, 100, 5)
    rates = []
    for epoch in range(100):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    continued = WarmupCosine(torch.optim.AdamW([weight], lr=7.0), 1e-4, 100, 5)
    continued.step(63)
    assert continued.get_last_lr() == [rates[63]]
    assert rates == pytest.approx([1e-4 * warmup_cosine(epoch, 100, 5) for epoch in range(100)])


@needs_monai
@pytest.mark.parametrize(
    "trainer", [nnUNetTrainerUNet, nnUNetTrainerDiffTumorUNet], ids=lambda trainer: trainer.__name__
)
def test_unet_trains_as_nnunet_does_without_deep_supervision(project, trainer):
    made = project.make_trainer(trainer)
    made.initialize()
    assert isinstance(made.optimizer, torch.optim.SGD)
    assert made.optimizer.param_groups[0]["lr"] == 1e-2
    assert not isinstance(made.loss, DeepSupervisionWrapper)
    made.set_deep_supervision_enabled(True)
    output = made.network(torch.zeros(1, 1, 40, 40, 40))
    assert output.shape == (1, 3, 40, 40, 40)
    log = Path(made.log_file).read_text()
    assert "patches of 40 x 40 x 40 are padded to 48 x 48 x 48 inside it, 73 % more voxels" in log


@needs_monai
@pytest.mark.parametrize(
    "trainer", [nnUNetTrainerSwinUNETR, nnUNetTrainerDiffTumorSwinUNETR], ids=lambda trainer: trainer.__name__
)
def test_swin_unetr_trains_with_its_authors_optimiser(project, trainer):
    project.edit_plans(patch_size=[32, 32, 64])
    project.configure(num_epochs=200)
    made = project.make_trainer(trainer)
    made.initialize()
    assert isinstance(made.optimizer, torch.optim.AdamW)
    assert made.optimizer.param_groups[0]["weight_decay"] == 1e-5
    epochs = 200 if trainer is nnUNetTrainerDiffTumorSwinUNETR else 1000
    made.lr_scheduler.step(epochs // 20)
    assert made.optimizer.param_groups[0]["lr"] == 1e-4
    assert made.lr_scheduler.epochs == epochs
    assert "padded" not in Path(made.log_file).read_text()


@ALL
def test_2d_configurations_are_refused_before_training(project, trainer):
    project.edit_plans(patch_size=[64, 64])
    with pytest.raises(ConfigurationError, match="2D"):
        project.make_trainer(trainer).on_train_start()


SHORT = """
from nnunet_difftumor.trainer.backbones import trainers as backbone_trainers


class {name}(backbone_trainers.{name}):
    def initialize(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = {epochs}, 2, 1
        super().initialize()
"""


def shorten(project, trainer, epochs, folder):
    """Set the schedule; stock trainers have no settings, so a shorter class of the same name is found before them."""
    project.configure(num_epochs=epochs, num_iterations_per_epoch=2)
    if trainer in WITH_TUMORS:
        return {}
    (folder / "short.py").write_text(SHORT.format(name=trainer.__name__, epochs=epochs))
    return {"nnUNet_extTrainer": os.pathsep.join([str(folder), project.environment()["nnUNet_extTrainer"]])}


def use_one_validation_case(project):
    cases = [path.name.removesuffix(".nii.gz") for path in (project.raw / "labelsTr").iterdir()]
    split = [{"train": sorted(case for case in cases if case != "tumor_0"), "val": ["tumor_0"]}]
    (project.preprocessed / "splits_final.json").write_text(json.dumps(split))


def predict_validation_case(project, folder, configuration, trainer, *more):
    (folder / "images").mkdir(exist_ok=True)
    image = "tumor_0_0000.nii.gz"
    (folder / "images" / image).write_bytes((project.raw / "imagesTr" / image).read_bytes())
    words = ["-i", str(folder / "images"), "-o", str(folder / trainer), "-d", "905", "-c", configuration, "-f", "0"]
    project.run("nnUNetv2_predict", *words, "-tr", trainer, "-device", "cpu", "-npp", "1", "-nps", "1", *more)
    return folder / trainer / "tumor_0.nii.gz"


@needs_monai
@SLOW
@ALL
def test_nnunets_commands_train_continue_and_predict(make_nnunet_project, tmp_path, trainer):
    project = make_nnunet_project()
    use_one_validation_case(project)
    path = project.preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_flat"] = {"inherits_from": "3d_fullres", "patch_size": [32, 32, 40]}
    path.write_text(json.dumps(plans))
    name = trainer.__name__
    words = ["nnUNetv2_train", "905", "3d_flat", "0", "-tr", name, "-device", "cpu", "--npz"]
    printed = project.run(*words, environment=shorten(project, trainer, 1, tmp_path))
    multiple = trainer.backbone.multiple
    assert f"takes multiples of {multiple} voxels: patches of 32 x 32 x 40 are padded to" in printed
    output = project.output(trainer=name, configuration="3d_flat")
    assert (output / "validation" / "tumor_0.npz").is_file()
    printed = project.run(*words[:-1], "--c", environment=shorten(project, trainer, 2, tmp_path))
    assert "Epoch 1" in printed
    assert "Epoch 0" not in printed
    rate = 1e-2 * 0.5**0.9 if trainer.backbone is UNET else 1e-4 * 0.5  # the middle of nnU-Net's schedule, of a cosine
    assert f"Current learning rate: {round(rate, 5)}" in printed
    assert ("Synthetic tumours: healthy samples" in printed) == (trainer in WITH_TUMORS)
    assert (output / "checkpoint_final.pth").is_file()
    predicted = predict_validation_case(project, tmp_path, "3d_flat", name)  # by the trainer as it comes
    assert predicted.read_bytes() == (output / "validation" / "tumor_0.nii.gz").read_bytes()


@needs_monai
@SLOW
def test_backbones_are_compared_and_ensembled_by_nnunet(make_nnunet_project, tmp_path):
    project = make_nnunet_project()
    use_one_validation_case(project)
    project.configure(num_iterations_per_epoch=2)
    trainers = ["nnUNetTrainerDiffTumor", "nnUNetTrainerDiffTumorUNet"]
    for trainer in trainers:
        project.run("nnUNetv2_train", "905", "3d_fullres", "0", "-tr", trainer, "-device", "cpu", "--npz")
    words = ["905", "-c", "3d_fullres", "-tr", *trainers, "-f", "0", "-np", "1"]
    printed = project.run("nnUNetv2_find_best_configuration", *words)
    assert all(f"{trainer}__nnUNetPlans__3d_fullres" in printed for trainer in trainers)
    assert "ensemble___nnUNetTrainerDiffTumor__nnUNetPlans__3d_fullres___nnUNetTrainerDiffTumorUNet" in printed
    for trainer in trainers:
        predict_validation_case(project, tmp_path, "3d_fullres", trainer, "--save_probabilities")
    folders = [str(tmp_path / trainer) for trainer in trainers]
    project.run("nnUNetv2_ensemble", "-i", *folders, "-o", str(tmp_path / "ensemble"), "-np", "1")
    assert (tmp_path / "ensemble" / "tumor_0.nii.gz").is_file()
