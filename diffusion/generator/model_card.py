"""The README of a generator folder: what trained it, what it is for, what it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diffusion.generator.info import GeneratorInfo
from diffusion.generator.provenance import Provenance


def write_model_card(info: GeneratorInfo, provenance: Provenance, objective: str) -> str:
    """Return the model card as Markdown; `objective` is what the denoiser predicts (see `diffusion.objectives`)."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    low_mm, high_mm = info.spacing_range_mm
    return environment.get_template("README.md.jinja").render(
        objective={"flow": "rectified flow"}.get(objective, f"{objective} prediction"),
        preset=info.preset,
        data_note=info.data_note or "not stated",
        diffusion_cases=len(provenance.diffusion),
        autoencoder_cases=len(provenance.autoencoder),
        fold="no split" if provenance.fold is None else f"training cases of fold {provenance.fold}",
        tumors=_describe_tumors(info),
        roi_sides=", ".join(map(str, info.roi_sides)),
        spacings=f"{low_mm:g} to {high_mm:g}",
        window=f"{info.low_hu:g} to {info.high_hu:g}",
    )


def _describe_tumors(info: GeneratorInfo) -> str:
    tumors = info.training_tumors
    if not tumors:
        return "no statistics recorded"
    names = ("radius_mm", "contrast_hu", "heterogeneity_hu")
    radius, contrast, heterogeneity = (_describe([getattr(tumor, name) for tumor in tumors]) for name in names)
    return (
        f"{len(tumors)}; radius {radius} mm, contrast {contrast} HU, heterogeneity {heterogeneity} HU "
        f"(smallest, median, largest)"
    )


def _describe(values: Sequence[float]) -> str:
    return f"{min(values):.1f} / {median(values):.1f} / {max(values):.1f}"
