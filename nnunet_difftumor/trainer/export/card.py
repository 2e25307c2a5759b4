"""README and manifest of an exported model, both from one record."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunet_difftumor import __version__
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.trainer.export.trained_model import STOCK_TRAINER, TrainedModel

MANIFEST_NAME = "difftumor_export.json"


def write_card(folder: Path, model: TrainedModel, verification: dict[str, Any], *, keeps_optimizer_state: bool) -> None:
    """Write README.md and difftumor_export.json into an exported folder that is otherwise complete.

    Args:
        verification: What `verify_same_predictions` found.
        keeps_optimizer_state: The checkpoints hold the optimiser's state.
    """
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
    (folder / "README.md").write_text(_readme(model, record), encoding="utf-8")
    hashes = {
        path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    write_json(folder / MANIFEST_NAME, {**record, "sha256": hashes})


def _readme(model: TrainedModel, record: dict[str, Any]) -> str:
    dataset: Any = model.dataset_json
    channels = dataset.get("channel_names", dataset.get("modality", {}))
    inputs = [f"`CASE_{int(key):04d}{dataset['file_ending']}` ({name})" for key, name in channels.items()]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("README.md.jinja").render(
        record,
        inputs=", ".join(inputs),
        labels=", ".join(f"{name} {value}" for name, value in dataset["labels"].items()),
        saw_synthetic_tumors=model.saw_synthetic_tumors,
        predict_command=model.predict_command,
        manifest_name=MANIFEST_NAME,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
