"""Evaluation of a generator folder on the held-out cases of a raw data set, from scans to files."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nnunet_difftumor.cases.leak_guard import hash_ct
from nnunet_difftumor.ct.datasets import Case, RawDataset, load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.ct.reading import read_stored_ct
from nnunet_difftumor.errors import DatasetError, LeakError, MissingLabelError, OutputExistsError
from nnunet_difftumor.evaluation.realism import summary, tables
from nnunet_difftumor.evaluation.realism.collection import collect, seen, write_tumors
from nnunet_difftumor.evaluation.realism.measures.probes import PROBED, run_probes
from nnunet_difftumor.evaluation.realism.measures.reconstruction import measure_reconstruction
from nnunet_difftumor.evaluation.realism.settings import EVALUATION_SPACING_MM, HEADLINE_RADII_MM, EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors.making import GENERATED, IN_PLACE
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, read_scan
from nnunet_difftumor.evaluation.realism.tumors.sources import Sources, reconstruct_with
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.donors import Donor, make_donor
from nnunet_difftumor.synthesis.tissue.generator_names import default_target, is_builtin, resolve_generator
from nnunet_difftumor.tumor.published_contrasts import make_appearance_rule

if TYPE_CHECKING:
    from diffusion.generator.provenance import CaseFingerprint, Provenance

SUMMARY_FILE, TUMORS_FILE = "summary.json", "tumors.csv"
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
    other_organs: Sequence[tuple[Case, int]] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compare generated with real tumours on held-out cases and write tables, pictures and a page.

    Args:
        generator: Generator folder, or builtin:NAME.
        raw_dataset: nnU-Net raw data set with annotated tumours.
        target: What requested looks are drawn from (see `make_appearance_rule`); by default, as in use.
        labels: Names or values of organ and tumour; by default inferred from the names.
        splits_path: A splits_final.json; with `fold`, its validation cases are evaluated.
        fold: Fold of the splits; without it, every case that did not train the generator.
        other_organs: Scans of organs that the generator never saw, with the organ's value.

    Returns:
        What `summary.json` holds.

    Raises:
        LeakError: If a case to evaluate trained the generator.
        MissingLabelError: If no case has a tumour.
        OutputExistsError: If the results exist and `overwrite` is False.
    """
    from diffusion.generator_folder import load_generator

    if (output / SUMMARY_FILE).exists() and not overwrite:
        raise OutputExistsError(f"{output / SUMMARY_FILE} exists; choose another --output, or add --overwrite.")
    folder, target = resolve_generator(generator), target or default_target(str(generator))
    loaded, dataset = load_generator(folder), load_raw_dataset(raw_dataset)
    cases = _held_out_cases(dataset, loaded.provenance, splits_path, fold)
    tissue, autoencoder = DiffusionTissue(loaded, steps=settings.steps), loaded.pipeline.autoencoder
    looks = make_appearance_rule(target, examples=tissue.appearances)
    roles = [int(label) if label and label.isdigit() else label for label in labels]
    given = _Input(
        sources=Sources(tissue, reconstruct_with(autoencoder), loaded.info, looks),
        autoencoder=autoencoder,
        cases=cases,
        labels=resolve_label_roles(dataset.options["labels"], *roles),
        training_cases=[case for case in dataset.cases if case not in cases] if settings.uses_training_range else [],
        other_organs=other_organs,
        description={
            **_describe(generator, folder, dataset, loaded.info),
            "target": target,
            "cases_that_trained_the_autoencoder": _known(cases, loaded.provenance.autoencoder),
        },
    )
    return _evaluate(given, settings, output)


@dataclass(frozen=True, eq=False)
class _Input:
    """What is evaluated, and on what."""

    sources: Sources  # without donors
    autoencoder: Any
    cases: Sequence[Case]
    labels: tuple[int, int]  # values of organ and tumour
    training_cases: Sequence[Case]  # their tumours widen the range of plausible means
    other_organs: Sequence[tuple[Case, int]]
    description: Mapping[str, Any]  # written into the summary as it is

    def scans(
        self, cases: Sequence[Case], labels: tuple[int, int | None], *, native: bool = False
    ) -> Iterator[EvaluationScan]:
        return (read_scan(case, *labels, self.sources.generator.window_hu, native=native) for case in cases)


def _evaluate(given: _Input, settings: EvaluationSettings, output: Path) -> dict[str, Any]:
    """Make tumours, measure them, and write tables, pictures and report."""
    from nnunet_difftumor.evaluation.realism.figures import draw_pictures
    from nnunet_difftumor.evaluation.realism.report import write_report

    rng = np.random.default_rng(settings.seed)
    scans = list(tqdm(given.scans(given.cases, given.labels), desc="reading", unit="scan", total=len(given.cases)))
    if not any(scan.has_target for scan in scans):
        raise MissingLabelError(
            f"None of the {len(scans)} cases to evaluate has a tumour (label {given.labels[1]}) of at least 3 mm "
            "radius. Give a data set whose held-out cases have annotated tumours."
        )
    sources = replace(given.sources, donors=tuple(donor_of_scan(scan) for scan in scans if scan.has_target))
    native_scans = given.scans(given.cases, given.labels, native=True)
    tumors = collect(scans, native_scans, sources, settings, rng, heading="tumours")
    others = {}
    for case, label in given.other_organs:
        name = f"{case.identifier}, label {label}"
        own = list(given.scans([case], (label, None)))
        native_scans = given.scans([case], (label, None), native=True)
        others[name] = collect(own, native_scans, sources, settings, rng, heading=name)
    in_place = {method: seen(tumors, IN_PLACE, method)["made"].tolist() for method in PROBED}
    probes = run_probes(in_place, settings, output / "probes")
    reconstruction = measure_reconstruction(given.autoencoder, scans, settings.reconstruction_tiles)
    fine = reconstruction[f"{EVALUATION_SPACING_MM:g} mm"]
    found = tables.plain(
        {
            **{f"reconstruction_mae_ratio_2x_{name}": fine.get(name, {}).get("ratio_2x") for name in ("body", "tumor")},
            **summary.summarize(tumors, others, probes, settings, _training_means_hu(given)),
            "reconstruction": reconstruction,
            "without_place": summary.without_place(tumors),
            "cases": [scan.identifier for scan in scans],
            "cases_without_tumor": [scan.identifier for scan in scans if not scan.has_target],
            "spacing_mm": EVALUATION_SPACING_MM,
            "headline_radii_mm": HEADLINE_RADII_MM,
            "steps": settings.steps,
            "seed": settings.seed,
            "precision": given.sources.generator.precision,
            **given.description,
        }
    )
    write_tumors(output / TUMORS_FILE, {"": tumors, **others})
    write_report(found, draw_pictures(found, tumors, others, probes["two_sample_auc"].get(GENERATED)), output)
    write_json(output / SUMMARY_FILE, found, overwrite=True)
    return found


def donor_of_scan(scan: EvaluationScan) -> Donor:
    """Take the largest tumour of a scan as a donor of texture, limited to the window."""
    return make_donor(scan.identifier, scan.limited_hu, scan.target, scan.organ, scan.spacing_mm)


def _training_means_hu(given: _Input) -> list[float]:
    """Mean of the largest tumour of every training case in HU."""
    means = []
    for case in tqdm(given.training_cases, desc="training tumours", unit="scan", disable=not given.training_cases):
        try:
            (scan,) = given.scans([case], given.labels)
        except MissingLabelError:
            continue
        if scan.has_target:
            means.append(float(scan.limited_hu[scan.target].mean()))
    return means


def _describe(generator: str | Path, folder: Path, dataset: RawDataset, info: Any) -> dict[str, Any]:
    """What the summary says of generator, data and software; of the generator's path no more than its end."""
    from diffusion.generator.provenance import hash_file
    from diffusion.generator_folder import PROVENANCE_FILE

    return {
        "generator": {
            "name": str(generator) if is_builtin(generator) else "/".join(folder.resolve().parts[-2:]),
            "preset": info.preset,
            "provenance_hash": hash_file(folder / PROVENANCE_FILE),
        },
        "data_note": info.data_note,
        "dataset": dataset.folder.name,
        "dataset_description": str(dataset.options.get("description", "")),
        "versions": {
            "Python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
    }


def _held_out_cases(dataset: RawDataset, provenance: Provenance, splits: Path | None, fold: int | None) -> list[Case]:
    if (splits is None) != (fold is None):
        raise DatasetError("--splits and --fold belong together; give both or neither.")
    if splits is None or fold is None:
        trained = _known(dataset.cases, provenance.diffusion)
        return [case for case in dataset.cases if case.identifier not in trained]
    try:
        validation = json.loads(splits.read_text(encoding="utf-8"))[fold]["val"]
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise DatasetError(f"{splits} has no validation list for fold {fold} ({error!r}).") from error
    by_identifier = {case.identifier: case for case in dataset.cases}
    unknown = sorted(set(validation) - set(by_identifier))
    if unknown:
        raise DatasetError(f"{splits} names cases that {dataset.folder} does not hold: {', '.join(unknown[:5])}.")
    cases = [by_identifier[name] for name in validation]
    leaked = _known(cases, provenance.diffusion)
    if leaked:
        raise LeakError(
            f"{len(leaked)} of the cases to evaluate trained this generator ({', '.join(leaked[:5])}). "
            f"Train it with --splits {splits} --fold {fold}."
        )
    return cases


def _known(cases: Sequence[Case], trained: Sequence[CaseFingerprint]) -> list[str]:
    """Cases that trained a part of the generator, by their names or else by their CT."""
    from diffusion.generator.provenance import hash_identifier

    hashes = {value for entry in trained for value in (entry.identifier_hash, *entry.content_hashes)}
    named = {case.identifier for case in cases if hash_identifier(case.identifier) in hashes}
    others = [case for case in cases if case.identifier not in named]
    seen = {each.identifier for each in others if not hashes.isdisjoint(hash_ct(read_stored_ct(each.image_path)))}
    return [case.identifier for case in cases if case.identifier in named | seen]
