"""A trained nnU-Net folder rewritten for stock nnU-Net, without what could tell of the training's patients.

What nnU-Net 2.8 reads to predict (nnUNetPredictor.initialize_from_trained_model_folder): plans.json, dataset.json and,
of every checkpoint, network_weights; of the first one also trainer_name, init_args["configuration"] and
inference_allowed_mirroring_axes. The trainer is asked for its network only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from nnunet_difftumor import __version__
from nnunet_difftumor.errors import ModelExportError, OutputExistsError
from nnunet_difftumor.support.files.atomic_files import folder_written_whole, write_json
from nnunet_difftumor.trainer.export.trained_model import (
    STOCK_TRAINER,
    TrainedModel,
    load_checkpoint,
    read_trained_model,
)
from nnunet_difftumor.trainer.export.verification import verify_same_predictions

MANIFEST_NAME = "difftumor_export.json"
_TRAINING_KEYS = ("optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch")


def export_model(
    model_folder: Path,
    output: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    keep_optimizer_state: bool = False,
    verify_with: Sequence[Path] = (),
    device: str = "cpu",
) -> tuple[TrainedModel, dict[str, Any]]:
    """Write a folder with which stock nnU-Net predicts what the trained model predicts, and compare both.

    Checkpoints are unpickled as nnU-Net does it (torch.load with weights_only=False), which runs code that a
    file may hold. Those that are written hold tensors and plain values only.

    Args:
        model_folder: A trained model (TRAINER__PLANS__CONFIGURATION), with plans.json and fold_*.
        output: New folder named nnUNetTrainer__PLANS__CONFIGURATION.
        folds: Folds to export; those that have the checkpoint by default.
        keep_optimizer_state: Keep what stock nnU-Net needs to train on.
        verify_with: Image to compare predictions on, one file a channel; a small synthetic volume by default.

    Returns:
        The model, and what `verify_same_predictions` found.

    Raises:
        ModelExportError: If the folder is no trained model, stock nnU-Net could not build its network, `output`
            has another name, or the predictions differ. Nothing is left of the output then.
        OutputExistsError: If `output` exists.
    """
    model = read_trained_model(model_folder, folds, checkpoint)
    if output.name != model.stock_folder_name:
        raise ModelExportError(
            f"nnUNetv2_predict finds this model only in a folder named {model.stock_folder_name}, but --output is "
            f"{output}. Give {output / model.stock_folder_name}."
        )
    if output.resolve() == model_folder.resolve():
        raise OutputExistsError(f"--output is the model itself ({output}); choose a folder elsewhere.")
    with folder_written_whole(output) as temporary:
        for name, content in model.kept.items():
            (temporary / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        for fold in tqdm(model.folds, desc="exporting folds", disable=len(model.folds) < 2):
            content = _stock_checkpoint(model, fold, keep_optimizer_state=keep_optimizer_state)
            (temporary / f"fold_{fold}").mkdir()
            _save_plain(content, temporary / f"fold_{fold}" / checkpoint)
        verification = verify_same_predictions(model, temporary, images=verify_with, device=device)
        _write_card(temporary, model, verification, keep_optimizer_state)
    return model, verification


def _stock_checkpoint(model: TrainedModel, fold: str, *, keep_optimizer_state: bool) -> dict[str, Any]:
    """Content of a checkpoint for stock nnU-Net: tensors and plain values only."""
    content = load_checkpoint(model.folder / f"fold_{fold}" / model.checkpoint)
    axes = content.get("inference_allowed_mirroring_axes")
    stock: dict[str, Any] = {
        "trainer_name": STOCK_TRAINER,
        "init_args": {
            "plans": model.kept["plans.json"],
            "configuration": model.configuration,
            "fold": int(fold) if fold.isdigit() else fold,
            "dataset_json": model.kept["dataset.json"],
        },
        "inference_allowed_mirroring_axes": None if axes is None else tuple(int(axis) for axis in axes),
    }
    if keep_optimizer_state:
        stock.update({key: content[key] for key in _TRAINING_KEYS if key in content})
    return {"network_weights": content["network_weights"], **_plain(stock)}


def _save_plain(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint and make sure that it can be read without running code of it."""
    torch.save(dict(content), path)
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelExportError(
            f"The checkpoint holds more than tensors and plain values, which only its trainer could read: {error}"
        ) from error


def _plain(value: Any) -> Any:
    """Replace numpy's values by Python's, so that torch.load(weights_only=True) reads a checkpoint."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value


def _write_card(folder: Path, model: TrainedModel, verification: dict[str, Any], keeps_optimizer_state: bool) -> None:
    """Write README.md and the manifest, both from one record, into an exported folder that is otherwise complete."""
    versions = {name: importlib.metadata.version(name) for name in ("nnunetv2", "torch")}
    record = {
        "made_with": {"nnunet-difftumor": __version__, **versions},
        "trained_with": model.trainer,
        "trainer": STOCK_TRAINER,
        "dataset": model.plans["dataset_name"],
        "plans": model.plans["plans_name"],
        "configuration": model.configuration,
        "folds": model.folds,
        "checkpoint": model.checkpoint,
        "keeps_optimizer_state": keeps_optimizer_state,
        "left_out_keys": model.left_out,
        "verification": verification,
    }
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.get_template("README.md.jinja")
    readme = template.render(record, model=model, manifest_name=MANIFEST_NAME)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    write_json(folder / MANIFEST_NAME, {**record, "sha256": hashes})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
