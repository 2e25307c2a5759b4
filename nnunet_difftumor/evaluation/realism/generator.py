"""Evaluation of generator folders on held-out cases of a raw data set, from scans to files."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from nnunet_difftumor.cases.known_cases import KnownCases
from nnunet_difftumor.ct.datasets import Case, RawDataset, load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.errors import ConfigurationError, MissingLabelError
from nnunet_difftumor.evaluation.realism import summary, tables, verdicts, worth
from nnunet_difftumor.evaluation.realism.collection import SHAMS, collect, seen, write_tumors
from nnunet_difftumor.evaluation.realism.held_out import HeldOut, known_cases
from nnunet_difftumor.evaluation.realism.measures.probes import PROBED, Probes, run_probes
from nnunet_difftumor.evaluation.realism.measures.reconstruction import measure_reconstruction
from nnunet_difftumor.evaluation.realism.request import SUMMARY_FILE, check_request
from nnunet_difftumor.evaluation.realism.settings import EVALUATION_SPACING_MM, HEADLINE_RADII_MM, EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors.making import GENERATED, IN_PLACE, REDRAWN, SHAM
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, read_scan
from nnunet_difftumor.evaluation.realism.tumors.sources import Sources
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.donors import Donor, make_donor
from nnunet_difftumor.synthesis.tissue.generator_names import is_builtin, resolve_generator
from nnunet_difftumor.tumor.published_contrasts import TRAINING, make_appearance_rule

if TYPE_CHECKING:
    from diffusion.generator_folder import LoadedGenerator

TUMORS_FILE = "tumors.csv"
_PACKAGES = ("nnunet-difftumor", "torch", "diffusers", "numpy", "scipy")


def evaluate_generator(
    generators: Sequence[str | Path],
    raw_dataset: Path,
    output: Path,
    settings: EvaluationSettings,
    *,
    target: str = TRAINING,
    labels: tuple[str | None, str | None] = (None, None),
    held_out: HeldOut | None = None,
    other_organs: Sequence[tuple[Case, int]] = (),
    overwrite: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Compare generated with real tumours on held-out cases and write tables, pictures and a page.

    Args:
        generators: Generator folders, or builtin:NAME; each is judged on its own cases, all in one report.
        raw_dataset: nnU-Net raw data set with annotated tumours.
        target: What requested looks are drawn from (see `make_appearance_rule`); by default the training tumours, of
            whose kind the real ones are.
        labels: Names or values of organ and tumour; by default inferred from the names.
        held_out: How cases are chosen; by default, all that did not train the generator.
        other_organs: Scans of organs that the generator (the first one) never saw, with the organ's value.
        workers: Processes that train the classifiers.

    Returns:
        What `summary.json` holds.

    Raises:
        ConfigurationError: If generators differ in their window.
        LeakError: If a case to evaluate trained its generator.
        MissingLabelError: If no case has a tumour.
        OutputExistsError: If the results exist and `overwrite` is False.
    """
    held_out = held_out or HeldOut()
    check_request(generators, raw_dataset, output, labels=labels, held_out=held_out, overwrite=overwrite)
    dataset = load_raw_dataset(raw_dataset)
    judged = _judge(generators, dataset, held_out, settings, target)
    cases = [case for each in judged for case in each.cases]
    given = _Input(
        judged=judged,
        labels=resolve_label_roles(dataset.options["labels"], *labels),
        known=held_out.known,
        training_cases=[case for case in dataset.cases if case not in cases] if settings.uses_training_range else [],
        other_organs=other_organs,
        most_tumors=settings.most_tumors,
        description={
            "generators": [each.description for each in judged],
            **_describe(dataset),
            "data_note": " ".join(dict.fromkeys(each.sources.info.data_note for each in judged)),
            "target": target,
            "cases_that_trained_the_autoencoder": [name for each in judged for name in each.known_to_autoencoder],
        },
    )
    return _evaluate(given, settings, output, workers)


@dataclass(frozen=True, eq=False)
class _Judged:
    """A generator and the cases on which it is judged."""

    sources: Sources  # without donors
    autoencoder: Any
    cases: Sequence[Case]
    known_to_autoencoder: Sequence[str]
    description: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Input:
    """What is evaluated, and on what."""

    judged: Sequence[_Judged]
    labels: tuple[int, int]  # values of organ and tumour
    known: KnownCases
    training_cases: Sequence[Case]  # their tumours widen the range of plausible means
    other_organs: Sequence[tuple[Case, int]]
    most_tumors: int
    description: Mapping[str, Any]  # written into the summary as it is

    @property
    def first(self) -> _Judged:
        """The generator that stands for all where one is enough."""
        return self.judged[0]

    def scans(
        self, cases: Sequence[Case], labels: tuple[int, int | None], *, native: bool = False
    ) -> Iterator[EvaluationScan]:
        window_hu, patient_of = self.first.sources.generator.window_hu, self.known.patient_of
        for case in cases:
            patient, most = patient_of(case.identifier), self.most_tumors
            yield read_scan(case, *labels, window_hu, native=native, most_tumors=most, patient=patient)


def _judge(
    generators: Sequence[str | Path],
    dataset: RawDataset,
    held_out: HeldOut,
    settings: EvaluationSettings,
    target: str,
) -> list[_Judged]:
    """Load the generators, each with its cases.

    Raises:
        ConfigurationError: If their windows differ.
    """
    from diffusion.generator_folder import load_generator

    folders = [resolve_generator(each) for each in generators]
    loaded = [load_generator(folder) for folder in folders]
    windows = {DiffusionTissue(each).window_hu for each in loaded}
    if len(windows) > 1:
        raise ConfigurationError(
            f"The generators have windows of {sorted(windows)} HU, in which their tumours could not be compared. "
            "Evaluate them apart, or train them on one window."
        )
    judged = []
    found = held_out.cases(dataset, [each.provenance for each in loaded])
    for name, folder, each, cases in zip(generators, folders, loaded, found, strict=True):
        tissue, autoencoder = DiffusionTissue(each, steps=settings.steps), each.sampler.autoencoder
        looks = make_appearance_rule(target, examples=tissue.appearances)
        sources = Sources(tissue, each.info, looks)
        known, description = known_cases(cases, each.provenance.autoencoder), _describe_generator(name, folder, each)
        identifiers = [case.identifier for case in cases]
        judged.append(_Judged(sources, autoencoder, cases, known, {**description, "cases": identifiers}))
    return judged


def _evaluate(given: _Input, settings: EvaluationSettings, output: Path, workers: int) -> dict[str, Any]:
    """Make tumours, measure them, and write tables, pictures and report."""
    from nnunet_difftumor.evaluation.realism.figures import draw_pictures
    from nnunet_difftumor.evaluation.realism.report import write_report

    rng = np.random.default_rng(settings.seed)
    scans = [
        list(tqdm(given.scans(each.cases, given.labels), desc="reading", unit="scan", total=len(each.cases)))
        for each in given.judged
    ]
    every = [scan for own in scans for scan in own]
    if not any(scan.has_target for scan in every):
        raise MissingLabelError(
            f"None of the {len(every)} cases to evaluate has a tumour (label {given.labels[1]}) of at least 3 mm "
            "radius. Give a data set whose held-out cases have annotated tumours."
        )
    donors = tuple(donor_of_scan(target) for scan in every for target in scan.targets())
    sources = [replace(each.sources, donors=donors) for each in given.judged]
    native = [given.scans(each.cases, given.labels, native=True) for each in given.judged]
    tumors = pd.concat(
        [
            collect(own, own_native, source, settings, rng, heading="tumours")
            for own, own_native, source in zip(scans, native, sources, strict=True)
        ],
        ignore_index=True,
    )
    others = {}
    for case, label in given.other_organs:
        name = f"{case.identifier}, label {label}"
        own = list(given.scans([case], (label, None)))
        own_native = given.scans([case], (label, None), native=True)
        others[name] = collect(own, own_native, sources[0], settings, rng, heading=name)
    write_tumors(output / TUMORS_FILE, {"": tumors, **others})
    in_place = {method: seen(tumors, IN_PLACE, method)["made"].tolist() for method in PROBED}
    shams = {kind: seen(tumors, SHAMS, kind)["made"].tolist() for kind in (SHAM, REDRAWN)}
    probes = run_probes(in_place | shams, settings, output / "probes", workers=workers)
    found = _figures(given, settings, every, tumors, others, probes)
    worth.write_table(found["worth"], output)
    write_report(found, draw_pictures(found, tumors, others, probes["two_sample_auc"].get(GENERATED)), output)
    write_json(output / SUMMARY_FILE, found, overwrite=True)
    return found


def _figures(
    given: _Input,
    settings: EvaluationSettings,
    scans: Sequence[EvaluationScan],
    tumors: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    probes: Probes,
) -> dict[str, Any]:
    """What `summary.json` holds."""
    by_case = {scan.identifier: scan for scan in scans}
    reconstruction = measure_reconstruction(
        [(each.autoencoder, [by_case[case.identifier] for case in each.cases]) for each in given.judged],
        settings.reconstruction_tiles,
    )
    fine = reconstruction[f"{EVALUATION_SPACING_MM:g} mm"]
    figures = summary.summarize(tumors, others, probes, settings, _training_means(given))
    return tables.plain(
        {
            **{f"reconstruction_mae_ratio_2x_{name}": fine.get(name, {}).get("ratio_2x") for name in ("body", "tumor")},
            **figures,
            "verdicts": verdicts.judge(figures),
            "worth": worth.compare(tumors, probes, settings),
            "reconstruction": reconstruction,
            "without_place": summary.without_place(tumors),
            "cases": [scan.identifier for scan in scans],
            "patients": len({scan.patient for scan in scans}),
            "cases_without_tumor": [scan.identifier for scan in scans if not scan.has_target],
            "tumors_left_out": {scan.identifier: scan.left_out for scan in scans if scan.left_out},
            "most_tumors": settings.most_tumors,
            "spacing_mm": EVALUATION_SPACING_MM,
            "headline_radii_mm": HEADLINE_RADII_MM,
            "classifier_seeds": settings.classifier.seeds,
            "steps": settings.steps,
            "seed": settings.seed,
            "precision": given.first.sources.generator.precision,
            **given.description,
        }
    )


def donor_of_scan(scan: EvaluationScan) -> Donor:
    """Take the target of a scan as a donor of texture, limited to the window."""
    return make_donor(scan.patient, scan.limited_hu, scan.target, scan.organ, scan.spacing_mm)


def _training_means(given: _Input) -> pd.DataFrame:
    """Patient and mean in HU of the training cases' tumours, as of those that are compared."""
    rows = []
    for case in tqdm(given.training_cases, desc="training tumours", unit="scan", disable=not given.training_cases):
        try:
            (scan,) = given.scans([case], given.labels)
        except MissingLabelError:
            continue
        means_hu = (float(target.limited_hu[target.target].mean()) for target in scan.targets())
        rows += [(scan.patient, mean_hu) for mean_hu in means_hu]
    return pd.DataFrame(rows, columns=["patient", "mean_hu"])


def _describe(dataset: RawDataset) -> dict[str, Any]:
    """What the summary says of data and software."""
    return {
        "dataset": dataset.folder.name,
        "dataset_description": str(dataset.options.get("description", "")),
        "versions": {
            "Python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        },
    }


def _describe_generator(generator: str | Path, folder: Path, loaded: LoadedGenerator) -> dict[str, Any]:
    """What the summary says of a generator; of its path no more than the end."""
    from diffusion.generator.provenance import hash_file
    from diffusion.generator_folder import PROVENANCE_FILE

    return {
        "name": str(generator) if is_builtin(generator) else "/".join(folder.resolve().parts[-2:]),
        "preset": loaded.info.preset,
        "provenance_hash": hash_file(folder / PROVENANCE_FILE),
    }
