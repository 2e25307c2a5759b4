"""DiffTumorMixin before trainers of nnU-Net: tumours with each, its own batches without them, refusals."""

import json
import random

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.benchmarking.nnUNetTrainerBenchmark_5epochs_noDataLoading import (
    nnUNetTrainerBenchmark_5epochs_noDataLoading,
)
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs

from nnunet_difftumor.trainer.mixin import DiffTumorMixin

STOCK = pytest.mark.parametrize(
    "base",
    [nnUNetTrainerDA5, nnUNetTrainerNoMirroring, nnUNetTrainerCELoss, nnUNetTrainerNoDeepSupervision],
    ids=lambda base: base.__name__,
)


def combine(*bases):
    return type("Combined", bases, {})


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project()
    project.activate(monkeypatch)
    return project


def draw_batches(trainer, count):
    trainer.initialize()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (nnU-Net draws from the global streams)
    torch.manual_seed(0)
    train, val = trainer.get_dataloaders()
    return [next(train) for _ in range(count)], [next(val) for _ in range(2)]


def finest(batch):
    """The target at full resolution: the first of a list under deep supervision."""
    return batch["target"][0] if isinstance(batch["target"], list) else batch["target"]


@STOCK
def test_healthy_samples_get_tumors_whatever_the_trainer_changes(project, base):
    batches, validation = draw_batches(project.make_trainer(combine(DiffTumorMixin, base)), 6)
    injected = sum(batch["difftumor"]["counts"].get("injected", 0) for batch in batches)
    with_tumor = [
        key
        for batch in batches
        for key, target in zip(batch["keys"], finest(batch), strict=True)
        if key.startswith("healthy") and (target == 2).any()
    ]
    assert len(with_tumor) == injected >= 5
    assert all(key.startswith("tumor") for batch in validation for key in batch["keys"])
    assert not any("difftumor" in batch for batch in validation)


@STOCK
@pytest.mark.parametrize("inject_into", ["healthy", "both"])
def test_without_injection_batches_are_the_trainers_own_to_the_bit(project, base, inject_into, monkeypatch):
    own_init = GaussianBlurTransform.__init__

    def without_benchmark(self, *args, **kwargs):  # timing decides between two blurs that differ by rounding
        own_init(self, *args, **{**kwargs, "benchmark": False})

    monkeypatch.setattr(GaussianBlurTransform, "__init__", without_benchmark)
    project.configure(inject_into=inject_into, injection_probability=0, annotated_injection_probability=0)
    ours = project.make_trainer(combine(DiffTumorMixin, base))
    train_cases, val_cases = ours.do_split()
    split = [{"train": train_cases, "val": val_cases}]
    (project.preprocessed / "splits_final.json").write_text(json.dumps(split))
    stock = project.make_trainer(base)
    for batches, expected in zip(draw_batches(ours, 6), draw_batches(stock, 6), strict=True):
        for batch, reference in zip(batches, expected, strict=True):
            assert list(batch["keys"]) == list(reference["keys"])
            assert torch.equal(batch["data"], reference["data"])
            assert isinstance(batch["target"], list) == isinstance(reference["target"], list)
            assert all(torch.equal(a, b) for a, b in zip(batch["target"], reference["target"], strict=True))


def test_a_trainers_own_length_is_kept_where_the_settings_name_none(project):
    settings = json.loads((project.preprocessed / "difftumor.json").read_text())
    trainer = project.make_trainer(combine(DiffTumorMixin, nnUNetTrainer_5epochs))
    trainer.initialize()
    assert trainer.num_epochs == settings["num_epochs"] == 1
    del settings["num_epochs"]
    (project.preprocessed / "difftumor.json").write_text(json.dumps(settings))
    trainer = project.make_trainer(combine(DiffTumorMixin, nnUNetTrainer_5epochs))
    trainer.initialize()
    assert trainer.num_epochs == trainer.lr_scheduler.max_steps == 5


class TrainerWithLoadersOfItsOwn(nnUNetTrainer):
    def get_dataloaders(self):
        return None, None


class TrainerThatInheritsSuchLoaders(TrainerWithLoadersOfItsOwn):
    pass


@pytest.mark.parametrize(
    ("base", "owner"),
    [
        (nnUNetTrainerBenchmark_5epochs_noDataLoading, "nnUNetTrainerBenchmark_5epochs_noDataLoading"),
        (TrainerWithLoadersOfItsOwn, "TrainerWithLoadersOfItsOwn"),
        (TrainerThatInheritsSuchLoaders, "TrainerWithLoadersOfItsOwn"),
    ],
    ids=["nnU-Net's", "own", "inherited"],
)
def test_trainers_with_loaders_of_their_own_are_refused_by_name(base, owner):
    with pytest.raises(TypeError, match=rf"Combined cannot get synthetic tumours: {owner} makes its own data loaders"):
        combine(DiffTumorMixin, base)


@pytest.mark.parametrize("bases", [(nnUNetTrainerDA5, DiffTumorMixin), (DiffTumorMixin,)], ids=["after", "alone"])
def test_the_mixin_after_a_trainer_or_without_one_is_refused(bases):
    with pytest.raises(TypeError, match="must name DiffTumorMixin before a trainer"):
        combine(*bases)
