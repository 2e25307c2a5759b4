"""Stage two: train the denoiser on tumour crops and leave a complete generator folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoencoder.engine.files import write_json
from autoencoder.engine.fit import Fit, LossFunction
from autoencoder.engine.loop import run_fit
from autoencoder.engine.records import TrainingRecord
from autoencoder.model import AutoencoderKL3D
from diffusion.calibration import (
    DIFFERENCES_FILE,
    calibrate_texture,
    encode_pair,
    measure_differences,
    read_differences,
)
from diffusion.conditioning import (
    latent_mask_share,
    measure_contrast,
    measure_heterogeneity,
    unshuffle_mask,
)
from diffusion.flow import draw_noise, flow_loss
from diffusion.generator.provenance import Provenance
from diffusion.generator_folder import GeneratorInfo, save_generator
from diffusion.heldout import HeldoutBatch, in_mask_statistics, picture_of, synthesize_heldout
from diffusion.objectives import as_factor
from diffusion.pipeline import TumorDiffusionPipeline, make_pipeline
from diffusion.presets import DiffusionPreset
from diffusion.texture_profiles import measure_texture_profiles
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
    *,
    heldout: Sequence[HeldoutBatch],
    info: GeneratorInfo,
    provenance: Provenance,
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    mixed_precision: str = "no",
    workers: int = 0,
    checkpoint_every: int = 200,
    evaluate_every: int = 250,
    identity: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> Path:
    """Train the second stage and save both stages as a generator.

    The output folder receives `generator/`, `heldout.json` (see `in_mask_statistics`), `history.csv`,
    `heldout_history.csv`, `tensorboard/`, `fit.json`, `differences.json` (see `Differences`) and `checkpoints/`.

    Args:
        batches: Map-style data set; item i is a batch {"image_hu": (B, 1, D, H, W) in HU, "tumor_mask":
            binary, same shape}, always the same for the same i.
        autoencoder: First stage with measured latent statistics; not changed.
        preset: Architecture and training defaults.
        output_folder: Empty or new folder, unless `resume` is True.
        heldout: Batches that no training batch shows, for measurements and pictures; may be empty.
        info: What the generator is made for; its preset is replaced by the name of `preset`.
        provenance: The cases that train the two stages.
        steps: Training steps; None takes the preset's.
        seed: Seed of initial weights and noise.
        resume: Go on from the newest checkpoint in `output_folder`.
        mixed_precision: "no", "bf16" or "fp16".
        workers: Data-loading processes; 0 loads in the training process.
        checkpoint_every: Steps between checkpoints.
        evaluate_every: Steps between measurements and pictures on the held-out crops.
        identity: JSON content that must be the same at a resume, besides preset, autoencoder and cases.

    Returns:
        The generator folder, `output_folder / "generator"`.

    Raises:
        OutputFolderExistsError: If the folder is not empty and `resume` is False.
        ResumeError: If the folder holds a run with other settings, cases or autoencoder, or lacks its differences.
        ValueError: If the autoencoder has no latent statistics, or `info` does not fit it or the preset.
    """
    _check_fit_together(autoencoder, preset, info)
    output_folder = Path(output_folder)
    frozen = copy.deepcopy(autoencoder).eval().requires_grad_(False)
    model = preset.build_model(autoencoder.latent_channels, torch.Generator().manual_seed(seed))
    settings = preset.fit_settings(
        steps=steps,
        seed=seed,
        mixed_precision=mixed_precision,
        checkpoint_every=checkpoint_every,
        workers=workers,
    )
    identity = {
        "preset": asdict(preset),
        "autoencoder": _hash_weights(autoencoder),
        "provenance": hashlib.sha256(provenance.to_json().encode()).hexdigest(),
        **(identity or {}),
    }
    loss = diffusion_loss_function(frozen, preset.condition_dropout)
    fit = Fit(model, batches, loss, settings, output_folder, resume=resume, identity=identity)
    if preset.draws_differences:
        differences = read_differences(output_folder, is_started=fit.steps_done > 0)
        differences = differences or measure_differences(frozen, batches, _MEASURED_BATCHES)
        model.set_differences(*differences)
        if fit.is_main_process:
            write_json(output_folder / DIFFERENCES_FILE, differences._asdict())
    pipeline = make_pipeline(frozen, model).to(fit.device)
    evaluate = partial(_evaluate, fit, pipeline, heldout) if heldout else None
    run_fit(fit, "diffusion", evaluate, evaluate_every, show_progress=show_progress)
    model.set_texture_profiles(measure_texture_profiles(batches, _MEASURED_BATCHES, frozen.window, seed))
    model.set_texture_share(calibrate_texture(pipeline, batches, _CALIBRATION_BATCHES, seed))
    folder = output_folder / GENERATOR_FOLDER
    if fit.is_main_process:
        if heldout:
            write_json(output_folder / "heldout.json", _heldout_statistics(pipeline, heldout, seed))
        save_generator(folder, pipeline, replace(info, preset=preset.name), provenance, replace=True)
    return folder


def diffusion_loss_function(autoencoder: AutoencoderKL3D, condition_dropout: float) -> LossFunction:
    """Make the loss of the second stage: error everywhere plus error inside the tumours.

    Args:
        autoencoder: First stage, frozen.
        condition_dropout: Share of the samples whose contrast is not given, in fill and condition; as many are
            trained without a heterogeneity.

    Returns:
        Function of model, batch {"image_hu", "tumor_mask"} and generator; terms "total", "everywhere"
        and "inside".
    """

    def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        tumor_mask = batch["tumor_mask"]
        image_hu = autoencoder.window.clip(batch["image_hu"])
        contrast_hu = _drop(measure_contrast(image_hu, tumor_mask), condition_dropout, generator)
        heterogeneity_hu = _drop(measure_heterogeneity(image_hu, tumor_mask), condition_dropout, generator)
        condition, latents = encode_pair(autoencoder, image_hu, tumor_mask, contrast_hu, heterogeneity_hu)
        denoiser = _unwrap(model)
        objective = denoiser.objective
        x_0 = denoiser.to_frame(latents, condition, heterogeneity_hu)
        levels = objective.draw_levels(len(x_0), x_0.device, generator)
        noise = draw_noise(x_0, generator)
        x_t = objective.noisy(x_0, noise, levels)
        prediction = model(x_t, condition, unshuffle_mask(tumor_mask), contrast_hu, heterogeneity_hu, levels)
        weight = as_factor(objective.weight(levels), x_0)
        target = objective.target(x_0, noise, levels)
        losses = flow_loss(
            weight * prediction, weight * target, latent_mask_share(tumor_mask), absolute=objective.absolute_error
        )
        return {"total": losses.everywhere + losses.inside, **losses._asdict()}

    return loss


def _drop(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace a share of the values by NaN: not given."""
    chance = torch.rand(len(values), generator=generator, device=generator.device)
    return values.masked_fill((chance < share).to(values.device), torch.nan)


def _unwrap(model: nn.Module) -> DenoisingUNet3D:
    """The denoiser inside what accelerate made of it for several processes."""
    inner: Any = getattr(model, "module", model)
    return inner


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
        index, {f"{kind}_{name}": value for kind, row in statistics.items() for name, value in asdict(row).items()}
    )


def _heldout_statistics(
    pipeline: TumorDiffusionPipeline, heldout: Sequence[HeldoutBatch], seed: int
) -> dict[str, dict[str, float]]:
    samples = synthesize_heldout(pipeline, heldout, seed=seed)
    statistics = in_mask_statistics(samples, pipeline.autoencoder.window)
    return {kind: asdict(row) for kind, row in statistics.items()}


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
