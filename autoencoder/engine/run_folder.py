"""The output folder of one training run: whose it is, whether it may be gone on with, and its checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from autoencoder.engine.files import LOCK_FILE

SETTINGS_FILE = "fit.json"
_AVERAGED_WEIGHTS = "averaged_weights.safetensors"
_FOLDER_NAME = re.compile(r"step_(\d{8,})")
_FREE_AT_RESUME = ("settings.checkpoint_every", "settings.keep_checkpoints", "settings.workers")


class OutputFolderExistsError(ValueError):
    """The output folder holds something and the run was not asked to resume."""


class ResumeError(ValueError):
    """The output folder belongs to a run with other settings, or to no run."""


def check_run_folder(folder: Path, manifest: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that this run must not write into; the manifest, JSON content, must be the same at a resume.

    Raises:
        OutputFolderExistsError: If the folder is not empty and `resume` is False.
        ResumeError: If `resume` is True and the folder holds another run, or none.
    """
    if not folder.exists() or (folder.is_dir() and all(path.name == LOCK_FILE for path in folder.iterdir())):
        return
    if not resume:
        raise OutputFolderExistsError(
            f"{folder} is not empty. Choose another output folder, or resume the run that is in it."
        )
    settings_file = folder / SETTINGS_FILE
    if not settings_file.is_file():
        raise ResumeError(f"{folder} is not empty and has no {SETTINGS_FILE}: no training run to resume.")
    differences = _differences(json.loads(settings_file.read_text(encoding="utf-8")), manifest)
    if differences:
        raise ResumeError(
            f"The run in {folder} was started with other settings: {'; '.join(differences)}. Resume it with "
            f"its own settings, or choose another output folder."
        )


def _differences(stored: Any, now: Any, name: str = "") -> list[str]:
    """Describe where two JSON values differ, leaving out what may change at a resume."""
    if name in _FREE_AT_RESUME or stored == now:
        return []
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = sorted(stored.keys() | now.keys())
        prefix = f"{name}." if name else ""
        return [d for key in keys for d in _differences(stored.get(key), now.get(key), prefix + key)]
    return [f"{name} was {stored}, is {now}"]


@dataclass(frozen=True)
class CheckpointFolder:
    """Names, newest first and pruning of the checkpoints in one folder: `step_00000200` and so on."""

    root: Path

    def path_of(self, step: int) -> Path:
        """Folder of the checkpoint after this many steps."""
        return self.root / f"step_{step:08d}"

    def steps(self) -> tuple[int, ...]:
        """Steps that have a complete checkpoint, ascending."""
        if not self.root.is_dir():
            return ()
        matches = (_FOLDER_NAME.fullmatch(path.name) for path in self.root.iterdir())
        return tuple(sorted(int(match[1]) for match in matches if match))

    def clear(self) -> None:
        """Remove what killed runs left behind."""
        for leftover in self.root.glob(".unfinished_step_*"):
            shutil.rmtree(leftover)

    def publish(self, temporary: Path, target: Path, keep: int) -> None:
        """Give a complete checkpoint its name and remove all but the newest `keep`."""
        os.replace(temporary, target)
        for step in self.steps()[:-keep]:
            shutil.rmtree(self.path_of(step))


def save_averaged_weights(average: EMAModel, model: nn.Module, folder: Path) -> None:
    """Write the averaged weights, by parameter name, and how many updates they hold."""
    pairs = zip(model.named_parameters(), average.shadow_params, strict=True)
    tensors = {name: value.detach().cpu().contiguous() for (name, _), value in pairs}
    save_file(tensors, folder / _AVERAGED_WEIGHTS, metadata={"optimization_step": str(average.optimization_step)})


def load_averaged_weights(average: EMAModel, model: nn.Module, folder: Path) -> None:
    """Read back what `save_averaged_weights` wrote."""
    with safe_open(folder / _AVERAGED_WEIGHTS, framework="pt") as file, torch.no_grad():
        for (name, _), shadow in zip(model.named_parameters(), average.shadow_params, strict=True):
            shadow.copy_(file.get_tensor(name))
        average.optimization_step = int(file.metadata()["optimization_step"])
