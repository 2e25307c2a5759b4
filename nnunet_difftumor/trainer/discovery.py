"""Trainers by name, as nnU-Net's commands find them, those of this package included."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.support.processes.environment import temporary_environment

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EXT_TRAINER_VARIABLE = "nnUNet_extTrainer"


def ext_trainer_folder() -> Path:
    """Return the folder that holds the module for nnU-Net's trainer search."""
    return Path(__file__).resolve().parent / "ext"


def trainer_search_environment() -> dict[str, str]:
    """Variables that let nnU-Net find the trainers of this package beside those that the user has set."""
    own = str(ext_trainer_folder())
    folders = [folder for folder in os.environ.get(EXT_TRAINER_VARIABLE, "").split(os.pathsep) if folder]
    return {EXT_TRAINER_VARIABLE: os.pathsep.join(folders if own in folders else [*folders, own])}


@contextlib.contextmanager
def own_trainers_found() -> Iterator[None]:
    """Let nnU-Net find this package's trainers within the block, quietly, whatever nnUNet_extTrainer is."""
    with temporary_environment(**trainer_search_environment()), contextlib.redirect_stdout(io.StringIO()):
        yield  # nnU-Net prints every module it inspects


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """Find a trainer class: nnU-Net's own, this package's, or one in a folder named by nnUNet_extTrainer.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with own_trainers_found():
        try:
            return recursive_find_trainer_class_by_name(name)
        except (RuntimeError, AssertionError) as error:  # none of that name, or a class that is no trainer
            raise ConfigurationError(
                f"Neither nnU-Net nor this package has a trainer '{name}'. If it is one of your own, name its folder "
                f"in {EXT_TRAINER_VARIABLE}, as for training with it."
            ) from error
