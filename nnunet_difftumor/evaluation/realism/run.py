"""One evaluation from scans to files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_difftumor.errors import MissingLabelError
from nnunet_difftumor.evaluation.realism import summary, tables
from nnunet_difftumor.evaluation.realism.collection import IN_PLACE, Collection, collect, write_tumors
from nnunet_difftumor.evaluation.realism.measures.probes import ProbeResult, collect_pairs, probe
from nnunet_difftumor.evaluation.realism.measures.reconstruction import measure_reconstruction
from nnunet_difftumor.evaluation.realism.result import Evaluation, EvaluationInput
from nnunet_difftumor.evaluation.realism.settings import EVALUATION_SPACING_MM, EvaluationSettings
from nnunet_difftumor.evaluation.realism.summary import Probes
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, read_scan
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.synthesis.tissue.donors import Donor, make_donor

SUMMARY_FILE, TUMORS_FILE, REPORT_FILE = "summary.json", "tumors.csv", "report.html"
_PROBES_FOLDER = "probes"


def evaluate(given: EvaluationInput, settings: EvaluationSettings, output: Path) -> Evaluation:
    """Make tumours, measure them, and write tables, pictures and report.

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
    window_hu = given.sources.generator.window_hu
    donors = tuple(donor_of_scan(scan, window_hu) for scan in scans if scan.has_target)
    sources = replace(given.sources, donors=donors)
    collection = collect(scans, given.cases, labels, sources, settings, rng, heading="tumours")
    others = {}
    for organ in given.other_organs:
        name = f"{organ.case.identifier}, label {organ.organ_label}"
        labels = (organ.organ_label, None)
        scan = read_scan(organ.case, *labels)
        others[name] = collect([scan], [organ.case], labels, sources, settings, rng, heading=name)
    probes = run_probes(collection, window_hu, settings, output / _PROBES_FOLDER)
    found = _summarize(given, scans, collection, others, probes, settings)
    result = Evaluation(found, collection, others, probes, window_hu)
    write_tumors(output / TUMORS_FILE, {"": collection, **others})
    write_pictures_and_report(result, output)
    write_json(output / SUMMARY_FILE, found, overwrite=True)
    return result


def run_probes(
    collection: Collection, window_hu: tuple[float, float], settings: EvaluationSettings, folder: Path
) -> Probes:
    """Train both classifiers on every method that is probed; results of the same patches are read from a folder."""
    results: dict[bool, dict[str, ProbeResult | None]] = {False: {}, True: {}}
    if settings.classifier.steps == 0:
        return Probes(results[False], results[True])
    jobs = [(only_rim, method) for only_rim in (False, True) for method in (*summary.PROBED, summary.SANITY)]
    for only_rim, method in tqdm(jobs, desc="classifiers", unit="training"):
        is_sanity = method == summary.SANITY
        rows = collection.of(IN_PLACE, making.GENERATED if is_sanity else method)
        tumors = rows["made"].dropna().tolist()
        results[only_rim][method] = None
        if len({tumor.scan.identifier for tumor in tumors}) < 2:
            continue
        name, rng = f"{'rim' if only_rim else 'whole'} {method}", np.random.default_rng(settings.seed)
        pairs = collect_pairs(tumors, window_hu, settings.classifier, rng, only_rim=only_rim, only_real=is_sanity)
        train = partial(probe, tumors, pairs, settings.classifier, rng, heading=name)
        digest = hashlib.sha256(repr((settings.classifier, settings.seed, name)).encode())
        digest.update(pairs.real.tobytes() + pairs.synthetic.tobytes())
        path = folder / f"{name.replace(' ', '_')}.json"
        results[only_rim][method] = _remembered(path, digest.hexdigest(), train)
    return Probes(results[False], results[True])


def _remembered(path: Path, key: str, run: Callable[[], ProbeResult]) -> ProbeResult:
    """A result from its file if it was made from the same patches, else made and written."""
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return ProbeResult.from_json(stored["result"])
    result = run()
    write_json(path, {"key": key, "result": result.to_json()}, overwrite=True)
    return result


def donor_of_scan(scan: EvaluationScan, window_hu: tuple[float, float]) -> Donor:
    """Take the largest tumour of a scan as a donor of texture, limited to a window in HU."""
    image_hu = np.clip(scan.image_hu, *window_hu)
    return make_donor(scan.identifier, image_hu, scan.target, scan.organ, scan.spacing_mm)


def _summarize(
    given: EvaluationInput,
    scans: Sequence[EvaluationScan],
    collection: Collection,
    others: Mapping[str, Collection],
    probes: Probes,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    window_hu, draws = given.sources.generator.window_hu, settings.bootstrap_draws
    reference = summary.reference_of(collection, window_hu, draws)
    methods = summary.summarize_methods(collection, reference, settings, probes)
    real = methods[making.REAL]
    methods = summary.with_real_row(methods, real)
    controls = summary.summarize_controls(collection, draws)
    training_means_hu = _training_means_hu(given)
    reconstruction: dict[str, Any] = {}
    if given.autoencoder is not None:
        reconstruction = measure_reconstruction(given.autoencoder, scans, settings.reconstruction_tiles)
    fine = reconstruction.get(f"{EVALUATION_SPACING_MM:g} mm", {})
    head = summary.headline(collection, reference, settings, methods, controls, training_means_hu)
    return tables.plain(
        {
            "reconstruction_mae_ratio_2x_body": fine.get("body", {}).get("ratio_2x"),
            "reconstruction_mae_ratio_2x_tumor": fine.get("tumor", {}).get("ratio_2x"),
            **head,
            "methods": methods,
            "controls": controls,
            "sanity": probes.table(summary.SANITY),
            "other_organ": {
                name: {
                    "methods": summary.with_real_row(
                        summary.summarize_methods(other, reference, settings, Probes()), real
                    ),
                    "controls": summary.summarize_controls(other, draws),
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
            "precision": given.sources.generator.precision,
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
            means.append(float(np.clip(scan.image_hu, *given.sources.generator.window_hu)[scan.target].mean()))
    return means
