"""Samples seen: counts by case in the output folder, through interruptions, from nnU-Net's own batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_difftumor.trainer.sample_counts import (
    EPOCHS_FILE_NAME,
    SAMPLES_FILE_NAME,
    read_samples_seen,
    write_samples_seen,
)
from nnunet_difftumor.trainer.trainers import nnUNetTrainerHealthyOnly, nnUNetTrainerScheduled


def seen(folder: Path) -> dict[str, int] | None:
    return read_samples_seen(folder / SAMPLES_FILE_NAME)


def test_totals_are_those_of_all_epochs(tmp_path: Path) -> None:
    assert seen(tmp_path) is None
    write_samples_seen(tmp_path, 0, {"b": 1, "a": 3})
    write_samples_seen(tmp_path, 1, {"a": 2, "c": 2})
    assert (tmp_path / SAMPLES_FILE_NAME).read_text().split() == ["case,samples", "a,5", "b,1", "c,2"]


def test_epochs_that_are_trained_again_are_counted_once(tmp_path: Path) -> None:
    """nnU-Net continues from its last checkpoint, here that after epoch 1, and may have been killed while it wrote."""
    for epoch in range(4):
        write_samples_seen(tmp_path, epoch, {"a": 10**epoch})
    with (tmp_path / EPOCHS_FILE_NAME).open("a") as file:
        file.write('{"epoch": 4, "sam')
    write_samples_seen(tmp_path, 2, {"b": 1})
    assert seen(tmp_path) == {"a": 11, "b": 1}
    write_samples_seen(tmp_path, 3, {"b": 2})
    assert seen(tmp_path) == {"a": 11, "b": 3}
    write_samples_seen(tmp_path, 4, {"a": 1})
    assert seen(tmp_path) == {"a": 12, "b": 3}
    write_samples_seen(tmp_path, 0, {"a": 7})
    assert seen(tmp_path) == {"a": 7}


def test_totals_that_lack_epochs_are_not_written(tmp_path: Path) -> None:
    write_samples_seen(tmp_path, 0, {"a": 1})
    write_samples_seen(tmp_path, 2, {"a": 1})
    assert seen(tmp_path) is None


@pytest.fixture
def project(make_nnunet_project: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    project = make_nnunet_project()
    project.activate(monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    project.configure(num_epochs=2)
    return project


@pytest.mark.parametrize("trainer_class", [nnUNetTrainerScheduled, nnUNetTrainerHealthyOnly])
def test_a_training_counts_the_samples_of_its_batches(
    project: Any, monkeypatch: pytest.MonkeyPatch, trainer_class: type
) -> None:
    """Interrupted after its first epoch and continued; the validation samples are not counted."""
    trained: Counter[str] = Counter()

    def train_step(self: Any, batch: dict) -> dict:
        trained.update(map(str, batch["keys"]))
        return {"loss": np.float32(0)}

    monkeypatch.setattr(nnUNetTrainer, "train_step", train_step)
    monkeypatch.setattr(nnUNetTrainer, "validation_step", lambda self, batch: {"loss": np.float32(0)})
    monkeypatch.setattr(nnUNetTrainer, "on_validation_epoch_end", lambda self, outputs: None)
    monkeypatch.setattr(nnUNetTrainer, "on_epoch_end", lambda self: setattr(self, "current_epoch", 1))
    trainers = [project.make_trainer(trainer_class) for _ in range(2)]
    for epoch, trainer in enumerate(trainers):
        trainer.initialize()
        trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 3, 1
        trainer.num_epochs, trainer.current_epoch = epoch + 1, epoch
        monkeypatch.setattr(trainer, "on_train_end", lambda: None)
        trainer.run_training()
    assert seen(Path(trainers[0].output_folder)) == dict(sorted(trained.items()))
    assert trained.total() == 2 * 3 * trainers[0].batch_size
    assert trained.keys() <= set(trainers[0].do_split()[0])


def test_ranks_are_summed(project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = project.make_trainer(nnUNetTrainerScheduled)
    trainer.output_folder, trainer.is_ddp = str(tmp_path), True
    monkeypatch.setattr(nnUNetTrainer, "train_step", lambda self, batch: {})
    monkeypatch.setattr(nnUNetTrainer, "on_train_epoch_end", lambda self, outputs: None)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda made, mine: made.__setitem__(slice(None), [mine, Counter(b=5)])
    )
    batch = {"keys": np.array(["a", "b"])}
    trainer.train_step(batch)
    trainer.on_train_epoch_end([])
    assert seen(tmp_path) == {"a": 1, "b": 6}
    assert list(batch) == ["keys"]
