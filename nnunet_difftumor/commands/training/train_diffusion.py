"""`difftumor train-diffusion`: stage two."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoencoder.model import AutoencoderKL3D
    from diffusion.generator.info import GeneratorInfo
    from diffusion.generator.provenance import CaseFingerprint
    from diffusion.presets import DiffusionPreset
    from nnunet_difftumor.generator_training.batches import Batch, TumorCrops
    from nnunet_difftumor.generator_training.case_selection import SelectedCases

DESCRIPTION = """Train the diffusion model that draws tumours, from CTs with annotated tumours.

--data takes nnU-Net raw data sets whose labels name a tumour. Train one generator for each fold
(--splits and --fold): a generator that knows the validation cases is refused by the trainer.
Writes into --output:
  generator/         both stages, for nnUNetTrainerDiffTumor and difftumor synthesize
  heldout.json       HU inside held-out tumours, real and generated, beside the network's input decoded: no diffusion
  provenance.json    hashes of the cases that trained both stages, for the leak guard; cases.json: names
  history.csv, heldout_history.csv, tensorboard/, checkpoints/

Interrupt it at any time; the same command with --resume goes on."""
EXAMPLE = (
    "difftumor train-diffusion --data nnUNet_raw/Dataset901_Phantom --autoencoder ae --output dm/fold_0 "
    "--preset tiny --splits splits_final.json --fold 0"
)

_MARGIN_VOXELS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from nnunet_difftumor.commands.training.training_arguments import add_training_arguments

    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="RAW_DATASET", help="nnU-Net raw data sets with tumours"
    )
    parser.add_argument(
        "--autoencoder",
        type=Path,
        required=True,
        metavar="DIR",
        help="--output of train-autoencoder, a generator, or builtin:NAME",
    )
    parser.add_argument(
        "--tumor-label", metavar="NAME", help="name of the tumour label in dataset.json (default: found by its name)"
    )
    parser.add_argument("--early-only", action="store_true", help="learn from tumours of at most 10 mm radius only")
    parser.add_argument(
        "--objective",
        choices=("flow", "v", "epsilon"),
        default="flow",
        help="what the denoiser predicts: rectified flow (default), v, or the paper's epsilon in plain latents",
    )
    parser.add_argument(
        "--plain-latents", action="store_true", help="let the noise run in latents, not in differences from the fill"
    )
    parser.add_argument(
        "--spacing-mm",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="finest and coarsest spacing of the crops (default 1.5 6); LO = HI switches the variation off",
    )
    parser.add_argument("--data-note", default="", metavar="TEXT", help="what the data are, for the model card")
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
    from diffusion.generator.provenance import Provenance
    from diffusion.generator_folder import load_autoencoder
    from diffusion.training import train_diffusion
    from nnunet_difftumor.generator_training import runs

    runs.check_output_folder(options.output, resume=options.resume)
    preset = _preset(options)
    model_folder, autoencoder_cases = runs.find_autoencoder(options.autoencoder)
    autoencoder = load_autoencoder(model_folder)
    selected = _select(options, autoencoder_cases)
    provenance = Provenance(
        diffusion=runs.fingerprints(selected.training),
        autoencoder=autoencoder_cases,
        fold=selected.fold,
        splits_hash=selected.splits_hash,
    )
    heldout, is_heldout = _crops_to_measure(options, preset, selected)
    generator = train_diffusion(
        _batches(options, selected),
        autoencoder,
        preset,
        options.output,
        heldout=heldout,
        info=_info(options, autoencoder, selected),
        provenance=provenance,
        steps=options.steps,
        seed=options.seed,
        resume=options.resume,
        mixed_precision=options.precision,
        workers=options.workers,
        identity={
            "data": runs.training_identity(selected, early_only=options.early_only),
            "spacing_range_mm": _spacing_range_mm(options),
        },
    )
    if runs.is_main_process():
        runs.save_run_records(options.output, selected, provenance)
        print(_report(options, generator, has_heldout=is_heldout))


def _preset(options: argparse.Namespace) -> DiffusionPreset:
    from diffusion.presets import DIFFUSION_PRESETS

    return replace(
        DIFFUSION_PRESETS[options.preset],
        objective=options.objective,
        draws_differences=options.objective != "epsilon" and not options.plain_latents,
    )


def _crops_to_measure(
    options: argparse.Namespace, preset: DiffusionPreset, selected: SelectedCases
) -> tuple[Sequence[Batch], bool]:
    """Cut the crops to measure on, and say whether they are of held-out cases."""
    from nnunet_difftumor.generator_training import runs
    from nnunet_difftumor.generator_training.batches import EARLY_RADIUS_MM, heldout_tumor_crops

    cache, is_heldout = runs.reported_cases(selected), bool(selected.heldout)
    if options.early_only and is_heldout:
        early = [case for case in selected.heldout if any(each.radius_mm <= EARLY_RADIUS_MM for each in case.tumors)]
        if not early and runs.is_main_process():
            print("No held-out case has an early tumour: the errors reported are those on training cases.", flush=True)
        is_heldout = bool(early)
        cache = runs.reported_cases(replace(selected, heldout=tuple(early)))
    side, finest_mm = min(48, max(preset.crop_sides)), _spacing_range_mm(options)[0]
    return heldout_tumor_crops(cache, side, early_only=options.early_only, finest_mm=finest_mm), is_heldout


def _select(options: argparse.Namespace, autoencoder_cases: Sequence[CaseFingerprint]) -> SelectedCases:
    from nnunet_difftumor.ct.datasets import load_raw_dataset
    from nnunet_difftumor.ct.label_roles import find_tumor_label
    from nnunet_difftumor.generator_training import runs
    from nnunet_difftumor.generator_training.case_selection import DataFolder, read_hold_out
    from nnunet_difftumor.generator_training.options import cache_folder

    hold_out = read_hold_out(options.splits, options.fold, options.exclude_cases)
    hold_out = replace(hold_out, trained_before=frozenset(case.image_hash for case in autoencoder_cases))
    datasets = [load_raw_dataset(folder) for folder in options.data]
    return runs.prepare_cases(
        [DataFolder(dataset.folder, dataset.cases, dataset) for dataset in datasets],
        [find_tumor_label(dataset.labels, options.tumor_label) for dataset in datasets],
        cache_folder(options),
        hold_out,
        workers=options.workers,
        tumors_only=True,
    )


def _batches(options: argparse.Namespace, selected: SelectedCases) -> TumorCrops:
    from nnunet_difftumor.generator_training.batches import TumorCrops, TumorSampling
    from nnunet_difftumor.generator_training.crop_cache import CropCache

    preset = _preset(options)
    return TumorCrops(
        CropCache(selected.training),
        preset.crop_sides,
        preset.voxels_per_batch,
        options.seed,
        side_probabilities=preset.crop_probabilities,
        sampling=TumorSampling(spacing_range_mm=_spacing_range_mm(options)),
        early_only=options.early_only,
    )


def _spacing_range_mm(options: argparse.Namespace) -> tuple[float, float]:
    from nnunet_difftumor.errors import DiffTumorError
    from nnunet_difftumor.generator_training.batches import SPACING_RANGE_MM

    if options.spacing_mm is None:
        return SPACING_RANGE_MM
    low_mm, high_mm = options.spacing_mm
    if not 0 < low_mm <= high_mm:
        raise DiffTumorError(f"--spacing-mm needs 0 < LO <= HI, got {low_mm:g} and {high_mm:g}.")
    return low_mm, high_mm


def _info(options: argparse.Namespace, autoencoder: AutoencoderKL3D, selected: SelectedCases) -> GeneratorInfo:
    from diffusion.generator.info import GeneratorInfo
    from nnunet_difftumor.generator_training.crop_cache import CropCache
    from nnunet_difftumor.generator_training.tumor_statistics import measure_training_tumors

    window = autoencoder.window
    tumors = measure_training_tumors(
        CropCache(selected.training),
        early_only=options.early_only,
        window=window,
        finest_mm=_spacing_range_mm(options)[0],
    )
    return GeneratorInfo(
        roi_sides=tuple(sorted(_preset(options).crop_sides)),
        spacing_range_mm=_spacing_range_mm(options),
        margin_voxels=_MARGIN_VOXELS,
        low_hu=window.low_hu,
        high_hu=window.high_hu,
        training_tumors=tumors,
        preset=options.preset,
        data_note=options.data_note,
    )


def _report(options: argparse.Namespace, generator: Path, *, has_heldout: bool) -> str:
    statistics = json.loads((options.output / "heldout.json").read_text(encoding="utf-8"))
    lines = [
        f"\nHU inside the real tumours' masks, {'held-out' if has_heldout else 'training'} cases, no compositing:",
        f"{'':16s}{'mean':>8s}{'sd in a tumour':>16s}{'Wasserstein to real':>21s}",
    ]
    for kind, row in statistics.items():
        name = {"fill_only": "no diffusion", "reconstruction": "autoencoder"}.get(kind, kind)
        lines.append(f"{name:16s}{row['mean_hu']:8.1f}{row['crop_sd_hu']:16.1f}{row['wasserstein_hu']:21.1f}")
    lines.append(f"Generator: {generator}")
    lines.append(f"Pictures: tensorboard --logdir {options.output / 'tensorboard'}")
    lines.append(f"Look at it: difftumor synthesize --ct FILE --organ-mask FILE --generator {generator} --output DIR")
    return "\n".join(lines)
