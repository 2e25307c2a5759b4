"""Trainers as nnU-Net makes them, in surroundings that leave nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_difftumor.errors import ConfigurationError, DatasetError
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE
from nnunet_difftumor.settings.trainer_settings import is_generator_name
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.discovery import find_trainer
from nnunet_difftumor.trainer.mixin import DiffTumorMixin

_GENERATOR_KEY = "generator"


@dataclass(frozen=True, kw_only=True)
class TrainingChoice:
    """Which training is measured.

    Attributes:
        dataset: nnU-Net data set: number or full name.
        configuration: Configuration, such as 3d_fullres.
        plans: Name of the plans.
        fold: Fold: a number or "all".
        trainer: Trainer with synthetic tumours.
        baseline: Trainer that it is compared with; it gets the same training cases.
    """

    dataset: str
    configuration: str = "3d_fullres"
    plans: str = "nnUNetPlans"
    fold: str = "0"
    trainer: str = "nnUNetTrainerDiffTumor"
    baseline: str = "nnUNetTrainer"


@contextlib.contextmanager
def surroundings(*, injection_probability: float | None = None) -> Iterator[None]:
    """Let trainers write into a temporary results folder, with other settings if asked.

    Args:
        injection_probability: In place of the one that the user set; None keeps the user's settings.

    Yields:
        Nothing; afterwards the environment is as it was and what was written is gone.
    """
    with tempfile.TemporaryDirectory(prefix="difftumor_overhead_") as folder:
        variables: dict[str, str | None] = {
            "nnUNet_results": str(Path(folder) / "results"),
            "nnUNet_wandb_enabled": "0",
        }
        if injection_probability is not None:
            settings = _read_settings(os.environ.get(ENVIRONMENT_VARIABLE))
            path = Path(folder) / "settings.json"
            write_json(path, {**settings, "injection_probability": injection_probability})
            variables[ENVIRONMENT_VARIABLE] = str(path)
        with temporary_environment(**variables):
            yield


def make_trainers(choice: TrainingChoice, device: str) -> tuple[nnUNetTrainer, nnUNetTrainer]:
    """Make and initialise the baseline and the trainer with synthetic tumours, within `surroundings`.

    Both get the cases that the second one trains on: without that, the baseline would draw other cases, and
    nnU-Net would write a split of its own beside the plans.

    Args:
        choice: Which training.
        device: Torch device.

    Returns:
        Baseline and trainer.

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
    content = _read_dataset(choice)
    with quiet():
        baseline = _make(find_trainer(choice.baseline), choice, content, device)
        trainer = _make(trainer_class, choice, content, device)
        baseline.do_split = trainer.do_split
        _share_extra_cases(baseline, trainer)
        for each in (baseline, trainer):
            each.disable_checkpointing = True
            each.initialize()
    return baseline, trainer


def _share_extra_cases(baseline: nnUNetTrainer, trainer: Any) -> None:
    """Let the baseline find the cases of extra data sets, which are in the training list that it is given."""
    own_datasets = baseline.get_tr_and_val_datasets

    def datasets() -> tuple[Any, Any]:
        train, val = own_datasets()
        return trainer.with_extra_cases(train), val

    baseline.get_tr_and_val_datasets = datasets


def quiet() -> contextlib.AbstractContextManager[object]:
    """Keep nnU-Net's prints from the screen."""
    return contextlib.redirect_stdout(io.StringIO())


def _make(
    trainer_class: type[nnUNetTrainer], choice: TrainingChoice, content: tuple[dict, dict], device: str
) -> nnUNetTrainer:
    plans, dataset_json = (json.loads(json.dumps(part)) for part in content)  # a trainer changes its plans
    fold: Any = int(choice.fold) if choice.fold.isdigit() else choice.fold
    plans["continue_training"] = False
    return trainer_class(plans, choice.configuration, fold, dataset_json, torch.device(device))


def _read_dataset(choice: TrainingChoice) -> tuple[dict, dict]:
    """plans.json and dataset.json of the preprocessed data set."""
    if not nnUNet_preprocessed.is_set():
        raise ConfigurationError("nnUNet_preprocessed must be set, as for training.")
    try:
        folder = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(choice.dataset)
    except (RuntimeError, ValueError) as error:
        raise DatasetError(str(error)) from error
    for name in (f"{choice.plans}.json", "dataset.json"):
        if not (folder / name).is_file():
            raise DatasetError(
                f"{folder / name} is missing. Run nnUNetv2_plan_and_preprocess, or name other plans (-p)."
            )
    plans = load_json(str(folder / f"{choice.plans}.json"))
    configurations: Mapping[str, Any] = plans["configurations"]
    if choice.configuration not in configurations:
        raise DatasetError(
            f"{choice.plans} has no configuration '{choice.configuration}', but {', '.join(configurations)}."
        )
    return plans, load_json(str(folder / "dataset.json"))


def _read_settings(environment_path: str | None) -> dict[str, Any]:
    """The user's settings file with paths that hold in another folder."""
    if not environment_path:
        return {}
    path = Path(environment_path).expanduser()
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The settings file {path} (from {ENVIRONMENT_VARIABLE}) cannot be read: {error}."
        ) from error
    return _absolute(settings, path.resolve().parent)


def _absolute(value: Any, folder: Path) -> Any:
    """Make generator paths absolute, wherever they stand in the settings."""
    if isinstance(value, list):
        return [_absolute(entry, folder) for entry in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _absolute(entry, folder) for key, entry in value.items()}
    generator = changed.get(_GENERATOR_KEY)
    if isinstance(generator, str) and not is_generator_name(generator):
        changed[_GENERATOR_KEY] = str(folder / Path(generator).expanduser())
    return changed
