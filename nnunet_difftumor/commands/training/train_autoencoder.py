"""`difftumor train-autoencoder`: stage one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoencoder.presets import AutoencoderPreset
    from nnunet_difftumor.generator_training.batches import AutoencoderCrops
    from nnunet_difftumor.generator_training.case_selection import DataFolder, SelectedCases

DESCRIPTION = """Train the autoencoder whose latents the tumours are made in. Any CT helps; no label is needed.

--data takes nnU-Net raw data sets and plain folders of CTs in HU. Writes into --output:
  autoencoder/       the model, for train-diffusion
  heldout.json       reconstruction error in HU on held-out cases, beside 2x and 4x average pooling
  provenance.json    hashes of the cases that trained it, for the leak guard; cases.json: their names
  history.csv, heldout_history.csv, tensorboard/, checkpoints/

Interrupt it at any time; the same command with --resume goes on."""
EXAMPLE = "difftumor train-autoencoder --data nnUNet_raw/Dataset901_Phantom --output ae --preset tiny"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from nnunet_difftumor.commands.training.training_arguments import add_training_arguments

    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DIR", help="nnU-Net raw data sets or folders of CTs"
    )
    parser.add_argument(
        "--perceptual-weights",
        type=Path,
        metavar="FILE",
        help="add a perceptual term: weights of torchvision's squeezenet1_1 as safetensors (extra: perceptual)",
    )
    add_training_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0.

    Raises:
        DiffTumorError: If an input cannot be used or the output folder is taken.
    """
    from nnunet_difftumor.generator_training.runs import resume_hint

    with resume_hint():
        _train(options)
    return 0


def _train(options: argparse.Namespace) -> None:
    from autoencoder.adversarial import require_discriminator
    from autoencoder.perceptual import SMALLEST_SIDE, PerceptualLoss
    from autoencoder.presets import AUTOENCODER_PRESETS
    from autoencoder.training import train_autoencoder
    from diffusion.generator.provenance import Provenance, hash_file
    from nnunet_difftumor.errors import DiffTumorError
    from nnunet_difftumor.generator_training import runs
    from nnunet_difftumor.generator_training.batches import heldout_image_crops

    runs.check_output_folder(options.output, resume=options.resume)
    weights_file = options.perceptual_weights
    preset = AUTOENCODER_PRESETS[options.preset]
    if weights_file is not None and min(preset.crop_sides) < SMALLEST_SIDE:
        raise DiffTumorError(
            f"--perceptual-weights needs crops of {SMALLEST_SIDE} voxels a side or more; --preset {options.preset} has "
            f"crops of {min(preset.crop_sides)}. Choose a larger preset, or leave --perceptual-weights out."
        )
    perceptual = None if weights_file is None else PerceptualLoss(weights_file)
    if preset.losses.adversarial > 0:
        require_discriminator()  # before the cases are read
    selected = _select(options)
    heldout = heldout_image_crops(runs.reported_cases(selected), min(48, max(preset.crop_sides)))
    train_autoencoder(
        _batches(options, preset, selected),
        [batch["image_hu"] for batch in heldout],
        preset,
        options.output,
        steps=options.steps,
        seed=options.seed,
        resume=options.resume,
        heldout_masks={"tumor": [batch["tumor_mask"] for batch in heldout]},
        mixed_precision=options.precision,
        workers=options.workers,
        perceptual=perceptual,
        identity={
            "data": runs.training_identity(selected),
            "perceptual_weights": None if weights_file is None else hash_file(weights_file),
        },
    )
    provenance = Provenance(
        diffusion=(),
        autoencoder=runs.fingerprints(selected.training),
        fold=selected.fold,
        splits_hash=selected.splits_hash,
    )
    if runs.is_main_process():
        runs.save_run_records(options.output, selected, provenance)
        print(_report(options.output, has_heldout=bool(selected.heldout)))


def _select(options: argparse.Namespace) -> SelectedCases:
    from nnunet_difftumor.generator_training import runs
    from nnunet_difftumor.generator_training.case_selection import open_data_folder, read_hold_out
    from nnunet_difftumor.generator_training.options import cache_folder

    hold_out = read_hold_out(options.splits, options.fold, options.exclude_cases)
    folders = [open_data_folder(folder) for folder in options.data]
    values = [_tumor_values(data) for data in folders]
    return runs.prepare_cases(folders, values, cache_folder(options), hold_out, workers=options.workers)


def _tumor_values(data: DataFolder) -> tuple[int, ...]:
    """Values of the tumour label if the names tell; an autoencoder can do without."""
    from nnunet_difftumor.ct.label_roles import find_tumor_label
    from nnunet_difftumor.errors import MissingLabelError

    try:
        return find_tumor_label(data.dataset.labels) if data.dataset else ()
    except MissingLabelError:
        return ()


def _batches(options: argparse.Namespace, preset: AutoencoderPreset, selected: SelectedCases) -> AutoencoderCrops:
    from nnunet_difftumor.generator_training.batches import AutoencoderCrops
    from nnunet_difftumor.generator_training.crop_cache import CropCache

    return AutoencoderCrops(
        CropCache(selected.training),
        preset.crop_sides,
        preset.voxels_per_batch,
        options.seed,
        side_probabilities=preset.crop_probabilities,
    )


def _report(output: Path, *, has_heldout: bool) -> str:
    errors = json.loads((output / "heldout.json").read_text(encoding="utf-8"))
    lines = [
        f"\nReconstruction error on {'held-out' if has_heldout else 'training'} cases, mean absolute, in HU:",
        f"{'':8s}{'autoencoder':>12s}{'2x pooling':>12s}{'4x pooling':>12s}",
    ]
    for name, row in errors.items():
        lines.append(f"{name:8s}{row['mae_hu']:12.1f}{row['mae_pool2_hu']:12.1f}{row['mae_pool4_hu']:12.1f}")
    body = errors.get("body", errors["all"])  # most of a scan is air, which any network knows
    if body["mae_hu"] > body["mae_pool2_hu"]:
        lines.append("It does not beat 2x pooling, with which it started: train longer (--steps) before you go on.")
    lines.append(f"Pictures: tensorboard --logdir {output / 'tensorboard'}")
    lines.append(
        f"Next: difftumor train-diffusion --data RAW_DATASET --autoencoder {output} --output DIR --preset tiny"
    )
    return "\n".join(lines)
