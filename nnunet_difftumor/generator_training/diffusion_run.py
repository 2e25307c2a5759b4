"""Stage two: from the words of `difftumor train-diffusion` to a generator folder.

Words and files are looked at before what trains is imported, which takes many seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.generator.info import GeneratorInfo
from diffusion.generator.provenance import CaseFingerprint
from diffusion.generator_folder import load_autoencoder
from diffusion.presets import DIFFUSION_PRESETS
from nnunet_difftumor.cases.known_cases import NOTHING_KNOWN, read_known_cases
from nnunet_difftumor.cases.splits import HOLDOUT_FILE_NAME
from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.generator_training import EARLY_RADIUS_MM, SPACING_RANGE_MM, runs
from nnunet_difftumor.generator_training.case_selection import (
    DataFolder,
    HoldOut,
    SelectedCases,
    labelled_folder,
    read_hold_out,
)

if TYPE_CHECKING:
    from nnunet_difftumor.generator_training.crop_cache import CachedCase

_MARGIN_VOXELS = 12


def train(options: argparse.Namespace) -> bool:
    """Train stage two, write the generator and the records of the run; True if held-out cases were measured.

    Raises:
        DiffTumorError: If an input cannot be used or the output folder is taken.
    """
    runs.check_output_folder(options.output, resume=options.resume)
    DIFFUSION_PRESETS[options.preset].fit_settings(runs.run_settings(options, {}))
    spacing_range_mm = _spacing_range_mm(options)
    model_folder, autoencoder_cases = runs.find_autoencoder(options.autoencoder)
    folders, hold_out = _open_data(options, autoencoder_cases)
    with runs.claimed_output(options.output, resume=options.resume):
        return _train(options, spacing_range_mm, (model_folder, autoencoder_cases), folders, hold_out)


def _train(
    options: argparse.Namespace,
    spacing_range_mm: tuple[float, float],
    stage_one: tuple[Path, tuple[CaseFingerprint, ...]],
    folders: Sequence[DataFolder],
    hold_out: HoldOut,
) -> bool:
    from diffusion.training import train_diffusion
    from nnunet_difftumor.generator_training import batches
    from nnunet_difftumor.generator_training.tumor_statistics import measure_training_edges, measure_training_tumors

    preset = replace(
        DIFFUSION_PRESETS[options.preset],
        objective=options.objective,
        draws_differences=options.objective != "epsilon" and not options.plain_latents,
    )
    model_folder, autoencoder_cases = stage_one
    autoencoder = load_autoencoder(model_folder)
    selected = runs.prepare_cases(options, folders, hold_out, needs_tumors=True)
    reported, is_heldout = _cases_to_measure(options, selected)
    look = {"early_only": options.early_only, "finest_mm": spacing_range_mm[0]}
    known = read_known_cases(options.splits.parent / HOLDOUT_FILE_NAME) if options.splits else NOTHING_KNOWN
    edges = measure_training_edges(selected.training, early_only=options.early_only, known=known)
    info = GeneratorInfo(
        roi_sides=tuple(sorted(preset.crop_sides)),
        spacing_range_mm=spacing_range_mm,
        margin_voxels=_MARGIN_VOXELS,
        low_hu=autoencoder.window.low_hu,
        high_hu=autoencoder.window.high_hu,
        training_tumors=measure_training_tumors(selected.training, window=autoencoder.window, edges=edges, **look),
        edges=edges,
        preset=options.preset,
        data_note=options.data_note,
    )
    data = runs.training_identity(selected, early_only=options.early_only)
    provenance = runs.provenance_of(selected, autoencoder_cases)
    crops = batches.TumorCrops(
        selected.training, preset, options.seed, spacing_range_mm=spacing_range_mm, early_only=options.early_only
    )
    train_diffusion(
        crops,
        autoencoder,
        preset,
        options.output,
        runs.run_settings(options, {"data": data, "spacing_range_mm": spacing_range_mm}),
        heldout=batches.heldout_tumor_crops(reported, min(48, max(preset.crop_sides)), **look),
        info=info,
        provenance=provenance,
    )
    runs.save_run_records(options.output, selected, provenance)
    return is_heldout


def _open_data(
    options: argparse.Namespace, autoencoder_cases: Sequence[CaseFingerprint]
) -> tuple[list[DataFolder], HoldOut]:
    """Open the data sets, and read what is held out of them."""
    hold_out = read_hold_out(options.splits, options.fold, options.exclude_cases)
    trained_before = frozenset[str]().union(*(case.content_hashes for case in autoencoder_cases))
    hold_out = replace(hold_out, trained_before=trained_before)
    datasets = [load_raw_dataset(folder) for folder in options.data]
    return [labelled_folder(each, options.tumor_label) for each in datasets], hold_out


def _cases_to_measure(options: argparse.Namespace, selected: SelectedCases) -> tuple[Sequence[CachedCase], bool]:
    """Choose the cases to measure on, and say whether they are held-out ones."""
    if options.early_only and selected.heldout:
        early = tuple(
            case for case in selected.heldout if any(each.radius_mm <= EARLY_RADIUS_MM for each in case.tumors)
        )
        if not early and runs.is_main_process():
            print("No held-out case has an early tumour: the errors reported are those on training cases.", flush=True)
        selected = replace(selected, heldout=early)
    return runs.reported_cases(selected), bool(selected.heldout)


def _spacing_range_mm(options: argparse.Namespace) -> tuple[float, float]:
    low_mm, high_mm = options.spacing_mm or SPACING_RANGE_MM
    if not 0 < low_mm <= high_mm:
        raise DiffTumorError(f"--spacing-mm needs 0 < LO <= HI, got {low_mm:g} and {high_mm:g}.")
    return low_mm, high_mm
