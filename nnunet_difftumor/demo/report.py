"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunet_difftumor.ct.datasets import Case, load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.demo import figures, scans
from nnunet_difftumor.demo.layout import FOLD, DemoFolder
from nnunet_difftumor.demo.runner import StageRecord, read_stage_records
from nnunet_difftumor.demo.scores import CaseScore, read_scores
from nnunet_difftumor.demo.settings import DemoSettings
from nnunet_difftumor.demo.split import DemoCases, read_demo_cases
from nnunet_difftumor.injection.log import COUNTS_FILE_NAME, MONTAGE_FILE_NAME, read_counts
from nnunet_difftumor.support.files.atomic_files import written_whole

_PACKAGES = (
    "nnunet-difftumor",
    "nnunetv2",
    "torch",
    "diffusers",
    "batchgenerators",
    "nibabel",
    "SimpleITK",
    "numpy",
)
_AUTOENCODER_MEASURES = {"mean absolute error, held-out, HU": ("mae_hu_", "")}
_DIFFUSION_MEASURES = {
    "mean in held-out tumours, HU": ("", "_mean_hu"),
    "Wasserstein distance to real ones, HU": ("", "_wasserstein_hu"),
}
_OVERVIEW_CASES = 3
_RECONSTRUCTED_CASES = 2
_LOG_VALUE = re.compile(r": (train_loss|val_loss|Pseudo dice) (.+?)\s*$")


def write_report(folder: DemoFolder, settings: DemoSettings) -> Path:
    """Gather what the stages left and write report.html; what is missing is said to be missing.

    Args:
        folder: The demo's folder.
        settings: The demo's settings.
    """
    content = _gather(folder, settings)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("report.html.jinja").render(**content)
    with written_whole(folder.report, overwrite=True) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return folder.report


def _gather(folder: DemoFolder, settings: DemoSettings) -> dict[str, Any]:
    records = read_stage_records(folder.stages)
    scores = read_scores(folder.scores)
    counts = read_counts(folder.training / COUNTS_FILE_NAME)
    heldout = _read_json(folder.autoencoder / "heldout.json")
    return {
        "settings": settings,
        "is_phantom": settings.data == "phantom",
        "cards": _cards(heldout, counts, scores, records),
        "heldout": heldout,
        "counts": counts,
        "count_columns": sorted({key for row in counts for key in row}, key=_count_order),
        "scores": scores,
        "mean_dice": _mean([score.tumor_dice for score in scores]),
        "synthetic": _read_json(folder.synthetic / "tumors.json"),
        "records": records,
        "total_minutes": sum(record.seconds for record in records) / 60.0,
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, {_accelerator()}",
        "pictures": _pictures(folder, counts, scores),
    }


def _pictures(
    folder: DemoFolder, counts: Sequence[Mapping[str, int]], scores: Sequence[CaseScore]
) -> dict[str, str | None]:
    pictures = {
        "autoencoder": _training_curves(folder.autoencoder, _AUTOENCODER_MEASURES),
        "diffusion": _training_curves(folder.diffusion, _DIFFUSION_MEASURES),
        "montage": figures.embed_png(folder.synthetic / "montage.png"),
        "inplace": figures.embed_png(folder.evaluation / "inplace.png"),
        "samples": figures.embed_png(folder.training / MONTAGE_FILE_NAME),
        "counts": figures.draw_counts(counts),
        "segmentation": figures.draw_segmentation_curves(read_training_logs(folder.training)),
        "overview": None,
        "reconstructions": None,
        "predictions": None,
    }
    if not (folder.raw / "dataset.json").is_file():
        return pictures
    dataset = load_raw_dataset(folder.raw)
    organ_label, tumor_label = resolve_label_roles(dataset.options["labels"])
    by_identifier = {case.identifier: case for case in dataset.cases}
    split = read_demo_cases(folder)
    pictures["overview"] = scans.draw_overview(_overview_cases(split, by_identifier), organ_label, tumor_label)
    weights = folder.autoencoder / "autoencoder"
    if (weights / "config.json").is_file():
        held_out = [by_identifier[name] for name in split.validation[:_RECONSTRUCTED_CASES]]
        pictures["reconstructions"] = scans.draw_reconstructions(held_out, weights, tumor_label)
    predicted = [
        scans.read_scan(by_identifier[score.identifier], folder.predictions / f"{score.identifier}.nii.gz")
        for score in scores
        if score.identifier in by_identifier
    ]
    notes = {score.identifier: _score_note(score) for score in scores}
    pictures["predictions"] = scans.draw_predictions(predicted, tumor_label, notes)
    return pictures


def _training_curves(run: Path, measures: Mapping[str, tuple[str, str]]) -> str | None:
    return figures.draw_training(run / "history.csv", run / "heldout_history.csv", measures)


def read_training_logs(training: Path) -> dict[str, list[float]]:
    """Read losses and pseudo Dice from nnU-Net's training logs.

    Args:
        training: Output folder of an nnU-Net training; may be missing.

    Returns:
        Values per epoch: "training loss", "validation loss" and one "Dice" entry per label.
    """
    values: dict[str, list[float]] = {"training loss": [], "validation loss": []}
    logs = sorted(training.glob("training_log_*.txt")) if training.is_dir() else []
    for line in (line for log in logs for line in log.read_text(encoding="utf-8").splitlines()):
        found = _LOG_VALUE.search(line)
        if found is None:
            continue
        name, text = found.groups()
        if name == "Pseudo dice":
            for index, dice in enumerate(re.findall(r"-?\d+\.\d+(?:e-?\d+)?|nan", re.sub(r"float\d+", "", text))):
                values.setdefault(f"Dice, label {index + 1}", []).append(float(dice))
        else:
            values["training loss" if name == "train_loss" else "validation loss"].append(float(text))
    return values


def _overview_cases(split: DemoCases, by_identifier: Mapping[str, Case]) -> list[Case]:
    names = [*split.tumor_training[: _OVERVIEW_CASES - 1], *split.healthy[:1]]
    return [by_identifier[name] for name in names if name in by_identifier]


def _cards(
    heldout: Any, counts: Sequence[Mapping[str, int]], scores: Sequence[CaseScore], records: Sequence[StageRecord]
) -> list[tuple[str, str, str]]:
    """The numbers at the top: value, name, what it is compared with."""
    cards = []
    if heldout:
        errors = heldout.get("body", heldout["all"])
        note = f"2x pooling {errors['mae_pool2_hu']:.1f}, 4x pooling {errors['mae_pool4_hu']:.1f} HU"
        cards.append((f"{errors['mae_hu']:.1f} HU", "reconstruction error inside the body, held-out cases", note))
    carrying, injected = (sum(row.get(key, 0) for row in counts) for key in ("carrying", "injected"))
    if carrying:
        note = f"{injected} of {carrying}; the others look elsewhere in their case, as nnU-Net's samples do"
        cards.append((f"{100 * injected / carrying:.0f} %", "of the samples of such cases show a tumour", note))
    mean = _mean([score.tumor_dice for score in scores])
    if mean is not None:
        count = sum(score.tumor_dice is not None for score in scores)
        cards.append((f"{mean:.2f}", "mean tumour Dice", f"{count} validation cases of fold {FOLD}, real tumours only"))
    minutes = sum(record.seconds for record in records) / 60.0
    cards.append((f"{minutes:.1f} min", "for all stages", f"on {os.cpu_count()} CPU cores, {_accelerator()}"))
    return cards


def _score_note(score: CaseScore) -> str:
    if score.tumor_dice is None:
        return f"healthy, false alarm {score.predicted_ml:.1f} ml"
    return f"Dice {score.tumor_dice:.2f}"


def _count_order(name: str) -> tuple[int, str]:
    first = ("epoch", "healthy_samples", "carrying", "injected", "out_of_view")
    return (first.index(name), name) if name in first else (len(first) + name.startswith("rejected_"), name)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _versions() -> list[tuple[str, str]]:
    return [("Python", platform.python_version())] + [
        (package, importlib.metadata.version(package)) for package in _PACKAGES
    ]


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
