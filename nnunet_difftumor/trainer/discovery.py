"""Trainers by name, as nnU-Net's commands find them, those of this package included."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.search_path import EXT_TRAINER_VARIABLE, trainer_search_environment


@contextlib.contextmanager
def own_trainers_found() -> Iterator[None]:
    """Let nnU-Net find this package's trainers within the block, whatever nnUNet_extTrainer is."""
    with temporary_environment(**trainer_search_environment()):
        yield


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """Find a trainer class: nnU-Net's own, this package's, or one in a folder named by nnUNet_extTrainer.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    with own_trainers_found(), contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints every module it inspects
        try:
            return recursive_find_trainer_class_by_name(name)
        except RuntimeError as error:
            raise ConfigurationError(
                f"Neither nnU-Net nor this package has a trainer '{name}'. If it is one of your own, name its folder "
                f"in {EXT_TRAINER_VARIABLE}, as for training with it."
            ) from error
