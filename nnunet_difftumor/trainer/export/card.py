"""README and manifest of an exported model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_difftumor import __version__

if TYPE_CHECKING:
    from nnunet_difftumor.trainer.export.trained_model import TrainedModel
    from nnunet_difftumor.trainer.export.verification import Verification

MANIFEST_NAME = "difftumor_export.json"
_BLOCK_BYTES = 1 << 20


def write_card(folder: Path, model: TrainedModel, verification: Verification, *, keeps_optimizer_state: bool) -> None:
    """Write README.md and difftumor_export.json into an exported folder that is otherwise complete.

    Args:
        verification: On what its predictions were compared.
        keeps_optimizer_state: The checkpoints hold the optimiser's state.
    """
    (folder / "README.md").write_text(
        _readme(model, verification, keeps_optimizer_state=keeps_optimizer_state), encoding="utf-8"
    )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "made_with": {"nnunet-difftumor": __version__, **_versions("nnunetv2", "torch")},
        "trained_with": model.trainer,
        "trainer": model.stock_folder_name.split("__")[0],
        "dataset": model.plans["dataset_name"],
        "plans": model.plans["plans_name"],
        "configuration": model.configuration,
        "folds": list(model.folds),
        "checkpoint": model.checkpoint,
        "keeps_optimizer_state": keeps_optimizer_state,
        "left_out_keys": list(model.left_out),
        "verification": {
            "predictions_identical": True,
            "image": "synthetic" if verification.is_synthetic else "given by the exporter",
            "shape": list(verification.shape),
            "spacing_mm": list(verification.spacing_mm),
            "predicted_voxels_by_label": {str(key): value for key, value in verification.voxels_by_label.items()},
        },
        "sha256": {path.relative_to(folder).as_posix(): _sha256(path) for path in files},
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def predict_command(model: TrainedModel) -> str:
    """Return the command that predicts with an exported model on a machine with stock nnU-Net."""
    words = ["nnUNetv2_predict", "-d", str(model.plans["dataset_name"]), "-c", model.configuration]
    words += ["-p", str(model.plans["plans_name"]), "-f", *model.folds, "-chk", model.checkpoint]
    return " ".join([*words, "-i", "IMAGES", "-o", "PREDICTIONS"])


def _readme(model: TrainedModel, verification: Verification, *, keeps_optimizer_state: bool) -> str:
    channels: dict[str, Any] = model.dataset_json.get("channel_names", model.dataset_json.get("modality", {}))
    ending = model.dataset_json["file_ending"]
    inputs = ", ".join(f"`CASE_{int(number):04d}{ending}` ({name})" for number, name in channels.items())
    labels = ", ".join(f"{name} {value}" for name, value in model.dataset_json["labels"].items())
    versions = ", ".join(f"{name} {version}" for name, version in _versions("nnunetv2", "torch").items())
    image = "a small synthetic volume" if verification.is_synthetic else "an image of the exporter's"
    tumors = " on real and synthetic tumours" if model.saw_synthetic_tumors else ""
    state = (
        "The optimiser's state is kept: `nnUNetv2_train ... --c` goes on with stock nnU-Net, that is without synthetic "
        "tumours."
        if keeps_optimizer_state
        else "The optimiser's state was left out; `nnUNetv2_train ... -pretrained_weights` fine-tunes all the same."
    )
    return f"""# {model.plans["dataset_name"]}: a segmentation network for stock nnU-Net v2

Trained with `{model.trainer}`{tumors} and exported with nnunet-difftumor {__version__}
({versions}). Nothing but nnU-Net is needed to predict with it.

- Input: {inputs}, HU for CT.
- Labels: {labels}.
- Plans `{model.plans["plans_name"]}`, configuration `{model.configuration}`, folds {", ".join(model.folds)},
  `{model.checkpoint}`.

Put this folder into `$nnUNet_results/{model.plans["dataset_name"]}/` under its name, and

```bash
{predict_command(model)}
```

or, wherever it lies, `nnUNetv2_predict_from_modelfolder -m FOLDER` with the same `-f` and `-chk`.

## What was checked

This folder and the original predicted the same probabilities to the bit on {image} of
{" x ".join(map(str, verification.shape))} voxels, loaded by nnU-Net's own predictor; the axes of mirroring are
the same. `{MANIFEST_NAME}` has the SHA-256 of every file.

nnU-Net unpickles checkpoints, which can run code: take them only from people whom you trust. These hold tensors
and plain values, and `torch.load(FILE, weights_only=True)` reads them without running code of the file.

## What is not in it

Lists of cases, splits, training logs, validation predictions, records of synthetic tumours, and nnU-Net's
fingerprint of the data set. plans.json keeps the statistics that nnU-Net needs: spacing, shapes and intensities
over all cases. {state}

A network can memorise something of its training data; your data agreement decides whether you may share it.

Research use only. This is **not a medical device**; do not use it for diagnosis or treatment.
"""


def _versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
