"""Evaluation of a generator folder on the held-out cases of a raw data set."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_difftumor.ct.datasets import Case, RawDataset, load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.errors import DatasetError, LeakError, OutputExistsError
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.generator_names import default_target, is_builtin, resolve_generator
from nnunet_difftumor.tumor.published_contrasts import make_appearance_rule

if TYPE_CHECKING:
    from diffusion.generator_folder import LoadedGenerator
    from nnunet_difftumor.evaluation.realism.result import OtherOrgan
    from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
    from nnunet_difftumor.evaluation.realism.tumors.tumors_of_a_scan import Sources

_PACKAGES = ("nnunet-difftumor", "torch", "diffusers", "numpy", "scipy")


def evaluate_generator(
    generator: str | Path,
    raw_dataset: Path,
    output: Path,
    settings: EvaluationSettings,
    *,
    target: str | None = None,
    labels: tuple[str | None, str | None] = (None, None),
    splits_path: Path | None = None,
    fold: int | None = None,
    other_organs: Sequence[OtherOrgan] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compare generated with real tumours on held-out cases and write tables, pictures and a page.

    Args:
        generator: Generator folder, or builtin:NAME.
        raw_dataset: nnU-Net raw data set with annotated tumours.
        target: What requested looks are drawn from (see `appearance_priors`); by default, as in use.
        labels: Names or values of organ and tumour; by default inferred from the names.
        splits_path: A splits_final.json; with `fold`, its validation cases are evaluated.
        fold: Fold of the splits; without it, every case that did not train the generator.
        other_organs: Scans of organs that the generator never saw.

    Returns:
        What `summary.json` holds.

    Raises:
        LeakError: If a case to evaluate trained the generator.
        MissingLabelError: If no case has a tumour.
        OutputExistsError: If the results exist and `overwrite` is False.
    """
    from diffusion.generator_folder import load_generator
    from nnunet_difftumor.evaluation.realism.result import EvaluationInput
    from nnunet_difftumor.evaluation.realism.run import SUMMARY_FILE, evaluate

    if (output / SUMMARY_FILE).exists() and not overwrite:
        raise OutputExistsError(f"{output / SUMMARY_FILE} exists; choose another --output, or add --overwrite.")
    folder, target = resolve_generator(generator), target or default_target(str(generator))
    loaded, dataset = load_generator(folder), load_raw_dataset(raw_dataset)
    cases = _held_out_cases(dataset, loaded.provenance, splits_path, fold)
    organ, tumor = resolve_label_roles(dataset.options["labels"], *map(_value, labels))
    given = EvaluationInput(
        sources=_sources(loaded, settings, target),
        autoencoder=loaded.pipeline.autoencoder,
        cases=cases,
        organ_label=organ,
        tumor_label=tumor,
        training_cases=[case for case in dataset.cases if case not in cases] if settings.uses_training_range else [],
        other_organs=other_organs,
        description={
            **_describe(_name(generator, folder), folder, dataset, loaded.info),
            "target": target,
            "cases_that_trained_the_autoencoder": _known_to_autoencoder(cases, loaded.provenance),
        },
    )
    return evaluate(given, settings, output).summary


def _sources(loaded: LoadedGenerator, settings: EvaluationSettings, target: str) -> Sources:
    from nnunet_difftumor.evaluation.realism.tumors.fills import reconstruct_with
    from nnunet_difftumor.evaluation.realism.tumors.tumors_of_a_scan import Sources

    tissue, reconstruct = DiffusionTissue(loaded, steps=settings.steps), reconstruct_with(loaded.pipeline.autoencoder)
    return Sources(tissue, reconstruct, loaded.info, make_appearance_rule(target, examples=tissue.appearances))


def _value(label: str | None) -> str | int | None:
    """A label as an option gives it: a name, or a value as a number."""
    return int(label) if label is not None and label.isdigit() else label


def _name(generator: str | Path, folder: Path) -> str:
    """Name of a generator without the machine's path."""
    return str(generator) if is_builtin(generator) else "/".join(folder.resolve().parts[-2:])


def _describe(name: str, generator_folder: Path, dataset: RawDataset, info: Any) -> dict[str, Any]:
    """What the summary says of generator, data and software."""
    from diffusion.generator.provenance import hash_file
    from diffusion.generator_folder import PROVENANCE_FILE

    return {
        "generator": {
            "name": name,
            "preset": info.preset,
            "provenance_hash": hash_file(generator_folder / PROVENANCE_FILE),
        },
        "data_note": info.data_note,
        "dataset": dataset.folder.name,
        "dataset_description": str(dataset.options.get("description", "")),
        "versions": {
            "Python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
    }


def _known_to_autoencoder(cases: Sequence[Case], provenance: Any) -> list[str]:
    """Evaluated cases whose CT trained the autoencoder, which sees no labels."""
    from diffusion.generator.provenance import hash_identifier

    trained = {entry.identifier_hash for entry in provenance.autoencoder}
    return [case.identifier for case in cases if hash_identifier(case.identifier) in trained]


def _held_out_cases(
    dataset: RawDataset, provenance: Any, splits_path: Path | None, fold: int | None
) -> tuple[Case, ...]:
    from diffusion.generator.provenance import hash_identifier

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
