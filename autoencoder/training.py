"""Stage one: train the autoencoder on CT crops and leave a folder that the second stage loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoencoder.adversarial import AdversarialPair, make_discriminator
from autoencoder.engine.files import replaced_folder, write_json
from autoencoder.engine.fit import Fit, LossFunction, run_fit
from autoencoder.engine.records import TrainingRecord
from autoencoder.engine.settings import RunSettings
from autoencoder.heldout import body_masks, reconstruction_errors
from autoencoder.intensity import ABDOMEN_WINDOW, IntensityWindow
from autoencoder.losses import autoencoder_losses
from autoencoder.model import AutoencoderKL3D
from autoencoder.perceptual import PerceptualLoss
from autoencoder.presets import AutoencoderPreset, LossWeights

_STATISTICS_BATCHES = 16
_PICTURES = 4
_DIFFERENCE_RANGE_HU = 100.0
_SMALLEST_STD = 1e-4


def train_autoencoder(
    batches: Dataset[dict[str, Tensor]],
    heldout: Sequence[Tensor],
    preset: AutoencoderPreset,
    output_folder: Path,
    run: RunSettings,
    *,
    window: IntensityWindow = ABDOMEN_WINDOW,
    perceptual: PerceptualLoss | None = None,
    heldout_masks: Mapping[str, Sequence[Tensor]] | None = None,
) -> AutoencoderKL3D:
    """Train, measure the latents and the held-out error, and save the autoencoder.

    The output folder receives `autoencoder/` (config and safetensors), `heldout.json`,
    `history.csv`, `heldout_history.csv`, `tensorboard/`, `fit.json` and `checkpoints/`.

    Args:
        batches: Map-style data set; item i is a batch {"image_hu": (B, 1, D, H, W) in HU}, always
            the same for the same i.
        heldout: Crops in HU that no training batch shows, of shapes (B, 1, D, H, W).
        perceptual: Perceptual term to add with the preset's weight; None leaves it out.
        heldout_masks: Masks by name ("tumor"), one per held-out crop, to measure the error inside.

    Returns:
        The autoencoder with averaged weights and latent statistics, in evaluation mode.

    Raises:
        ImportError: If the preset has an adversarial term and MONAI is not installed.
        OutputFolderExistsError: If the folder is not empty and the run is not resumed.
        ResumeError: If the folder holds a run with other settings.
        ValueError: If there is no held-out crop, or the masks do not match the crops.
    """
    model = preset.build_model(window, torch.Generator().manual_seed(run.seed))
    masks = _heldout_masks(model, heldout, heldout_masks)
    settings = preset.fit_settings(run)
    identity = {"preset": asdict(preset), "window": asdict(window), **run.identity}
    loss = _loss_function(window, preset.losses, lambda: fit.steps_done / settings.steps, perceptual)
    trained = AdversarialPair(model, make_discriminator(run.seed + 1)) if preset.losses.adversarial > 0 else model
    fit: Fit[Any] = Fit(trained, batches, loss, settings, output_folder, resume=run.resume, identity=identity)
    evaluate = partial(_evaluate, fit, model, heldout, masks)
    run_fit(fit, "autoencoder", evaluate, run.evaluate_every, show_progress=run.show_progress)
    _measure_latents(model, batches, min(_STATISTICS_BATCHES, settings.steps))
    if fit.accelerator.is_main_process:
        write_json(output_folder / "heldout.json", _heldout_errors(model, heldout, masks))
        with replaced_folder(output_folder / "autoencoder") as folder:
            model.save_pretrained(folder)
    return model


def picture_of(image_hu: Tensor, reconstruction_hu: Tensor, window: IntensityWindow) -> NDArray[np.float32]:
    """Set one crop in HU (1, D, H, W), its reconstruction and their difference side by side: the middle slice along D.

    The window is shown from black (0) to white (1); differences show +-100 HU around grey. Shape (H, 3 W).
    """
    middle = image_hu.shape[1] // 2
    image_hu, reconstruction_hu = (window.clip(x[0, middle]) for x in (image_hu, reconstruction_hu))
    difference = 0.5 + (reconstruction_hu - image_hu) / (2.0 * _DIFFERENCE_RANGE_HU)
    tiles = [(window.to_unit(x) + 1.0) / 2.0 for x in (image_hu, reconstruction_hu)]
    return torch.cat([*tiles, difference.clip(0.0, 1.0)], dim=1).float().cpu().numpy()


def _loss_function(
    window: IntensityWindow, weights: LossWeights, progress: Callable[[], float], perceptual: PerceptualLoss | None
) -> LossFunction:
    def loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        unit = window.to_unit(batch["image_hu"])
        # Without the KL term nothing holds the posterior's width, so its mean is decoded.
        posterior = generator if weights.kl > 0 else None
        if weights.adversarial > 0:
            strength = weights.adversarial if progress() >= weights.adversarial_from else 0.0
            output, scores = model(unit, posterior, strength)
        else:
            output, scores = model(unit, posterior), None
        losses = autoencoder_losses(output, unit, weights, scores)
        if weights.adversarial > 0:
            losses.setdefault("adversarial", torch.zeros_like(losses["total"]))
        if perceptual is not None:
            losses["perceptual"] = perceptual.to(unit.device)(output.reconstruction, unit, generator)
            losses["total"] = losses["total"] + weights.perceptual * losses["perceptual"]
        return losses

    return loss


def _evaluate(
    fit: Fit[Any],
    model: AutoencoderKL3D,
    heldout: Sequence[Tensor],
    masks: Mapping[str, Sequence[Tensor]],
    index: int,
    record: TrainingRecord,
) -> None:
    with fit.averaged_model():  # the model's own parameters, whatever it is trained with
        errors = _heldout_errors(model, heldout, masks)
        for number, crops_hu in enumerate(heldout[:_PICTURES]):
            crop_hu = crops_hu[:1].to(model.device)
            with torch.no_grad():
                picture = picture_of(crop_hu[0], model.reconstruct(crop_hu)[0], model.window)
            record.add_picture(index, f"input_reconstruction_difference/{number}", picture)
    record.add_heldout(index, {f"mae_hu_{name}": values["mae_hu"] for name, values in errors.items()})


def _heldout_errors(
    model: AutoencoderKL3D, heldout: Sequence[Tensor], masks: Mapping[str, Sequence[Tensor]]
) -> dict[str, dict[str, float]]:
    subsets = {"all": None, **masks}
    return {name: asdict(reconstruction_errors(model, heldout, subset)) for name, subset in subsets.items()}


def _heldout_masks(
    model: AutoencoderKL3D, heldout: Sequence[Tensor], given: Mapping[str, Sequence[Tensor]] | None
) -> dict[str, Sequence[Tensor]]:
    """Add the body to the given masks, check them, and leave out those without any voxel."""
    if not heldout:
        raise ValueError("heldout is empty; keep at least one crop out of training to measure the error on.")
    masks = {"body": body_masks(model, heldout), **(given or {})}
    for name, subset in masks.items():
        if [mask.shape for mask in subset] != [crop_hu.shape for crop_hu in heldout]:
            raise ValueError(f"heldout_masks[{name!r}] must hold one mask per held-out crop, of its shape.")
    return {name: subset for name, subset in masks.items() if any(bool(mask.any()) for mask in subset)}


@torch.no_grad()
def _measure_latents(model: AutoencoderKL3D, batches: Dataset[dict[str, Tensor]], count: int) -> None:
    """Store the mean and the standard deviation of each latent channel over the first batches."""
    moments = torch.zeros(2, model.latent_channels, dtype=torch.float64)
    positions = 0
    for index in range(count):
        unit = model.window.to_unit(batches[index]["image_hu"].to(model.device))
        latents = model.encode_moments(unit)[0].transpose(0, 1).flatten(1).double()
        moments += torch.stack([latents.sum(dim=1), latents.square().sum(dim=1)]).cpu()
        positions += latents.shape[1]
    mean, mean_square = moments / positions
    std = (mean_square - mean.square()).clamp_min(0.0).sqrt().clamp_min(_SMALLEST_STD)
    model.set_latent_statistics(mean.tolist(), std.tolist())
