"""A trained nnU-Net folder rewritten for stock nnU-Net, without what could tell of the training's patients.

What nnU-Net 2.8 reads to predict (nnUNetPredictor.initialize_from_trained_model_folder): plans.json, dataset.json and,
of every checkpoint, network_weights; of the first one also trainer_name, init_args["configuration"] and
inference_allowed_mirroring_axes. The trainer is asked for its network only.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_difftumor.errors import ModelExportError, OutputExistsError
from nnunet_difftumor.injection.log import COUNTS_FILE_NAME, read_counts
from nnunet_difftumor.support.files.atomic_files import folder_written_whole
from nnunet_difftumor.trainer.discovery import find_trainer
from nnunet_difftumor.trainer.export.card import write_card
from nnunet_difftumor.trainer.export.verification import Verification, verify_same_predictions

STOCK_TRAINER = nnUNetTrainer.__name__
DEFAULT_CHECKPOINT = "checkpoint_final.pth"
_PLANS_KEYS = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "original_median_shape_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "configurations",
    "experiment_planner_used",
    "label_manager",
    "foreground_intensity_properties_per_channel",
    "foreground_intensity_properties_by_modality",
)
_DATASET_KEYS = (
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "numTraining",
    "file_ending",
    "overwrite_image_reader_writer",
)
_STOCK_PACKAGES = ("dynamic_network_architectures", "nnunetv2", "torch")
_TRAINING_KEYS = ("optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch")


@dataclass(frozen=True)
class TrainedModel:
    """A folder that nnU-Net trained into, as far as its checkpoints agree.

    Attributes:
        folder: The folder, named TRAINER__PLANS__CONFIGURATION by nnU-Net.
        plans: Content of plans.json.
        dataset_json: Content of dataset.json.
        trainer: Name of the trainer.
        configuration: Name of the configuration, such as 3d_fullres.
        folds: Folds to export: numbers, or "all".
        checkpoint: File name of the checkpoints.
    """

    folder: Path
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    trainer: str
    configuration: str
    folds: tuple[str, ...]
    checkpoint: str

    @property
    def stock_folder_name(self) -> str:
        """Name that nnUNetv2_predict looks for with stock nnU-Net."""
        return f"{STOCK_TRAINER}__{self.plans['plans_name']}__{self.configuration}"

    @property
    def saw_synthetic_tumors(self) -> bool:
        """True if synthetic tumours were injected in the training of a fold, as far as its counts are there."""
        counts = [row for fold in self.folds for row in read_counts(self.folder / f"fold_{fold}" / COUNTS_FILE_NAME)]
        return any(row["injected"] > 0 for row in counts)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Keys of plans.json and dataset.json that are not exported."""
        return tuple(
            f"{name}[{key}]"
            for name, content, kept in (
                ("plans.json", self.plans, _PLANS_KEYS),
                ("dataset.json", self.dataset_json, _DATASET_KEYS),
            )
            for key in content
            if key not in kept
        )


@dataclass(frozen=True)
class ExportedModel:
    """What `export_model` wrote.

    Attributes:
        folder: The exported folder.
        source: The model that was exported.
        verification: On what its predictions were compared with those of the original.
    """

    folder: Path
    source: TrainedModel
    verification: Verification


def export_model(
    model_folder: Path,
    output: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    keep_optimizer_state: bool = False,
    verify_with: Sequence[Path] = (),
    device: str = "cpu",
) -> ExportedModel:
    """Write a folder with which stock nnU-Net predicts what the trained model predicts, and compare both.

    Checkpoints are unpickled as nnU-Net does it (torch.load with weights_only=False), which runs code that a
    file may hold. Those that are written hold tensors and plain values only.

    Args:
        model_folder: Folder of a trained model (TRAINER__PLANS__CONFIGURATION), with plans.json and fold_*.
        output: New folder named nnUNetTrainer__PLANS__CONFIGURATION.
        folds: Folds to export; those that have the checkpoint by default.
        checkpoint: File name of the checkpoints.
        keep_optimizer_state: Keep what stock nnU-Net needs to train on.
        verify_with: Image to compare predictions on, one file a channel; a small synthetic volume by default.
        device: Torch device of the comparison.

    Returns:
        What was written.

    Raises:
        ModelExportError: If the folder is no trained model, stock nnU-Net could not build its network, `output`
            has another name, or the predictions differ. Nothing is left of the output then.
        OutputExistsError: If `output` exists.
    """
    model = read_trained_model(model_folder, folds, checkpoint)
    refuse_networks_of_others(model)
    if output.name != model.stock_folder_name:
        raise ModelExportError(
            f"nnUNetv2_predict finds this model only in a folder named {model.stock_folder_name}, but --output is "
            f"{output}. Give {output / model.stock_folder_name}."
        )
    if output.resolve() == model_folder.resolve():
        raise OutputExistsError(f"--output is the model itself ({output}); choose a folder elsewhere.")
    with folder_written_whole(output) as temporary:
        _write_json(temporary / "plans.json", _plain(_kept(model.plans, _PLANS_KEYS)))
        _write_json(temporary / "dataset.json", _plain(_kept(model.dataset_json, _DATASET_KEYS)))
        for fold in tqdm(model.folds, desc="exporting folds", disable=len(model.folds) < 2):
            content = _stock_checkpoint(model, fold, keep_optimizer_state=keep_optimizer_state)
            (temporary / f"fold_{fold}").mkdir()
            _save_plain(content, temporary / f"fold_{fold}" / checkpoint)
        verification = verify_same_predictions(
            model_folder, temporary, folds=model.folds, checkpoint=checkpoint, images=verify_with, device=device
        )
        write_card(temporary, model, verification, keeps_optimizer_state=keep_optimizer_state)
    return ExportedModel(output, model, verification)


def read_trained_model(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> TrainedModel:
    """Read what a trained folder says about itself.

    Args:
        folder: Folder of a trained model.
        folds: Folds to export; those that have the checkpoint by default.
        checkpoint: File name of the checkpoints.

    Returns:
        The model.

    Raises:
        ModelExportError: If files are missing, or the folds were not trained by one trainer and configuration.
    """
    if folder.name.startswith("fold_") and (folder.parent / "plans.json").is_file():
        raise ModelExportError(f"{folder} is one fold; give the folder above it, {folder.parent}, and --folds.")
    plans, dataset_json = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
    chosen = _find_folds(folder, folds, checkpoint)
    made_by = {fold: _read_origin(folder / f"fold_{fold}" / checkpoint) for fold in chosen}
    if len(set(made_by.values())) > 1:
        listed = ", ".join(f"fold {fold}: {trainer} {name}" for fold, (trainer, name) in made_by.items())
        raise ModelExportError(f"The folds in {folder} were not trained alike ({listed}); choose some with --folds.")
    trainer, configuration = made_by[chosen[0]]
    if configuration not in plans.get("configurations", {}):
        raise ModelExportError(
            f"The checkpoints in {folder} are of configuration '{configuration}', which its plans.json does not hold. "
            "Restore the plans.json that nnU-Net wrote there when it trained."
        )
    return TrainedModel(folder, plans, dataset_json, trainer, configuration, chosen, checkpoint)


def refuse_networks_of_others(model: TrainedModel) -> None:
    """Raise if stock nnU-Net could not build the model's network.

    Args:
        model: The trained model.

    Raises:
        ModelExportError: If the trainer builds its network itself, the plans name classes of other packages, or
            the configuration is the second stage of a cascade.
    """
    trainer = find_trainer(model.trainer)
    owner = next(base for base in trainer.__mro__ if "build_network_architecture" in vars(base))
    if owner is not nnUNetTrainer:
        raise ModelExportError(
            f"{model.trainer} builds its network itself ({owner.__name__}.build_network_architecture) and not from the "
            f"plans, so {STOCK_TRAINER} cannot build it. Share the trainer's code with the model, or train with one "
            "that keeps nnU-Net's network."
        )
    configuration = PlansManager(dict(model.plans)).get_configuration(model.configuration)
    keywords = configuration.network_arch_init_kwargs
    named = [configuration.network_arch_class_name]
    named += [keywords[key] for key in configuration.network_arch_init_kwargs_req_import if keywords.get(key)]
    foreign = [name for name in named if name.split(".")[0] not in _STOCK_PACKAGES]
    if foreign:
        raise ModelExportError(
            f"The plans build the network from {', '.join(foreign)}, which does not come with nnU-Net; a machine with "
            "stock nnU-Net could not build it."
        )
    if configuration.previous_stage_name is not None:
        raise ModelExportError(
            f"'{model.configuration}' is the second stage of a cascade: it predicts from predictions of the first. "
            f"Export {configuration.previous_stage_name} or 3d_fullres."
        )


def _find_folds(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> tuple[str, ...]:
    present = [path.parent.name[len("fold_") :] for path in folder.glob(f"fold_*/{checkpoint}")]
    present.sort(key=lambda fold: (not fold.isdigit(), int(fold) if fold.isdigit() else 0))
    if not present:
        others = sorted({path.name for path in folder.glob("fold_*/checkpoint_*.pth")})
        hint = f"There is {', '.join(others)}: name one with --checkpoint." if others else "Train it first."
        raise ModelExportError(f"No fold in {folder} has {checkpoint}. {hint}")
    missing = [fold for fold in folds or () if fold not in present]
    if missing:
        raise ModelExportError(
            f"{folder} has no {checkpoint} for fold {', '.join(missing)}; it has fold {', '.join(present)}."
        )
    return tuple(dict.fromkeys(folds)) if folds else tuple(present)


def _read_origin(path: Path) -> tuple[str, str]:
    """Trainer and configuration of a checkpoint."""
    content = _load_checkpoint(path)
    return str(content["trainer_name"]), str(content["init_args"]["configuration"])


def _load_checkpoint(path: Path) -> dict[str, Any]:
    """Unpickle a checkpoint as nnU-Net does."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
        missing = {"trainer_name", "init_args", "network_weights"} - set(content)
    except Exception as error:  # a broken pickle raises anything
        raise ModelExportError(f"{path} cannot be read as a checkpoint of nnU-Net: {error}. Restore it.") from error
    if missing:
        raise ModelExportError(f"{path} is no checkpoint of nnU-Net v2: it lacks {', '.join(sorted(missing))}.")
    return content


def _stock_checkpoint(model: TrainedModel, fold: str, *, keep_optimizer_state: bool) -> dict[str, Any]:
    """Content of a checkpoint for stock nnU-Net: tensors and plain values only."""
    content = _load_checkpoint(model.folder / f"fold_{fold}" / model.checkpoint)
    axes = content.get("inference_allowed_mirroring_axes")
    stock: dict[str, Any] = {
        "trainer_name": STOCK_TRAINER,
        "init_args": {
            "plans": _kept(model.plans, _PLANS_KEYS),
            "configuration": model.configuration,
            "fold": int(fold) if fold.isdigit() else fold,
            "dataset_json": _kept(model.dataset_json, _DATASET_KEYS),
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


def _kept(content: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content}


def _plain(value: Any) -> Any:
    """Replace numpy's values by Python's, so that torch.load(weights_only=True) reads a checkpoint."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelExportError(
            f"{path} cannot be read ({error}). --model needs the folder that nnU-Net trained into, such as "
            "$nnUNet_results/Dataset007_Pancreas/nnUNetTrainerDiffTumor__nnUNetPlans__3d_fullres."
        ) from error


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
