"""Two-sample classifier and rim probe: patches of real and synthetic tumours, and what a network makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.evaluation.realism.measures.classifier import DISTANCE_LIMIT_MM, PatchPairs, score_held_out
from nnunet_difftumor.evaluation.realism.settings import ClassifierSettings, EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.making import MadeTumor
from nnunet_difftumor.evaluation.realism.tumors.scans import FloatArray
from nnunet_difftumor.evaluation.statistics.intervals import Estimate, mean_interval
from nnunet_difftumor.evaluation.statistics.roc import auc, clustered_auc
from nnunet_difftumor.evaluation.statistics.scales import SHARE
from nnunet_difftumor.support.files.atomic_files import write_json

HIDES_INSIDE = {"two_sample_auc": False, "rim_probe_auc": True}
"""The classifiers, and whether the inside of a tumour is hidden from them."""

PROBED = (making.GENERATED, making.NO_DIFFUSION, making.TEXTURED_FILL, making.COPY_PASTE)
SANITY = "real against real"

SOFT_TISSUE_HU = (-40.0, 120.0)
"""Second, narrower window in which the network sees the image: tumours differ by tens of HU, not hundreds."""


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a classifier found.

    Attributes:
        patients: Patients, in the order of the indices below.
        diameters_mm: Diameter of each patient's tumour in mm. Shape (patients,).
        patient, tumor: Index of each pair's patient and of its synthetic tumour. Shapes (N,).
        real_scores, synthetic_scores: Held-out scores of the patches, higher means synthetic. Shapes (N,).
    """

    patients: tuple[str, ...]
    diameters_mm: NDArray[np.float64]
    patient: NDArray[np.int64]
    tumor: NDArray[np.int64]
    real_scores: NDArray[np.float64]
    synthetic_scores: NDArray[np.float64]

    def pooled_auc(self, bin_mm: tuple[float, float] = (0.0, np.inf)) -> Estimate:
        """Area under the curve over all patches of tumours with a diameter of the bin, with patients as clusters."""
        counts = self._is_of(bin_mm)[self.patient]
        scores = np.concatenate([self.real_scores[counts], self.synthetic_scores[counts]])
        is_synthetic = np.repeat([False, True], int(counts.sum()))
        return clustered_auc(scores, is_synthetic, np.tile(self.patient[counts], 2))

    def within_patient_auc(self) -> Estimate:
        """Mean over the patients of the area under each one's curve."""
        own = [self.patient == index for index in np.unique(self.patient)]
        areas = [auc(self.synthetic_scores[each], self.real_scores[each]) for each in own]
        return mean_interval(areas, range(len(areas)), SHARE)

    def paired_share(self) -> Estimate:
        """Share of pairs of one position in which the synthetic patch scores higher; ties count one half.

        Stricter than the area under the curve: nobody who sees a synthetic tumour has the real one beside it.
        """
        higher = 0.5 * (np.sign(self.synthetic_scores - self.real_scores) + 1.0)
        return mean_interval(higher, self.patient, SHARE)

    def has_tumor_of(self, bin_mm: tuple[float, float]) -> bool:
        """True if a tumour has a diameter of the bin, in mm."""
        return bool(self._is_of(bin_mm).any())

    def confidence(self) -> dict[int, float]:
        """Mean score of each synthetic tumour; the higher, the surer the network is that it is synthetic."""
        return {int(index): float(self.synthetic_scores[self.tumor == index].mean()) for index in np.unique(self.tumor)}

    def to_json(self) -> dict[str, list]:
        """Return plain values that `from_json` reads back."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: Mapping[str, list]) -> ProbeResult:
        """Read what `to_json` returned."""
        arrays = {name: np.asarray(values[name]) for name in cls.__dataclass_fields__ if name != "patients"}
        return cls(patients=tuple(values["patients"]), **arrays)

    def _is_of(self, bin_mm: tuple[float, float]) -> NDArray[np.bool_]:
        return (self.diameters_mm >= bin_mm[0]) & (self.diameters_mm < bin_mm[1])


Probes = Mapping[str, Mapping[str, ProbeResult]]
"""What each classifier found, by its name and by method; `SANITY` has real patches on both sides."""

NO_PROBES: Probes = {name: {} for name in HIDES_INSIDE}


def run_probes(in_place: Mapping[str, Sequence[MadeTumor]], settings: EvaluationSettings, folder: Path) -> Probes:
    """Train both classifiers on every method that is probed and made tumours of at least two patients.

    Args:
        in_place: Tumours in place by method.
        folder: Where results are kept; those of the same patches are read from there.
    """
    results: dict[str, dict[str, ProbeResult]] = {name: {} for name in HIDES_INSIDE}
    jobs = list(product(HIDES_INSIDE, (*PROBED, SANITY))) if settings.classifier.steps else []
    for classifier, method in tqdm(jobs, desc="classifiers", unit="training", disable=not jobs):
        is_sanity, only_rim = method == SANITY, HIDES_INSIDE[classifier]
        tumors = in_place[making.GENERATED if is_sanity else method]
        if len({tumor.scan.identifier for tumor in tumors}) < 2:
            continue
        name, rng = f"{'rim' if only_rim else 'whole'} {method}", np.random.default_rng(settings.seed)
        pairs = collect_pairs(tumors, settings.classifier, rng, only_rim=only_rim, only_real=is_sanity)
        digest = hashlib.sha256(repr((settings.classifier, settings.seed, name)).encode())
        digest.update(pairs.real.tobytes() + pairs.synthetic.tobytes())
        key, path = digest.hexdigest(), folder / f"{name.replace(' ', '_')}.json"
        found = _read(path, key)
        if found is None:
            scores = score_held_out(pairs, settings.classifier, rng, heading=name)
            diameters_mm = {tumor.scan.identifier: equivalent_diameter_mm(tumor.label_mm3) for tumor in tumors}
            patients, diameters = zip(*sorted(diameters_mm.items()), strict=True)
            found = ProbeResult(patients, np.array(diameters), pairs.patients, pairs.tumors, *scores)
            write_json(path, {"key": key, "result": found.to_json()}, overwrite=True)
        results[classifier][method] = found
    return results


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
        tumors: Tumours in place of one method; each position takes one of its scan's.
        only_rim: Hide the inside of the label and centre the patches on its surface.
        only_real: Cut the synthetic patches, of other positions, from the real scans too: nobody can tell them.
    """
    if only_real:
        first, second = (collect_pairs(tumors, settings, rng, only_rim=only_rim) for _ in range(2))
        return replace(first, synthetic=second.real)
    names, side = sorted({tumor.scan.identifier for tumor in tumors}), settings.patch_side
    pairs = []
    for patient, name in enumerate(names):
        own = {index: tumor for index, tumor in enumerate(tumors) if tumor.scan.identifier == name}
        place = next(iter(own.values()))  # label and box are those of all
        before, *after = (
            _channels(place, image_hu, side, only_rim=only_rim)
            for image_hu in (place.host_hu, *(tumor.image_hu for tumor in own.values()))
        )
        at_surface = np.abs(place.distance_mm) <= min(place.scan.spacing_mm)
        centres = np.argwhere(at_surface if only_rim else place.label) + [part.start for part in place.box]
        for _ in range(settings.positions_per_tumor):
            low = centres[int(rng.integers(len(centres)))] + side - side // 2
            patch = (slice(None), *(slice(start, start + side) for start in low))
            drawn = int(rng.integers(len(own)))
            pairs.append((before[patch], after[drawn][patch], patient, list(own)[drawn]))
    return PatchPairs(*(np.array(each) for each in zip(*pairs, strict=True)))


def _channels(place: MadeTumor, image_hu: FloatArray, margin: int, *, only_rim: bool) -> FloatArray:
    """Channels of a whole scan (see `PatchPairs`) with a margin of air. Shape (3, D + 2 margin, ...)."""
    whole_hu = place.scan.image_hu.copy()
    whole_hu[place.box] = image_hu
    distance = np.ones(whole_hu.shape, dtype=np.float32)
    distance[place.box] = np.clip(place.distance_mm / DISTANCE_LIMIT_MM, -1.0, 1.0)
    channels = [_scaled(whole_hu, place.scan.window_hu), _scaled(whole_hu, SOFT_TISSUE_HU), distance]
    if only_rim:
        channels[:2] = [np.where(distance < 0.0, 0.0, channel) for channel in channels[:2]]
    padded = [np.pad(each, margin, constant_values=air) for each, air in zip(channels, (-1.0, -1.0, 1.0), strict=True)]
    return np.stack(padded).astype(np.float32)


def _scaled(image_hu: FloatArray, window_hu: tuple[float, float]) -> FloatArray:
    middle, half = 0.5 * (window_hu[0] + window_hu[1]), 0.5 * (window_hu[1] - window_hu[0])
    return (np.clip(image_hu, *window_hu) - middle) / half
