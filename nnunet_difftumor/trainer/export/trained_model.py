"""A trained nnU-Net folder as it is read."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from diffusion.generator.records import read_json
from nnunet_difftumor.errors import ModelExportError
from nnunet_difftumor.injection.log import COUNTS_FILE_NAME, read_counts
from nnunet_difftumor.trainer.discovery import find_trainer

STOCK_TRAINER = nnUNetTrainer.__name__
_KEPT_KEYS = {
    "plans.json": (
        "dataset_name plans_name original_median_spacing_after_transp original_median_shape_after_transp "
        "image_reader_writer transpose_forward transpose_backward configurations experiment_planner_used label_manager "
        "foreground_intensity_properties_per_channel foreground_intensity_properties_by_modality".split()
    ),
    "dataset.json": (
        "channel_names modality labels regions_class_order numTraining file_ending "
        "overwrite_image_reader_writer".split()
    ),
}
"""What nnU-Net needs of plans.json and dataset.json; everything else may tell of the training's patients."""

_WHICH_FOLDER = (
    "--model needs the folder that nnU-Net trained into, such as "
    "$nnUNet_results/Dataset007_Pancreas/nnUNetTrainerDiffTumor__nnUNetPlans__3d_fullres."
)
_STOCK_PACKAGES = ("dynamic_network_architectures", "nnunetv2", "torch")


@dataclass(frozen=True)
class TrainedModel:
    """A folder that nnU-Net trained into, as far as its checkpoints agree.

    Attributes:
        folder: Named TRAINER__PLANS__CONFIGURATION by nnU-Net.
        folds: Those to export: numbers, or "all".
        checkpoint: File name, the same in every fold.
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
    def _files(self) -> dict[str, Mapping[str, Any]]:
        return {"plans.json": self.plans, "dataset.json": self.dataset_json}

    @property
    def kept(self) -> dict[str, dict[str, Any]]:
        """What of plans.json and dataset.json is exported, by the name of the file."""
        return {
            name: {key: content[key] for key in _KEPT_KEYS[name] if key in content}
            for name, content in self._files.items()
        }

    @property
    def left_out(self) -> tuple[str, ...]:
        """Keys of plans.json and dataset.json that are not exported."""
        files = self._files.items()
        return tuple(f"{name}[{key}]" for name, content in files for key in content if key not in _KEPT_KEYS[name])

    @property
    def channels(self) -> Mapping[str, str]:
        """Names of the input channels by their number."""
        return self.dataset_json.get("channel_names", self.dataset_json.get("modality", {}))

    @property
    def predict_command(self) -> str:
        """The command that predicts with the exported model on a machine with stock nnU-Net."""
        dataset, plans = self.plans["dataset_name"], self.plans["plans_name"]
        words = ["nnUNetv2_predict", "-d", dataset, "-c", self.configuration, "-p", plans, "-f", *self.folds]
        return shlex.join([*words, "-chk", self.checkpoint, "-i", "IMAGES", "-o", "PREDICTIONS"])

    @property
    def saw_synthetic_tumors(self) -> bool:
        """True if synthetic tumours were injected in the training of a fold, as far as its counts are there."""
        counts = [row for fold in self.folds for row in read_counts(self.folder / f"fold_{fold}" / COUNTS_FILE_NAME)]
        return any(row["injected"] > 0 for row in counts)


def read_trained_model(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> TrainedModel:
    """Read what a trained folder says about itself, for some folds or all that have the checkpoint.

    Raises:
        ModelExportError: If files are missing, the folds were not trained by one trainer and configuration, or stock
            nnU-Net could not build the network.
    """
    if folder.name.startswith("fold_") and (folder.parent / "plans.json").is_file():
        raise ModelExportError(f"{folder} is one fold; give the folder above it, {folder.parent}, and --folds.")
    plans, dataset_json = (
        read_json(folder / name, ModelExportError, _WHICH_FOLDER) for name in ("plans.json", "dataset.json")
    )
    chosen = _find_folds(folder, folds, checkpoint)
    made_by = {}
    for fold in chosen:
        content = load_checkpoint(folder / f"fold_{fold}" / checkpoint)
        made_by[fold] = str(content["trainer_name"]), str(content["init_args"]["configuration"])
    if len(set(made_by.values())) > 1:
        listed = ", ".join(f"fold {fold}: {trainer} {name}" for fold, (trainer, name) in made_by.items())
        raise ModelExportError(f"The folds in {folder} were not trained alike ({listed}); choose some with --folds.")
    trainer, configuration = made_by[chosen[0]]
    if configuration not in plans.get("configurations", {}):
        raise ModelExportError(
            f"The checkpoints in {folder} are of configuration '{configuration}', which its plans.json does not hold. "
            "Restore the plans.json that nnU-Net wrote there when it trained."
        )
    model = TrainedModel(folder, plans, dataset_json, trainer, configuration, chosen, checkpoint)
    _refuse_networks_of_others(model)
    return model


def _refuse_networks_of_others(model: TrainedModel) -> None:
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


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Unpickle a checkpoint as nnU-Net does.

    Raises:
        ModelExportError: If it cannot be read or is of another program.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
        missing = {"trainer_name", "init_args", "network_weights"} - set(content)
    except Exception as error:  # a broken pickle raises anything
        raise ModelExportError(f"{path} cannot be read as a checkpoint of nnU-Net: {error}. Restore it.") from error
    if missing:
        raise ModelExportError(f"{path} is no checkpoint of nnU-Net v2: it lacks {', '.join(sorted(missing))}.")
    return content
