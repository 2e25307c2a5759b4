"""Stage two: train the denoiser on tumour crops and leave a complete generator folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoencoder.engine.files import write_json
from autoencoder.engine.fit import Fit, LossFunction, run_fit
from autoencoder.engine.records import TrainingRecord
from autoencoder.engine.settings import RunSettings
from autoencoder.layers import draw_noise
from autoencoder.model import AutoencoderKL3D
from diffusion.calibration import (
    DIFFERENCES_FILE,
    calibrate_texture,
    encode_pair,
    measure_differences,
    read_differences,
)
from diffusion.conditioning import latent_mask_share, measure_contrast, measure_heterogeneity, unshuffle_mask
from diffusion.generator.provenance import Provenance, hash_cases
from diffusion.generator_folder import GeneratorInfo, save_generator
from diffusion.heldout import HeldoutBatch, in_mask_statistics, picture_of, synthesize_heldout
from diffusion.objectives import as_factor
from diffusion.pipeline import TumorDiffusionPipeline, make_pipeline
from diffusion.presets import DiffusionPreset
from diffusion.texture import measure_texture_profiles
from diffusion.unet import DenoisingUNet3D

GENERATOR_FOLDER = "generator"
_PICTURES = 4
_MEASURED_BATCHES = 24
_CALIBRATION_BATCHES = 6


def train_diffusion(
    batches: Dataset[dict[str, Tensor]],
    autoencoder: AutoencoderKL3D,
    preset: DiffusionPreset,
    output_folder: Path,
    run: RunSettings,
    *,
    heldout: Sequence[HeldoutBatch],
    info: GeneratorInfo,
    provenance: Provenance,
) -> Path:
    """Train the second stage and save both stages as a generator.

    The output folder receives `generator/`, `heldout.json` (see `in_mask_statistics`), `history.csv`,
    `heldout_history.csv`, `tensorboard/`, `fit.json`, `differences.json` (see `Differences`) and `checkpoints/`.

    Args:
        batches: Map-style data set; item i is a batch {"image_hu": (B, 1, D, H, W) in HU, "tumor_mask":
            binary, same shape}, always the same for the same i.
        autoencoder: First stage with measured latent statistics; not changed.
        heldout: Batches that no training batch shows, for measurements and pictures; may be empty.
        info: What the generator is made for; its preset is replaced by the name of `preset`.

    Returns:
        The generator folder, `output_folder / "generator"`.

    Raises:
        OutputFolderExistsError: If the folder is not empty and the run is not resumed.
        ResumeError: If the folder holds a run with other settings, cases or autoencoder, or lacks its differences.
        ValueError: If the autoencoder has no latent statistics, or `info` does not fit it or the preset.
    """
    _check_fit_together(autoencoder, preset, info)
    frozen = copy.deepcopy(autoencoder).eval().requires_grad_(False)
    model = preset.build_model(autoencoder.latent_channels, torch.Generator().manual_seed(run.seed))
    trained_on = map(hash_cases, (provenance.diffusion, provenance.autoencoder))
    identity = {
        "preset": asdict(preset),
        "autoencoder": _hash_weights(autoencoder),
        "provenance": [*trained_on, provenance.fold, provenance.splits_hash],
        **run.identity,
    }
    loss, settings = diffusion_loss_function(frozen, preset.condition_dropout), preset.fit_settings(run)
    fit = Fit(model, batches, loss, settings, output_folder, resume=run.resume, identity=identity)
    if preset.draws_differences:
        _set_differences(fit, frozen, batches)
    pipeline = make_pipeline(frozen, model).to(fit.accelerator.device)
    evaluate = partial(_evaluate, fit, pipeline, heldout) if heldout else None
    run_fit(fit, "diffusion", evaluate, run.evaluate_every, show_progress=run.show_progress)
    model.set_texture_profiles(measure_texture_profiles(batches, _MEASURED_BATCHES, frozen.window, run.seed))
    model.set_texture_share(calibrate_texture(pipeline, batches, _CALIBRATION_BATCHES, run.seed))
    folder = output_folder / GENERATOR_FOLDER
    if fit.accelerator.is_main_process:
        if heldout:
            samples = synthesize_heldout(pipeline, heldout, seed=run.seed)
            write_json(output_folder / "heldout.json", in_mask_statistics(samples, frozen.window))
        save_generator(folder, pipeline, replace(info, preset=preset.name), provenance, replace=True)
    return folder


def _set_differences(
    fit: Fit[DenoisingUNet3D], autoencoder: AutoencoderKL3D, batches: Dataset[dict[str, Tensor]]
) -> None:
    """Let the path run in differences: those that the run measured when it started."""
    differences = read_differences(fit.output_folder, is_started=fit.steps_done > 0)
    differences = differences or measure_differences(autoencoder, batches, _MEASURED_BATCHES)
    fit.model.set_differences(*differences)
    if fit.accelerator.is_main_process:
        write_json(fit.output_folder / DIFFERENCES_FILE, differences._asdict())


def diffusion_loss_function(autoencoder: AutoencoderKL3D, condition_dropout: float) -> LossFunction:
    """Make the loss of the second stage: error everywhere plus error inside the tumours (see `mean_errors`).

    Args:
        condition_dropout: Share of the samples whose contrast is not given, in fill and condition; as many are
            trained without a heterogeneity.
    """

    def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        tumor_mask = batch["tumor_mask"]
        image_hu = autoencoder.window.clip(batch["image_hu"])
        contrast_hu = _drop(measure_contrast(image_hu, tumor_mask), condition_dropout, generator)
        heterogeneity_hu = _drop(measure_heterogeneity(image_hu, tumor_mask), condition_dropout, generator)
        condition, latents = encode_pair(autoencoder, image_hu, tumor_mask, contrast_hu, heterogeneity_hu)
        denoiser: Any = getattr(model, "module", model)  # accelerate wraps it for several processes
        objective = denoiser.objective
        x_0 = denoiser.to_frame(latents, condition, heterogeneity_hu)
        levels = objective.draw_levels(len(x_0), x_0.device, generator)
        noise = draw_noise(x_0, generator)
        x_t = objective.noisy(x_0, noise, levels)
        prediction = model(x_t, condition, unshuffle_mask(tumor_mask), contrast_hu, heterogeneity_hu, levels)
        weight = as_factor(objective.weight(levels), x_0)
        target = objective.target(x_0, noise, levels)
        losses = mean_errors(
            weight * prediction, weight * target, latent_mask_share(tumor_mask), absolute=objective.absolute_error
        )
        return {"total": losses["everywhere"] + losses["inside"], **losses}

    return loss


def mean_errors(prediction: Tensor, target: Tensor, mask_share: Tensor, *, absolute: bool = False) -> dict[str, Tensor]:
    """Mean error of a prediction (B, C, D, H, W) everywhere and inside the tumours; each a scalar.

    The second is averaged over the samples that have a tumour, so that a small one weighs as much as a large one; it is
    0 where no sample has one.

    Args:
        mask_share: Share of each latent voxel inside the tumour. Shape (B, 1, D, H, W).
        absolute: Take the absolute error instead of the squared one.
    """
    difference = prediction.float() - target.float()
    error = (difference.abs() if absolute else difference.square()).mean(dim=1, keepdim=True)  # (B, 1, D, H, W)
    weight = mask_share.float()
    mass = weight.flatten(1).sum(dim=1)  # (B,)
    has_tumor = mass > 0
    inside = (weight * error).flatten(1).sum(dim=1) / torch.where(has_tumor, mass, 1.0)
    return {"everywhere": error.mean(), "inside": inside.sum() / has_tumor.sum().clamp(min=1)}


def _drop(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace a share of the values by NaN: not given."""
    chance = torch.rand(len(values), generator=generator, device=generator.device)
    return values.masked_fill((chance < share).to(values.device), torch.nan)


def _evaluate(
    fit: Fit[DenoisingUNet3D],
    pipeline: TumorDiffusionPipeline,
    heldout: Sequence[HeldoutBatch],
    index: int,
    record: TrainingRecord,
) -> None:
    window = pipeline.autoencoder.window
    with fit.averaged_model():  # the pipeline holds the same module
        samples = synthesize_heldout(pipeline, heldout, seed=fit.settings.seed)
    for number, sample in enumerate(samples[:_PICTURES]):
        record.add_picture(index, f"host_filled_sample_real/{number}", picture_of(sample, window))
    statistics = in_mask_statistics(samples, window)
    record.add_heldout(
        index, {f"{kind}_{name}": value for kind, row in statistics.items() for name, value in row.items()}
    )


def _check_fit_together(autoencoder: AutoencoderKL3D, preset: DiffusionPreset, info: GeneratorInfo) -> None:
    """Refuse before the training what would make the generator useless after it."""
    if autoencoder.config["latents_mean"] is None or autoencoder.config["latents_std"] is None:
        raise ValueError(
            "The autoencoder has no latent statistics, so its latents are not standardised. Use the one that "
            "`difftumor train-autoencoder` wrote at the end of its run (OUTPUT/autoencoder)."
        )
    if info.window != autoencoder.window:
        raise ValueError(f"info states the window {info.window}, the autoencoder has {autoencoder.window}. Use that.")
    untrained = sorted(set(info.roi_sides) - set(preset.crop_sides))
    if untrained:
        raise ValueError(
            f"info.roi_sides {info.roi_sides} holds {untrained}, which the preset {preset.name!r} does not train on. "
            f"Use sides of {preset.crop_sides}."
        )


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
