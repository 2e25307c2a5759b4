"""One evaluation from scans to files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_difftumor.errors import MissingLabelError
from nnunet_difftumor.evaluation.realism import summary, tables
from nnunet_difftumor.evaluation.realism.collection import Collection, collect, collect_native
from nnunet_difftumor.evaluation.realism.copy_paste import donor_of_scan
from nnunet_difftumor.evaluation.realism.measures.probes import ProbeResult, collect_pairs, probe, probe_nothing
from nnunet_difftumor.evaluation.realism.measures.reconstruction import measure_reconstruction
from nnunet_difftumor.evaluation.realism.measures.tumors import write_tumors
from nnunet_difftumor.evaluation.realism.result import Evaluation, EvaluationInput
from nnunet_difftumor.evaluation.realism.settings import EVALUATION_SPACING_MM, EvaluationSettings
from nnunet_difftumor.evaluation.realism.summary import Probes
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, read_scan
from nnunet_difftumor.evaluation.realism.tumors.tumors_of_a_scan import Sources
from nnunet_difftumor.support.files.atomic_files import write_json

SUMMARY_FILE, TUMORS_FILE, REPORT_FILE = "summary.json", "tumors.csv", "report.html"
_PROBES_FOLDER = "probes"


def evaluate(given: EvaluationInput, settings: EvaluationSettings, output: Path) -> Evaluation:
    """Make tumours, measure them, and write tables, pictures and report.

    Args:
        settings: What is made and measured.

    Returns:
        Everything that was found.

    Raises:
        MissingLabelError: If no case has a tumour.
    """
    from nnunet_difftumor.evaluation.realism.report import write_pictures_and_report

    rng = np.random.default_rng(settings.seed)
    labels = (given.organ_label, given.tumor_label)
    scans = [read_scan(case, *labels) for case in tqdm(given.cases, desc="reading", unit="scan")]
    if not any(scan.has_target for scan in scans):
        raise MissingLabelError(
            f"None of the {len(scans)} cases to evaluate has a tumour (label {given.tumor_label}) of at least 3 mm "
            "radius. Give a data set whose held-out cases have annotated tumours."
        )
    window_hu = given.generator.window_hu
    donors = tuple(donor_of_scan(scan, window_hu) for scan in scans if scan.has_target)
    sources = Sources(given.generator, given.reconstruct, donors, given.looks)
    collection = collect(scans, sources, settings, rng, heading="tumours")
    collect_native(collection, given.cases, labels, sources, settings, rng)
    others = _other_organs(given, sources, settings, rng)
    probes = run_probes(collection, window_hu, settings, output / _PROBES_FOLDER)
    found = _summarize(given, scans, collection, others, probes, settings, rng)
    result = Evaluation(found, collection, others, probes, window_hu)
    other_rows = [(f"{kind}, {name}", row) for name, other in others.items() for kind, row in other.rows()]
    write_tumors(output / TUMORS_FILE, [*collection.rows(), *other_rows])
    write_pictures_and_report(result, output)
    write_json(output / SUMMARY_FILE, found, overwrite=True)
    return result


def run_probes(
    collection: Collection, window_hu: tuple[float, float], settings: EvaluationSettings, folder: Path
) -> Probes:
    """Train both classifiers on every method that is probed; results of the same patches are read, not trained.

    Args:
        collection: Everything that was made.
        window_hu: Window of all values in HU.
        folder: Where results are kept.
    """
    results: dict[bool, dict[str, ProbeResult | None]] = {False: {}, True: {}}
    if settings.classifier.steps == 0:
        return Probes(results[False], results[True])
    jobs = [(only_rim, method) for only_rim in (False, True) for method in (*summary.PROBED, summary.SANITY)]
    for only_rim, method in tqdm(jobs, desc="classifiers", unit="training"):
        is_sanity = method == summary.SANITY
        source = making.GENERATED if is_sanity else method
        tumors = [tumor.made for tumor in collection.in_place if tumor.made.method == source]
        name = f"{'rim' if only_rim else 'whole'} {method}"
        kinds = {"only_rim": only_rim, "heading": name}

        def run(is_sanity: bool = is_sanity, tumors: list = tumors, kinds: dict = kinds) -> ProbeResult | None:
            train = probe_nothing if is_sanity else probe
            return train(tumors, window_hu, settings.classifier, np.random.default_rng(settings.seed), **kinds)

        if len({tumor.place.scan.identifier for tumor in tumors}) < 2:
            results[only_rim][method] = None
            continue
        rng = np.random.default_rng(settings.seed)
        pairs = collect_pairs(tumors, window_hu, settings.classifier, rng, only_rim=only_rim)
        digest = hashlib.sha256(repr((settings.classifier, settings.seed, name)).encode())
        digest.update(pairs.real.tobytes() + pairs.synthetic.tobytes())
        results[only_rim][method] = _remembered(folder / f"{name.replace(' ', '_')}.json", digest.hexdigest(), run)
    return Probes(results[False], results[True])


def _remembered(path: Path, key: str, run: Callable[[], ProbeResult | None]) -> ProbeResult | None:
    """A result from its file if it was made from the same patches, else made and written."""
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return ProbeResult.from_json(stored["result"])
    result = run()
    if result is not None:
        write_json(path, {"key": key, "result": result.to_json()}, overwrite=True)
    return result


def _other_organs(
    given: EvaluationInput, sources: Sources, settings: EvaluationSettings, rng: np.random.Generator
) -> dict[str, Collection]:
    others: dict[str, Collection] = {}
    for organ in given.other_organs:
        scan = read_scan(organ.case, organ.organ_label, None)
        name = f"{organ.case.identifier}, label {organ.organ_label}"
        others[name] = collect([scan], sources, settings, rng, heading=name)
        collect_native(others[name], [organ.case], (organ.organ_label, None), sources, settings, rng)
    return others


def _summarize(
    given: EvaluationInput,
    scans: Sequence[EvaluationScan],
    collection: Collection,
    others: Mapping[str, Collection],
    probes: Probes,
    settings: EvaluationSettings,
    rng: np.random.Generator,
) -> dict[str, Any]:
    window_hu, draws = given.generator.window_hu, settings.bootstrap_draws
    reference = summary.reference_of(collection, window_hu, draws)
    methods = summary.summarize_methods(collection, reference, settings, probes, rng)
    real = methods[making.REAL]
    methods = summary.with_real_row(methods, real)
    controls = summary.summarize_controls(collection, draws, rng)
    training_means_hu = _training_means_hu(given)
    reconstruction: dict[str, Any] = {}
    if given.autoencoder is not None:
        reconstruction = measure_reconstruction(given.autoencoder, scans, settings.reconstruction_tiles)
    fine = reconstruction.get(f"{EVALUATION_SPACING_MM:g} mm", {})
    head = summary.headline(collection, reference, settings, methods, controls, training_means_hu, rng)
    return tables.plain(
        {
            "reconstruction_mae_ratio_2x_body": fine.get("body", {}).get("ratio_2x"),
            "reconstruction_mae_ratio_2x_tumor": fine.get("tumor", {}).get("ratio_2x"),
            **head,
            "methods": methods,
            "controls": controls,
            "sanity": summary.summarize_sanity(probes, draws, rng),
            "other_organ": {
                name: {
                    "methods": summary.with_real_row(
                        summary.summarize_methods(other, reference, settings, Probes(), rng), real
                    ),
                    "controls": summary.summarize_controls(other, draws, rng),
                    "without_place": dict(other.failed),
                }
                for name, other in others.items()
            },
            "reconstruction": reconstruction,
            "without_place": dict(collection.failed),
            "cases": [scan.identifier for scan in scans],
            "cases_without_tumor": [scan.identifier for scan in scans if not scan.has_target],
            "spacing_mm": EVALUATION_SPACING_MM,
            "headline_radii_mm": list(settings.headline_radii_mm),
            "steps": settings.steps,
            "seed": settings.seed,
            **given.description,
        }
    )


def _training_means_hu(given: EvaluationInput) -> list[float]:
    """Mean of the largest tumour of every training case in HU."""
    means = []
    for case in tqdm(given.training_cases, desc="training tumours", unit="scan", disable=not given.training_cases):
        try:
            scan = read_scan(case, given.organ_label, given.tumor_label)
        except MissingLabelError:
            continue
        if scan.has_target:
            means.append(float(np.clip(scan.image_hu, *given.generator.window_hu)[scan.target].mean()))
    return means
