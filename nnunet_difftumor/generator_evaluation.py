"""Evaluation of a generator folder on the held-out cases of a raw data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_difftumor.atomic_files import write_json
from nnunet_difftumor.cases import Case, RawDataset, load_raw_dataset
from nnunet_difftumor.errors import DatasetError, LeakError, MissingLabelError, OutputExistsError
from nnunet_difftumor.generators import DiffusionTissue
from nnunet_difftumor.inplace_evaluation import FillTissue, InPlaceCase, evaluate_case, save_picture, summarize
from nnunet_difftumor.label_roles import resolve_label_roles


def evaluate_generator(
    generator_folder: Path,
    raw_dataset: Path,
    output: Path,
    *,
    splits_path: Path | None = None,
    fold: int | None = None,
    steps: int = 4,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Replace the real tumours of held-out cases and write `inplace.json` and `inplace.png`.

    Args:
        generator_folder: Generator folder.
        raw_dataset: nnU-Net raw data set with annotated tumours.
        output: Folder for the results.
        splits_path: A splits_final.json; with `fold`, its validation cases are evaluated.
        fold: Fold of the splits; without it, every case that did not train the generator.
        steps: Denoising steps T.
        seed: Seed of the generated tumours.
        overwrite: Replace results that are there already.

    Returns:
        What `inplace.json` holds.

    Raises:
        LeakError: If a case to evaluate trained the generator.
        MissingLabelError: If no case has a tumour.
        OutputExistsError: If the results exist and `overwrite` is False.
    """
    if (output / "inplace.json").exists() and not overwrite:
        raise OutputExistsError(f"{output / 'inplace.json'} exists; choose another --output, or add --overwrite.")
    from diffusion.generator_folder import load_generator

    loaded = load_generator(generator_folder)
    dataset = load_raw_dataset(raw_dataset)
    cases = _held_out_cases(dataset, loaded.provenance, splits_path, fold)
    organ_label, tumor_label = resolve_label_roles(dataset.options["labels"])
    tissue = DiffusionTissue(loaded, steps=steps)
    fill = FillTissue(loaded.pipeline.autoencoder)
    rng = np.random.default_rng(seed)
    evaluated: list[InPlaceCase] = []
    skipped: list[str] = []
    for case in tqdm(cases, desc="evaluating", unit="case"):
        try:
            evaluated.append(evaluate_case(case, organ_label, tumor_label, tissue, fill, rng))
        except MissingLabelError:
            skipped.append(case.identifier)
    if not evaluated:
        raise MissingLabelError(f"None of the {len(cases)} cases to evaluate in {raw_dataset} has a tumour.")
    summary = {**summarize(evaluated, tissue.window_hu), "without_tumor": skipped, "steps": steps, "seed": seed}
    heading = f"Real (before) and generated (after) tumours of {dataset.folder.name}, cases the generator never saw"
    save_picture(evaluated, output / "inplace.png", heading)
    write_json(output / "inplace.json", summary, overwrite=True)
    return summary


def _held_out_cases(
    dataset: RawDataset, provenance: Any, splits_path: Path | None, fold: int | None
) -> tuple[Case, ...]:
    from diffusion.provenance import hash_identifier

    trained = {entry.identifier_hash for entry in provenance.diffusion}
    by_identifier = {case.identifier: case for case in dataset.cases}
    if (splits_path is None) != (fold is None):
        raise DatasetError("--splits and --fold belong together; give both or neither.")
    if splits_path is None or fold is None:
        return tuple(case for case in dataset.cases if hash_identifier(case.identifier) not in trained)
    try:
        validation = json.loads(splits_path.read_text(encoding="utf-8"))[fold]["val"]
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise DatasetError(f"{splits_path} has no validation list for fold {fold} ({error!r}).") from error
    unknown = sorted(set(validation) - set(by_identifier))
    if unknown:
        raise DatasetError(f"{splits_path} names cases that {dataset.folder} does not hold: {', '.join(unknown[:5])}.")
    leaked = [name for name in validation if hash_identifier(name) in trained]
    if leaked:
        raise LeakError(
            f"{len(leaked)} of the cases to evaluate trained this generator ({', '.join(leaked[:5])}). "
            f"Train it with --splits {splits_path} --fold {fold}."
        )
    return tuple(by_identifier[name] for name in validation)
