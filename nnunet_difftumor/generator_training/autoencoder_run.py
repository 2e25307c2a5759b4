"""Stage one: from the words of `difftumor train-autoencoder` to its output folder.

Words and files are looked at before what trains is imported, which takes many seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from autoencoder.presets import AUTOENCODER_PRESETS
from diffusion.generator.provenance import hash_file
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.generator_training import runs
from nnunet_difftumor.generator_training.case_selection import DataFolder, HoldOut, open_data_folder, read_hold_out


def train(options: argparse.Namespace) -> bool:
    """Train stage one and write the records of the run; True if held-out cases were measured.

    Raises:
        DiffTumorError: If an input cannot be used or the output folder is taken.
    """
    runs.check_output_folder(options.output, resume=options.resume)
    AUTOENCODER_PRESETS[options.preset].fit_settings(runs.run_settings(options, {}))
    hold_out = read_hold_out(options.splits, options.fold, options.exclude_cases)
    folders = [open_data_folder(folder) for folder in options.data]
    with runs.claimed_output(options.output, resume=options.resume):
        return _train(options, folders, hold_out)


def _train(options: argparse.Namespace, folders: Sequence[DataFolder], hold_out: HoldOut) -> bool:
    from autoencoder.adversarial import require_discriminator
    from autoencoder.perceptual import SMALLEST_SIDE, PerceptualLoss
    from autoencoder.training import train_autoencoder
    from nnunet_difftumor.generator_training.batches import AutoencoderCrops, heldout_image_crops

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
    selected = runs.prepare_cases(options, folders, hold_out, needs_tumors=False)
    heldout = heldout_image_crops(runs.reported_cases(selected), min(48, max(preset.crop_sides)))
    weights_hash = None if weights_file is None else hash_file(weights_file)
    train_autoencoder(
        AutoencoderCrops(selected.training, preset, options.seed),
        [batch["image_hu"] for batch in heldout],
        preset,
        options.output,
        runs.run_settings(options, {"data": runs.training_identity(selected), "perceptual_weights": weights_hash}),
        perceptual=perceptual,
        heldout_masks={"tumor": [batch["tumor_mask"] for batch in heldout]},
    )
    runs.save_run_records(options.output, selected, runs.provenance_of(selected))
    return bool(selected.heldout)
