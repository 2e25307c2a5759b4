"""The page of an evaluation: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_difftumor.evaluation.realism import worth
from nnunet_difftumor.evaluation.realism.text import show
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.verdicts import AIMS
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.pictures.montage import save_figure
from nnunet_difftumor.support.pictures.pages import embed_png, page_environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "report.html"

_AIM = {aim.key: aim.text for aim in AIMS}

HEADLINE = (
    ("reconstruction_mae_ratio_2x_body", "Reconstruction error over that of 2x pooling, body", "below 0.9"),
    ("reconstruction_mae_ratio_2x_tumor", "Reconstruction error over that of 2x pooling, tumours", "below 1.0"),
    ("in_mask_w1_hu", "Wasserstein distance to real tumours, transplants, HU", "8 or less"),
    ("in_mask_w1_hu_in_place", "Wasserstein distance to real tumours, in place, HU", ""),
    ("real_to_real_w1_hu", "The same between halves of the patients, real tumours, HU", ""),
    ("transplant_plausible_share", "Transplants whose mean is plausible", _AIM["transplant_plausible_share"]),
    ("mean_spread_ratio", "Spread of the transplants' means over that of real tumours", _AIM["mean_spread_ratio"]),
    ("highpass_ratio", "High-pass sd in the mask over the host's, transplants", "0.8 to 1.25"),
    ("highpass_ratio_no_residual", "The same without the residual", ""),
    ("lowpass_ratio", "Low-pass sd over that of whole real tumours, transplants", ""),
    ("lowpass_ratio_shrunken", "The same over real tumours made as small", ""),
    ("lowpass_ratio_balls", "The same over balls of the same radius in real tumours", ""),
    (
        "lowpass_ratio_in_place",
        "The same in place, over the real ones in the same masks",
        _AIM["lowpass_ratio_in_place"],
    ),
    ("depth_reached", "Depth reached over depth requested, transplants", _AIM["depth_reached"]),
    ("contrast_slope", "Achieved over requested contrast, slope", "0.75 or more"),
    ("contrast_median_error_hu", "Achieved against requested contrast, median error, HU", "10 or less"),
    ("contrast_spearman", "Achieved against requested contrast, Spearman correlation", "0.8 or more"),
    ("ring_depth_hu", "Edge of the tumour minus its core, transplants, HU (negative: dark ring)", "within 3"),
    ("beyond_rim_hu", "Largest change of the scan beyond the soft rim, HU", "0"),
    ("volume_within_10_percent_share", "Transplants whose volume is within 10% of the request", "1"),
    ("visible_share", "Transplants that can be seen (5 HU and two standard errors)", ""),
    ("seed_diversity_hu", "Difference between seeds, low-pass sd, HU", ""),
    ("two_sample_auc", "Two-sample classifier, area under the curve (0.5: cannot tell)", _AIM["two_sample_auc"]),
    ("rim_probe_auc", "Rim probe, area under the curve", _AIM["rim_probe_auc"]),
    ("sham_two_sample_auc", "Shams (no tumour) against untouched tissue, AUC", _AIM["sham_two_sample_auc"]),
    ("sham_rim_probe_auc", "The same with the inside hidden", _AIM["sham_rim_probe_auc"]),
    ("redrawn_sham_two_sample_auc", "Redrawn shams, AUC", _AIM["redrawn_sham_two_sample_auc"]),
)
"""Keys of summary.json with what they mean and their bar."""

COLUMNS = (
    ("mean_hu", "mean", 1),
    ("sd_hu", "sd", 1),
    ("in_mask_w1_hu", "W1 to real", 1),
    ("lowpass_sd_hu", "low-pass sd", 1),
    ("lowpass_ratio", "over real", 2),
    ("highpass_sd_hu", "high-pass sd", 1),
    ("highpass_ratio", "over host", 2),
    ("contrast_hu", "contrast", 1),
    ("cnr", "CNR", 2),
    ("is_visible", "visible", 2),
    ("cap_rim_curvature", "cap's rim", 2),
    ("cut_vessels_per_cm2", "cut vessels", 3),
)
"""Measures of the tables of methods: key, heading, decimals."""


def write_report(summary: Mapping[str, Any], pictures: Mapping[str, Figure], output: Path) -> None:
    """Write pictures as PNG by their names, and the page of what `summary.json` holds with them."""
    for name, figure in pictures.items():
        save_figure(figure, output / f"{name}.png")
    environment = page_environment(Path(__file__).parent)
    environment.filters["interval"] = show
    environment.filters["pair"] = lambda method, methods, setting: (method, methods[method][setting])
    environment.globals["dict"] = dict
    html = environment.get_template("report.html.jinja").render(
        summary=summary,
        methods=summary["methods"],
        headline=HEADLINE,
        columns=COLUMNS,
        pictures={name: embed_png(output / f"{name}.png") for name in pictures},
        data_kind=data_kind(summary),
        method_names=making.METHODS,
        worth_tables={
            size: [row for row in summary["worth"]["rows"] if row["size"] == size] for size in worth.SIZES_MM
        },
        worth_columns=worth.columns_of,
    )
    with written_whole(output / REPORT_FILE, overwrite=True) as temporary:
        temporary.write_text(html, encoding="utf-8")


def data_kind(summary: Mapping[str, Any]) -> str:
    """Say what the data are: "phantom", "soft tissue" or "other", from their descriptions."""
    text = " ".join(summary[key] for key in ("dataset_description", "data_note", "dataset")).lower()
    if "phantom" in text:
        return "phantom"
    is_soft_tissue = any(word in text for word in ("soft-tissue", "soft tissue", "softtissue", "sarcoma"))
    return "soft tissue" if is_soft_tissue else "other"
