"""The README of a generator folder: what trained it, what it is for, what it is not."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from diffusion.generator.info import GeneratorInfo
from diffusion.generator.provenance import Provenance

_CARD = """\
---
library_name: diffusers
pipeline_tag: image-to-image
tags:
- medical
- ct
- tumour-synthesis
- nnu-net
---

# Generator of synthetic tumours in CT

A 3D autoencoder and a latent diffusion model ({objective}) that draw a tumour into a given mask of a
healthy CT crop. Made by nnunet-difftumor after the method of Chen et al., "Towards Generalizable Tumor
Synthesis", CVPR 2024; code, weights and data are not theirs.

**For research only. Not a medical device.** Nothing that it draws is a finding of a patient, and nothing
that is trained with it may guide diagnosis or treatment without the evidence and approval that this needs.

## What it is for
Training a segmentation model (`nnUNetv2_train -tr nnUNetTrainerDiffTumor`) on tumours in scans that have
none. Keep its output marked as synthetic, and out of every validation and test set.

## How it was made
- preset: {preset}
- training data: {data_note}
- cases that trained the diffusion model: {diffusion_cases}; the autoencoder: {autoencoder_cases}
- cross-validation: {fold}
- tumours: {tumors}
- crops of {roi_sides} voxels at {spacing_low:g} to {spacing_high:g} mm; HU window {low_hu:g} to {high_hu:g}

`provenance.json` lists these cases as hashes, so that a validation on a case that trained the generator can
be refused. A hash hides an identifier from a glance, not from someone who can guess it.

## Limits
- Tumours far from the statistics above, other contrast phases, other scanners and values outside the HU
  window were not seen. Requested and achieved contrast differ; measure it.
- Fine texture comes from the scan around the tumour, not from the network.
- A small training set can be remembered in part: share the weights only where the data could be shared.

## Use
```python
from diffusion.generator_folder import load_generator

generator = load_generator("PATH/TO/THIS/FOLDER")
output = generator.pipeline(image_hu, tumor_mask, contrast_hu=contrast_hu, generators=generators)
```
"""


def write_model_card(info: GeneratorInfo, provenance: Provenance, objective: str) -> str:
    """Return the model card as Markdown; `objective` is what the denoiser predicts (see `diffusion.objectives`)."""
    return _CARD.format(
        objective={"flow": "rectified flow"}.get(objective, f"{objective} prediction"),
        preset=info.preset,
        data_note=info.data_note or "not stated",
        diffusion_cases=len(provenance.diffusion),
        autoencoder_cases=len(provenance.autoencoder),
        fold="no split" if provenance.fold is None else f"training cases of fold {provenance.fold}",
        tumors=_describe_tumors(info),
        roi_sides=", ".join(str(side) for side in info.roi_sides),
        spacing_low=info.spacing_range_mm[0],
        spacing_high=info.spacing_range_mm[1],
        low_hu=info.low_hu,
        high_hu=info.high_hu,
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
