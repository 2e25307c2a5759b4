"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.ct.reading import read_ct, read_mask
from nnunet_difftumor.demo.figures import PREDICTION_COLOR, TRUTH_COLOR, draw_curves, draw_prediction, make_grid
from nnunet_difftumor.demo.layout import DemoFolder
from nnunet_difftumor.demo.settings import DemoSettings
from nnunet_difftumor.injection.log import COUNTS_FILE_NAME, MONTAGE_FILE_NAME
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.pictures.montage import own_style, save_figure
from nnunet_difftumor.support.pictures.pages import embed_png, page_environment

_PACKAGES = ("nnunet-difftumor", "nnunetv2", "torch", "diffusers", "nibabel", "SimpleITK", "numpy")
_NO_CURVES = ["learning_rate", "gradient_norm"]
_SHOWN_STEPS = 40
_LOG_VALUE = re.compile(r": (train_loss|val_loss|Pseudo dice) (.+?)\s*$", re.MULTILINE)


def write_report(folder: DemoFolder, settings: DemoSettings) -> Path:
    """Gather what the steps left and write report.html; what is missing is said to be missing."""
    folder.pictures.mkdir(exist_ok=True)
    scores = read_scores(folder)
    with own_style():
        _draw_predictions(folder, scores)
        _draw_curves(folder)
    counts = _read_table(folder.training / COUNTS_FILE_NAME, "epoch").sum().astype(int).to_dict()
    pictures = {
        "tumors": folder.synthetic / "montage.png",
        "predictions": folder.pictures / "predictions.png",
        "samples": folder.training / MONTAGE_FILE_NAME,
        "inplace": folder.evaluation / "inplace.png",
        "curves": folder.pictures / "curves.png",
    }
    content = {
        "settings": settings,
        "is_phantom": settings.data == "phantom",
        "heldout": _read_json(folder.autoencoder / "heldout.json"),
        "counts": counts,
        "rejected": {key[len("rejected_") :]: n for key, n in counts.items() if n and key.startswith("rejected_")},
        "scores": scores.to_dict("records"),
        "mean_dice": scores["dice"].mean(),
        "synthetic": _read_json(folder.synthetic / "tumors.json"),
        "records": [_read_json(path) for path in sorted(folder.stages.glob("*.json"))],
        "versions": {
            "Python": platform.python_version(),
            **{each: importlib.metadata.version(each) for each in _PACKAGES},
        },
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, {_accelerator()}",
        "pictures": {name: embed_png(path) for name, path in pictures.items() if path.is_file()},
        "colors": (TRUTH_COLOR, PREDICTION_COLOR),
    }
    html = page_environment(Path(__file__).parent).get_template("report.html.jinja").render(**content)
    with written_whole(folder.report, overwrite=True) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return folder.report


def read_scores(folder: DemoFolder) -> pd.DataFrame:
    """Read what `difftumor score` says of the tumour label, one row a case; no rows before it has run.

    A case without a tumour has no Dice, whether nnU-Net predicted one or not.
    """
    path = folder.scores / "cases.csv"
    if not path.is_file():
        return pd.DataFrame({"dice": []})
    cases = pd.read_csv(path).dropna(subset=["reference_tumors"])  # organs have no tumours to count
    return cases.assign(dice=cases["dice"].where(~cases["is_healthy"]))


def read_training_logs(training: Path) -> pd.DataFrame:
    """Read losses and pseudo Dice from nnU-Net's training logs.

    Args:
        training: Output folder of an nnU-Net training; may be missing.

    Returns:
        One row an epoch: "training loss", "validation loss" and one "Dice" column per label.
    """
    columns: dict[str, list[float]] = {}
    text = "".join(log.read_text(encoding="utf-8") for log in sorted(training.glob("training_log_*.txt")))
    for name, value in _LOG_VALUE.findall(text):
        if name == "Pseudo dice":
            for index, dice in enumerate(re.findall(r"-?\d+\.\d+(?:e-?\d+)?|nan", re.sub(r"float\d+", "", value)), 1):
                columns.setdefault(f"Dice, label {index}", []).append(float(dice))
        else:
            columns.setdefault("training loss" if name == "train_loss" else "validation loss", []).append(float(value))
    table = pd.DataFrame({name: pd.Series(values, dtype=float) for name, values in columns.items()})
    return table.rename_axis("epoch")


def _draw_predictions(folder: DemoFolder, scores: pd.DataFrame) -> None:
    if scores.empty:
        return
    dataset = load_raw_dataset(folder.raw)
    _, tumor_label = resolve_label_roles(dataset.options["labels"])
    cases = {case.identifier: case for case in dataset.cases}
    figure, axes = make_grid(len(scores), columns=4, height=2.9)
    for axis, score in zip(axes, scores.to_dict("records"), strict=True):
        case = cases[score["case"]]
        assert case.label_path is not None
        ct = read_ct(case.image_path)
        paths = (case.label_path, folder.predictions / case.label_path.name)
        draw_prediction(axis, ct, *(read_mask(path, ct) == tumor_label for path in paths))
        note = (
            f"no tumour, {score['predicted_ml']:.1f} ml predicted"
            if score["is_healthy"]
            else f"Dice {score['dice']:.2f}"
        )
        axis.set_title(f"{case.identifier}\n{note}", fontsize=9)
    save_figure(figure, folder.pictures / "predictions.png")


def _draw_curves(folder: DemoFolder) -> None:
    logs = read_training_logs(folder.training)
    counts = _read_table(folder.training / COUNTS_FILE_NAME, "epoch")
    heldout = _read_table(folder.autoencoder / "heldout_history.csv", "step")
    tumors = _read_table(folder.diffusion / "heldout_history.csv", "step")
    panels = {
        "autoencoder: training loss": _losses(folder.autoencoder),
        "autoencoder: held-out error, HU": heldout.filter(like="mae_hu_"),
        "diffusion model: training loss": _losses(folder.diffusion),
        "diffusion model: distance to held-out tumours": tumors.filter(items=["synthetic_wasserstein_hu"]),
        "nnU-Net: loss": logs.filter(like="loss"),
        "nnU-Net: pseudo Dice of validation patches": logs.filter(like="Dice"),
        "nnU-Net: healthy crops, all and with tumours": counts.filter(items=["healthy_samples", "injected"]),
    }
    known = {title: table for title, table in panels.items() if not table.empty}
    if known:
        save_figure(draw_curves(known), folder.pictures / "curves.png")


def _losses(run: Path) -> pd.DataFrame:
    """Moving averages of the losses of a training."""
    losses = _read_table(run / "history.csv", "step").drop(columns=_NO_CURVES, errors="ignore")
    return pd.DataFrame(losses.rolling(max(1, len(losses) // _SHOWN_STEPS)).mean())


def _read_table(path: Path, index: str) -> pd.DataFrame:
    return pd.read_csv(path, index_col=index) if path.is_file() else pd.DataFrame()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
