"""Two-sample classifier and rim probe: patches of real and synthetic tumours, and what a network makes of them."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_difftumor.ct.boxes import Box, ends_of, inside, widened
from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.evaluation.realism.measures.classifier import DISTANCE_LIMIT_MM, PatchPairs, score_held_out
from nnunet_difftumor.evaluation.realism.settings import ClassifierSettings, EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.making import MadeTumor
from nnunet_difftumor.evaluation.realism.tumors.scans import FloatArray
from nnunet_difftumor.evaluation.statistics.intervals import Estimate, mean_interval, patient_mean_interval
from nnunet_difftumor.evaluation.statistics.roc import AreaUnderCurve, area_interval, area_under_curve, auc, mean_area
from nnunet_difftumor.evaluation.statistics.scales import SHARE
from nnunet_difftumor.support.files.atomic_files import write_json

HIDES_INSIDE = {"two_sample_auc": False, "rim_probe_auc": True}
"""The classifiers, and whether the inside of a tumour is hidden from them."""

PROBED = (making.GENERATED, making.NO_DIFFUSION, making.TEXTURED_FILL, making.COPY_PASTE)
SANITY = "real against real"

EVERY_SIZE_MM = (0.0, math.inf)

SOFT_TISSUE_HU = (-40.0, 120.0)
"""Second, narrower window in which the network sees the image: tumours differ by tens of HU, not hundreds."""

_FEWEST_POSITIONS = 4  # of a tumour


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a classifier found.

    Attributes:
        patients: Patients, in the order of the indices below.
        patient, tumor: Index of each pair's patient and of its synthetic tumour. Shapes (N,).
        diameters_mm: Diameter of each pair's tumour in mm. Shape (N,).
        real_scores, synthetic_scores: Held-out scores of the patches by each training, higher means synthetic.
            Shapes (trainings, N).
    """

    patients: tuple[str, ...]
    patient: NDArray[np.int64]
    tumor: NDArray[np.int64]
    diameters_mm: NDArray[np.float64]
    real_scores: NDArray[np.float64]
    synthetic_scores: NDArray[np.float64]

    def pooled_auc(self, bin_mm: tuple[float, float] = EVERY_SIZE_MM) -> Estimate:
        """Area under the curve over all patches of tumours with a diameter of the bin, with patients as clusters.

        Each training has its area; the interval is that of their mean, each patient's part averaged over them.
        """
        area = self.area(bin_mm, self.patients)
        if area is not None:
            return area_interval(area)
        counts = self._is_of(bin_mm)
        value = np.mean([auc(made[counts], real[counts]) for real, made in self._trainings()])
        return Estimate(float(value), math.nan, math.nan, "fewer than two patients")

    def area(self, bin_mm: tuple[float, float], patients: Sequence[str]) -> AreaUnderCurve | None:
        """The same with each patient's part in its error, in the order of `patients`; None with fewer than two."""
        counts = self._is_of(bin_mm)
        code = np.array([patients.index(name) for name in self.patients])[self.patient[counts]]
        is_synthetic, codes = np.repeat([False, True], len(code)), np.tile(code, 2)
        areas = [
            area_under_curve(np.concatenate([real[counts], made[counts]]), is_synthetic, codes, len(patients))
            for real, made in self._trainings()
        ]
        known = [area for area in areas if area is not None]
        return mean_area(known) if known else None

    def within_patient_auc(self) -> Estimate:
        """Mean over the patients of the area under each one's curve."""
        own = [self.patient == index for index in np.unique(self.patient)]
        areas = [np.mean([auc(made[each], real[each]) for real, made in self._trainings()]) for each in own]
        return mean_interval(areas, range(len(areas)), SHARE)

    def paired_share(self) -> Estimate:
        """Share of pairs of one position in which the synthetic patch scores higher; ties count one half.

        Stricter than the area under the curve: nobody who sees a synthetic tumour has the real one beside it.
        """
        higher = 0.5 * (np.sign(self.synthetic_scores - self.real_scores) + 1.0)
        return patient_mean_interval(higher.mean(axis=0), self.patient, SHARE)

    def tumors_of(self, bin_mm: tuple[float, float]) -> int:
        """How many synthetic tumours have a diameter of the bin, in mm."""
        return len(np.unique(self.tumor[self._is_of(bin_mm)]))

    def patients_of(self, bin_mm: tuple[float, float]) -> int:
        """How many patients have a tumour with a diameter of the bin, in mm."""
        return len(np.unique(self.patient[self._is_of(bin_mm)]))

    def confidence(self) -> dict[int, float]:
        """Mean score of each synthetic tumour; the higher, the surer the network is that it is synthetic."""
        scores = self.synthetic_scores.mean(axis=0)
        return {int(index): float(scores[self.tumor == index].mean()) for index in np.unique(self.tumor)}

    def to_json(self) -> dict[str, list]:
        """Return plain values that `from_json` reads back."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: Mapping[str, list]) -> ProbeResult:
        """Read what `to_json` returned."""
        arrays = {name: np.asarray(values[name]) for name in cls.__dataclass_fields__ if name != "patients"}
        return cls(patients=tuple(values["patients"]), **arrays)

    def _trainings(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return zip(self.real_scores, self.synthetic_scores, strict=True)

    def _is_of(self, bin_mm: tuple[float, float]) -> NDArray[np.bool_]:
        return (self.diameters_mm >= bin_mm[0]) & (self.diameters_mm < bin_mm[1])


Probes = Mapping[str, Mapping[str, ProbeResult]]
"""What each classifier found, by its name and by method; `SANITY` has real patches on both sides."""

NO_PROBES: Probes = {name: {} for name in HIDES_INSIDE}


def run_probes(
    made: Mapping[str, Sequence[MadeTumor]], settings: EvaluationSettings, folder: Path, *, workers: int = 1
) -> Probes:
    """Train both classifiers on every method that is probed and made tumours of at least two patients.

    Args:
        made: Tumours in place by method, and shams.
        folder: Where results are kept; those of the same patches are read from there.
        workers: Processes that train, one classifier each.
    """
    results: dict[str, dict[str, ProbeResult]] = {name: {} for name in HIDES_INSIDE}
    names = [*product((*PROBED, SANITY, making.SHAM), HIDES_INSIDE), (making.REDRAWN, "two_sample_auc")]
    jobs = [_Job(method, classifier, made, settings, folder) for method, classifier in names]
    jobs = [job for job in jobs if settings.classifier.steps and len(job.patients) >= 2]
    with tqdm(total=len(jobs), desc="classifiers", unit="training", disable=not jobs) as bar:
        for some in (jobs[start : start + workers] for start in range(0, len(jobs), workers)):
            for job, found in zip(some, _find(some), strict=True):
                results[job.classifier][job.method] = found
                bar.update()
    return results


class _Job:
    """A classifier to be trained, several times, on the tumours of one method."""

    def __init__(
        self,
        method: str,
        classifier: str,
        made: Mapping[str, Sequence[MadeTumor]],
        settings: EvaluationSettings,
        folder: Path,
    ) -> None:
        self.classifier, self.method = classifier, method
        self.name = f"{'rim' if HIDES_INSIDE[classifier] else 'whole'} {method}"
        self.path = folder / f"{self.name.replace(' ', '_')}.json"
        self._tumors = made[making.GENERATED if method == SANITY else method]
        self.patients = tuple(sorted({tumor.scan.patient for tumor in self._tumors}))
        self._settings = settings

    def training(self) -> Training:
        """The patches, and what else the trainings need."""
        rng, settings = np.random.default_rng(self._settings.seed), self._settings.classifier
        only = {"only_rim": HIDES_INSIDE[self.classifier], "only_real": self.method == SANITY}
        return Training(self.name, collect_pairs(self._tumors, settings, rng, **only), settings, rng)

    def key(self, pairs: PatchPairs) -> str:
        """Digest of all that decides what is found."""
        digest = hashlib.sha256(repr((self._settings.classifier, self._settings.seed, self.name)).encode())
        digest.update(pairs.real.tobytes() + pairs.synthetic.tobytes())
        return digest.hexdigest()

    def found(self, pairs: PatchPairs, trainings: _Scores) -> ProbeResult:
        """The result of the trainings."""
        diameters_mm = np.array([equivalent_diameter_mm(tumor.label_mm3) for tumor in self._tumors])[pairs.tumors]
        scores = (np.array(side) for side in zip(*trainings, strict=True))
        return ProbeResult(self.patients, pairs.patients, pairs.tumors, diameters_mm, *scores)


_Scores = Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]


@dataclass(frozen=True, eq=False)
class Training:
    """What goes to another process: patches, and no scans."""

    name: str
    pairs: PatchPairs
    settings: ClassifierSettings
    rng: np.random.Generator

    def run(self) -> _Scores:
        """Scores of every training."""
        numbers = range(self.settings.seeds)
        return [
            score_held_out(self.pairs, self.settings, self.rng, heading=f"{self.name}, {number}") for number in numbers
        ]


def _find(jobs: Sequence[_Job]) -> list[ProbeResult]:
    """What some classifiers find, each in a process of its own; what was found with the same patches is read."""
    trainings = [job.training() for job in jobs]
    keys = [job.key(training.pairs) for job, training in zip(jobs, trainings, strict=True)]
    results = [_read(job.path, key) for job, key in zip(jobs, keys, strict=True)]
    missing = [number for number, result in enumerate(results) if result is None]
    for number, scores in zip(missing, run_side_by_side([trainings[each] for each in missing]), strict=True):
        job = jobs[number]
        results[number] = found = job.found(trainings[number].pairs, scores)
        write_json(job.path, {"key": keys[number], "result": found.to_json()}, overwrite=True)
    return [result for result in results if result is not None]


def run_side_by_side(trainings: Sequence[Training]) -> Iterator[_Scores]:
    """Run trainings, several of them in a process each."""
    if len(trainings) < 2:
        yield from map(Training.run, trainings)
        return
    with ProcessPoolExecutor(len(trainings), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(Training.run, trainings)


def _read(path: Path, key: str) -> ProbeResult | None:
    """A result from its file if it was made from the same patches."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return ProbeResult.from_json(stored["result"]) if stored["key"] == key else None


def collect_pairs(
    tumors: Sequence[MadeTumor],
    settings: ClassifierSettings,
    rng: np.random.Generator,
    *,
    only_rim: bool = False,
    only_real: bool = False,
) -> PatchPairs:
    """Cut patches of the same positions from the real and from the synthetic scans, of every patient in turn.

    Args:
        tumors: Tumours of one method; each position takes one of those that were made at its place.
        only_rim: Hide the inside of the label and centre the patches on its surface.
        only_real: Cut the synthetic patches, of other positions, from the real scans too: nobody can tell them.
    """
    if only_real:
        first, second = (collect_pairs(tumors, settings, rng, only_rim=only_rim) for _ in range(2))
        return replace(first, synthetic=second.real)
    places: dict[str, dict[tuple[str, str], dict[int, MadeTumor]]] = {}
    for index, tumor in enumerate(tumors):
        of_patient = places.setdefault(tumor.scan.patient, {})
        of_patient.setdefault((tumor.scan.identifier, tumor.place), {})[index] = tumor
    pairs = []
    for patient, name in enumerate(sorted(places)):
        count = max(_FEWEST_POSITIONS, settings.positions_per_patient // len(places[name]))
        for own in places[name].values():
            found = _pairs_at(own, count, settings.patch_side, rng, only_rim=only_rim)
            pairs += [(real, made, patient, index) for real, made, index in found]
    return PatchPairs(*(np.array(each) for each in zip(*pairs, strict=True)))


def _pairs_at(
    own: Mapping[int, MadeTumor], count: int, side: int, rng: np.random.Generator, *, only_rim: bool
) -> Iterator[tuple[FloatArray, FloatArray, int]]:
    """Cut patches at one place, each with that of a random one of the tumours there, by their indices."""
    place = next(iter(own.values()))  # label and box are those of all
    near = widened(place.box, side, place.scan.image_hu.shape)
    before, *after = (
        _channels(place, near, image_hu, side, only_rim=only_rim)
        for image_hu in (place.host_hu, *(tumor.image_hu for tumor in own.values()))
    )
    at_surface = np.abs(place.distance_mm) <= min(place.scan.spacing_mm)
    centres = np.argwhere(at_surface if only_rim else place.label) + ends_of(inside(place.box, near))[0]
    for _ in range(count):
        low = centres[int(rng.integers(len(centres)))] + side - side // 2
        patch = (slice(None), *(slice(start, start + side) for start in low))
        drawn = int(rng.integers(len(own)))
        yield before[patch].copy(), after[drawn][patch].copy(), list(own)[drawn]


def _channels(place: MadeTumor, near: Box, image_hu: FloatArray, margin: int, *, only_rim: bool) -> FloatArray:
    """Channels of a box of a scan (see `PatchPairs`) with a margin of air. Shape (3, D + 2 margin, ...)."""
    box = inside(place.box, near)
    whole_hu = place.scan.image_hu[near].copy()
    whole_hu[box] = image_hu
    distance = np.ones(whole_hu.shape, dtype=np.float32)
    distance[box] = np.clip(place.distance_mm / DISTANCE_LIMIT_MM, -1.0, 1.0)
    channels = [_scaled(whole_hu, place.scan.window_hu), _scaled(whole_hu, SOFT_TISSUE_HU), distance]
    if only_rim:
        channels[:2] = [np.where(distance < 0.0, 0.0, channel) for channel in channels[:2]]
    padded = [np.pad(each, margin, constant_values=air) for each, air in zip(channels, (-1.0, -1.0, 1.0), strict=True)]
    return np.stack(padded).astype(np.float32)


def _scaled(image_hu: FloatArray, window_hu: tuple[float, float]) -> FloatArray:
    middle, half = 0.5 * (window_hu[0] + window_hu[1]), 0.5 * (window_hu[1] - window_hu[0])
    return (np.clip(image_hu, *window_hu) - middle) / half
