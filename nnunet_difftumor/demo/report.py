"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.ct.reading import CTVolume, read_ct, read_mask
from nnunet_difftumor.demo.layout import DemoFolder
from nnunet_difftumor.demo.settings import DemoSettings
from nnunet_difftumor.injection.log import COUNTS_FILE_NAME, MONTAGE_FILE_NAME
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.pictures.montage import (
    SOFT_TISSUE_HU,
    display_spacing_mm,
    own_style,
    save_figure,
    turn_to_display,
)
from nnunet_difftumor.support.pictures.pages import embed_png, page_environment

_PACKAGES = ("nnunet-difftumor", "nnunetv2", "torch", "diffusers", "nibabel", "SimpleITK", "numpy")
_NO_CURVES = ["learning_rate", "gradient_norm", "kl"]  # the last is of another size
_SHOWN_STEPS = 40
_TRUTH_COLOR, _PREDICTION_COLOR = "#2ca02c", "#ff7f0e"
_AIR_HU = -300.0
_FEW = 50
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
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
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
        "versions": {"Python": platform.python_version()} | {each: version(each) for each in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, {gpu}",
        "pictures": {name: embed_png(path) for name, path in pictures.items() if path.is_file()},
        "colors": (_TRUTH_COLOR, _PREDICTION_COLOR),
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
    """Read losses and pseudo Dice from the logs of an nnU-Net training, if there are any.

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
    figure, axes = _make_grid(len(scores), columns=4, height_inches=2.9)
    for axis, score in zip(axes, scores.to_dict("records"), strict=True):
        case = cases[score["case"]]
        assert case.label_path is not None
        ct = read_ct(case.image_path)
        paths = (case.label_path, folder.predictions / case.label_path.name)
        _draw_prediction(axis, ct, *(read_mask(path, ct) == tumor_label for path in paths))
        healthy_note = f"no tumour, {score['predicted_ml']:.1f} ml predicted"
        note = healthy_note if score["is_healthy"] else f"Dice {score['dice']:.2f}"
        axis.set_title(f"{case.identifier}\n{note}", fontsize=9, parse_math=False)
    save_figure(figure, folder.pictures / "predictions.png")


def _draw_prediction(axis: Any, ct: CTVolume, is_true: NDArray[np.bool_], is_predicted: NDArray[np.bool_]) -> None:
    """Draw the transverse slice with most tumour, outlined as it is and as it was predicted."""
    affine = ct.geometry.affine
    image_hu, is_true, is_predicted = (turn_to_display(each, affine) for each in (ct.image_hu, is_true, is_predicted))
    shown = is_true if is_true.any() else is_predicted
    section = int(np.argmax(shown.sum(axis=(1, 2)))) if shown.any() else len(shown) // 2
    image, true, predicted = (volume[section] for volume in (image_hu, is_true, is_predicted))
    rows, columns = (np.flatnonzero((image > _AIR_HU).any(axis=other)) for other in (1, 0))
    body = np.ix_(rows, columns) if len(rows) else np.ix_(*map(range, image.shape))  # air around it takes no room
    _, down_mm, across_mm = display_spacing_mm(affine)
    axis.set_axis_off()
    axis.imshow(image[body], cmap="gray", clim=SOFT_TISSUE_HU, aspect=down_mm / across_mm, interpolation="nearest")
    for mask, color in ((true[body], _TRUTH_COLOR), (predicted[body], _PREDICTION_COLOR)):
        if mask.any():
            axis.contour(mask, levels=[0.5], colors=color, linewidths=1.2)


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
    known = {title: table for title, table in panels.items() if len(table) > 1}  # a point is no curve
    if not known:
        return
    figure, axes = _make_grid(len(known), columns=3, height_inches=2.7)
    for axis, (title, table) in zip(axes, known.items(), strict=True):
        for name in table:
            values = table[name].dropna()
            marker = "." if len(values) < _FEW else None
            axis.plot(values.index, values, label=str(name).replace("_", " "), linewidth=1.3, marker=marker)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(str(table.index.name), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7)
    save_figure(figure, folder.pictures / "curves.png")


def _make_grid(count: int, columns: int, height_inches: float) -> tuple[Figure, list[Any]]:
    """A figure of the width of the page, and the axes of its panels, row by row."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(11.0, height_inches * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, list(axes[:count])


def _losses(run: Path) -> pd.DataFrame:
    """Moving averages of the losses of a training."""
    losses = _read_table(run / "history.csv", "step").drop(columns=_NO_CURVES, errors="ignore")
    return pd.DataFrame(losses.rolling(max(1, len(losses) // _SHOWN_STEPS)).mean())


def _read_table(path: Path, index: str) -> pd.DataFrame:
    return pd.read_csv(path, index_col=index) if path.is_file() else pd.DataFrame()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
