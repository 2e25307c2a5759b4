"""Trainers as nnU-Net makes them, in surroundings that leave nothing behind."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed

from nnunet_difftumor.cases.extra.joining import join_datasets
from nnunet_difftumor.cases.nnunet_folders import find_dataset_name, read_plans
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.settings.resolving import ResolvedConfig
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig
from nnunet_difftumor.support.files.declared import check
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.discovery import find_trainer
from nnunet_difftumor.trainer.mixin import DiffTumorMixin


@dataclass(frozen=True, kw_only=True)
class TrainingChoice:
    """Which training is measured, as nnU-Net's commands name it.

    Attributes:
        trainer: Trainer with synthetic tumours.
        baseline: Trainer that it is compared with; it gets the same training cases.
        injection_probability: In place of the one in the user's settings; None: theirs.
    """

    dataset: str
    configuration: str = "3d_fullres"
    plans: str = "nnUNetPlans"
    fold: str = "0"
    trainer: str = "nnUNetTrainerDiffTumor"
    baseline: str = "nnUNetTrainer"
    injection_probability: float | None = None


@contextlib.contextmanager
def surroundings() -> Iterator[None]:
    """Let trainers write into a temporary results folder."""
    with (
        tempfile.TemporaryDirectory(prefix="difftumor_overhead_") as folder,
        temporary_environment(nnUNet_results=folder, nnUNet_wandb_enabled="0"),
    ):
        yield


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch calculate with so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quiet() -> contextlib.AbstractContextManager[object]:
    """Keep nnU-Net's prints from the screen."""
    return contextlib.redirect_stdout(io.StringIO())


def make_trainers(choice: TrainingChoice, device: str) -> tuple[Any, Any]:
    """Make and initialise the baseline and the trainer with synthetic tumours, within `surroundings`.

    Both get the cases that the second one trains on: without that, the baseline would draw other cases, and
    nnU-Net would write a split of its own beside the plans.

    Raises:
        ConfigurationError: If a trainer is unknown, or it is not one with synthetic tumours.
        DatasetError: If the data set, its plans or the configuration are missing.
    """
    trainer_class = find_trainer(choice.trainer)
    if not issubclass(trainer_class, DiffTumorMixin):
        raise ConfigurationError(
            f"{choice.trainer} has no synthetic tumours (no DiffTumorMixin), so there is nothing to measure. Name "
            "nnUNetTrainerDiffTumor or one of your own that is made with the mixin."
        )
    plans, dataset_json = _read_dataset(choice)
    fold = int(choice.fold) if choice.fold.isdigit() else choice.fold
    kinds: list[Any] = [find_trainer(choice.baseline), trainer_class]
    with quiet():
        baseline, trainer = (  # a trainer changes what it is given
            kind(copy.deepcopy(plans), choice.configuration, fold, copy.deepcopy(dataset_json), torch.device(device))
            for kind in kinds
        )
        own_datasets, own_settings = baseline.get_tr_and_val_datasets, trainer._resolve_config

        def datasets() -> tuple[Any, Any]:
            train, val = own_datasets()
            return join_datasets(train, trainer._extra_healthy), val

        def settings() -> ResolvedConfig:
            resolved = own_settings()
            values = {**resolved.config.to_json(), "injection_probability": choice.injection_probability}
            return replace(resolved, config=check(values, DiffTumorConfig, "--injection-probability"))

        baseline.do_split, baseline.get_tr_and_val_datasets = trainer.do_split, datasets
        if choice.injection_probability is not None:
            trainer._resolve_config = settings
        for each in (baseline, trainer):
            each.disable_checkpointing = True
            each.initialize()
    return baseline, trainer


def _read_dataset(choice: TrainingChoice) -> tuple[dict[str, Any], dict[str, Any]]:
    if not nnUNet_preprocessed.is_set():
        raise ConfigurationError("nnUNet_preprocessed must be set, as for training.")
    folder = Path(str(nnUNet_preprocessed)) / find_dataset_name(choice.dataset)
    plans, dataset_json = read_plans(folder, choice.plans, choice.configuration)
    return {**plans, "continue_training": False}, dataset_json
