"""What the trainings of both stages share: the output folder, the cached and selected cases, the records."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoencoder.engine.settings import RunSettings
from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_cases, load_provenance, save_provenance
from diffusion.generator_folder import PROVENANCE_FILE
from nnunet_difftumor.errors import DatasetError, MissingLabelError, OutputExistsError, list_some
from nnunet_difftumor.generator_training import CACHE_FOLDER
from nnunet_difftumor.generator_training.case_selection import DataFolder, HoldOut, SelectedCases, select_cases
from nnunet_difftumor.support.files.atomic_files import made_folder, write_json
from nnunet_difftumor.support.processes.steps import LOCK_FILE, alone
from nnunet_difftumor.synthesis.tissue.generator_names import is_builtin, resolve_generator

if TYPE_CHECKING:
    from nnunet_difftumor.generator_training.crop_cache import CachedCase

_POLL_SECONDS = 5.0


def check_output_folder(output: Path, *, resume: bool) -> None:
    """Refuse an output folder with something in it before any work is done, unless a run is resumed.

    Raises:
        OutputExistsError: If it is a file, or is not empty.
    """
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} is a file; --output needs a folder.")
    if not resume and output.is_dir() and any(path.name != LOCK_FILE for path in output.iterdir()):
        raise OutputExistsError(f"{output} is not empty. Go on with the run in it (--c), or name another folder.")


@contextmanager
def claimed_output(output: Path, *, resume: bool) -> Iterator[None]:
    """Check an output folder and keep other trainings out of it while the block runs.

    Raises:
        OutputExistsError: As `check_output_folder`.
        DiffTumorError: If it cannot be made, or another process trains in it.
    """
    check_output_folder(output, resume=resume)
    if not is_main_process():
        yield
        return
    with made_folder(output), alone(output, f"--output {output}", work="trains in this folder"):
        try:
            check_output_folder(output, resume=resume)  # another may have finished meanwhile
            yield
        finally:
            (output / LOCK_FILE).unlink(missing_ok=True)


def prepare_cases(
    options: argparse.Namespace, folders: Sequence[DataFolder], hold_out: HoldOut, *, needs_tumors: bool
) -> SelectedCases:
    """Cache the cases of all folders, divide them into training and held-out cases, and print both.

    With several processes the first one fills the cache and the others wait for it.

    Args:
        options: Where the cache is, or the run, which it is beside; how many processes decode side by side; whether
            bad cases are left out.
        needs_tumors: Leave out cases without tumour before the division; otherwise unfit labels are not read.

    Raises:
        DiffTumorError: If a file is bad, no case has a tumour, the rule fits no case, or no case is left.
    """
    from nnunet_difftumor.ct.components import SMALLEST_COMPONENT_VOXELS
    from nnunet_difftumor.generator_training.crop_cache import build_crop_cache, is_cached

    is_first = is_main_process()
    cache_folder = options.cache or options.output.resolve().parent / CACHE_FOLDER
    cached, notes = [], []
    left_out: dict[str, str] | None = {} if options.skip_bad else None
    or_without = options.skip_bad or not needs_tumors
    for data in folders:
        values: Any = {"tumor_values": data.tumor_values, "declared": data.declared}
        while not is_first and not is_cached(data.cases, cache_folder, **values, or_without=or_without):
            time.sleep(_POLL_SECONDS)
        cases = build_crop_cache(
            data.cases,
            cache_folder,
            **values,
            workers=options.workers,
            needs_labels=needs_tumors,
            left_out=left_out,
        )
        unlabelled = [case.identifier for case in cases if case.tumor_values != data.tumor_values]
        if unlabelled:
            notes.append(
                f"{data.folder}: labels that lie on another grid than their CT, or are damaged, are not read: "
                f"{list_some(unlabelled)}. No label is needed here."
            )
        cached.append((data.folder, [case for case in cases if case.tumors or not needs_tumors]))
    if not any(cases for _, cases in cached):
        raise MissingLabelError(
            f"None of the cases in the data sets (-d) has a tumour of {SMALLEST_COMPONENT_VOXELS} voxels or more "
            f"(labels {sorted({data.tumor_values for data in folders})}). Check --tumor-label; the diffusion model "
            "needs annotated tumours."
        )
    selected = select_cases(cached, hold_out)
    selected = replace(selected, notes=(*notes, *selected.notes), left_out=left_out or {})
    if is_first:
        print(_describe(selected), flush=True)
    return selected


def is_main_process() -> bool:
    """Say whether this is the first, or only, process: the one that prints and writes."""
    from accelerate import PartialState  # with torch

    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")  # as Accelerator reads it
    return bool(PartialState(cpu=wants_cpu).is_main_process)


@contextmanager
def resume_hint() -> Iterator[None]:
    """Say how to go on when the block is interrupted with Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if is_main_process():
            print("\nInterrupted. Go on with the same command and --c.", flush=True)
        raise


def _describe(selected: SelectedCases) -> str:
    """Say which cases train and which are held out, in a few lines."""
    names = [case.identifier for case in selected.heldout]
    counts = f"{len(selected.training)} cases train; {len(names)} are held out"
    if names:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return "\n".join([*selected.notes, f"{counts}: {shown}"])
    why = "fewer than 4" if selected.rule.identifiers is None else "none of those listed can be used"
    reason = f"No case is held out ({why}): the errors reported are those on training cases."
    return "\n".join([*selected.notes, counts, reason])


def reported_cases(selected: SelectedCases, most: int = 16) -> Sequence[CachedCase]:
    """Choose the cases to measure on: held-out ones, or training cases where none is held out."""
    cases = selected.heldout or selected.training
    return cases[:: max(1, -(-len(cases) // most))]


def provenance_of(selected: SelectedCases, autoencoder: tuple[CaseFingerprint, ...] | None = None) -> Provenance:
    """Record which cases train which stage, sorted so that the order of the data sets does not matter.

    Args:
        autoencoder: The cases of stage one, in the record of stage two.
    """
    prints = (case.fingerprint for case in selected.training)
    trained = tuple(sorted(prints, key=lambda each: (each.identifier_hash, each.image_hash or "")))
    diffusion, autoencoder = ((), trained) if autoencoder is None else (trained, autoencoder)
    rule = selected.rule
    return Provenance(diffusion=diffusion, autoencoder=autoencoder, fold=rule.fold, splits_hash=rule.splits_hash)


def run_settings(options: argparse.Namespace, identity: Mapping[str, Any]) -> RunSettings:
    """Settings of the run that the options choose."""
    return RunSettings(
        steps=options.steps,
        seed=options.seed,
        resume=options.resume,
        mixed_precision=options.precision,
        workers=options.workers,
        identity=identity,
    )


def training_identity(selected: SelectedCases, **options: bool) -> dict[str, object]:
    """Describe what the batches are made of, as JSON content, so that a run is resumed with the same only.

    These are the cases, in the order on which the batches depend, their split, and the options.
    """
    cases = hash_cases([case.fingerprint for case in selected.training])
    return {"training_cases": cases, "fold": selected.rule.fold, "splits": selected.rule.splits_hash, **options}


def save_run_records(output: Path, selected: SelectedCases, provenance: Provenance) -> None:
    """Write provenance.json (hashes) and cases.json (plain identifiers, for the owner of the data), in one process."""
    if not is_main_process():
        return
    save_provenance(output / PROVENANCE_FILE, provenance)
    listed = {
        "training": [case.identifier for case in selected.training],
        "heldout": [case.identifier for case in selected.heldout],
        "notes": list(selected.notes),
        "left_out": dict(selected.left_out),
    }
    write_json(output / "cases.json", listed, overwrite=True)
    if selected.left_out:
        lines = (f"  {name}: {error}" for name, error in selected.left_out.items())
        print("\n".join([f"\nLeft out as bad, {len(selected.left_out)} (--skip-bad):", *lines]), flush=True)


def find_autoencoder(folder: Path) -> tuple[Path, tuple[CaseFingerprint, ...]]:
    """Find the model folder of an autoencoder and the fingerprints of the cases that trained it.

    Args:
        folder: What `train-autoencoder` wrote, a generator folder or `builtin:NAME`, or the folder of the model itself
            inside one.

    Raises:
        DatasetError: If there is no model, or nothing says which cases trained it.
    """
    folder = resolve_generator(str(folder)) if is_builtin(folder) else folder
    model = folder / "autoencoder" if (folder / "autoencoder" / "config.json").is_file() else folder
    if not (model / "config.json").is_file():
        raise DatasetError(
            f"{folder} holds no autoencoder (autoencoder/config.json). Give the --output of a finished "
            "`difftumor train-autoencoder`; an interrupted one is finished with --c."
        )
    record = model.parent / PROVENANCE_FILE
    if not record.is_file():
        raise DatasetError(
            f"{record} is missing, so nobody could tell which cases trained this autoencoder, and leaks could not be "
            "found. Copy the whole --output folder of `difftumor train-autoencoder`, or train it again."
        )
    return model, load_provenance(record).autoencoder
