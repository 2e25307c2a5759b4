"""Where nnU-Net's commands look for trainers outside its own package."""

from __future__ import annotations

import os
from pathlib import Path

EXT_TRAINER_VARIABLE = "nnUNet_extTrainer"


def ext_trainer_folder() -> Path:
    """Return the folder that holds the module for nnU-Net's trainer search."""
    return Path(__file__).resolve().parent / "ext"


def trainer_search_environment() -> dict[str, str]:
    """Variables that let nnU-Net find the trainers of this package beside those that the user has set."""
    own = str(ext_trainer_folder())
    folders = [folder for folder in os.environ.get(EXT_TRAINER_VARIABLE, "").split(os.pathsep) if folder]
    return {EXT_TRAINER_VARIABLE: os.pathsep.join(folders if own in folders else [*folders, own])}
