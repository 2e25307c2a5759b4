"""Two-sample classifier and rim probe: patches of real and synthetic tumours, and what a network makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.evaluation.realism.measures.classifier import DISTANCE_LIMIT_MM, PatchPairs, score_held_out
from nnunet_difftumor.evaluation.realism.settings import ClassifierSettings
from nnunet_difftumor.evaluation.realism.tumors.making import MadeTumor
from nnunet_difftumor.evaluation.realism.tumors.places import Place
from nnunet_difftumor.evaluation.statistics.distributions import NOT_MEASURED, Interval, area_under_curve, bootstrap

SOFT_TISSUE_HU = (-40.0, 120.0)
"""Second, narrower window in which the network sees the image: tumours differ by tens of HU, not hundreds."""


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a classifier found.

    Attributes:
        patients: Patients, in the order of the indices below.
        diameters_mm: Diameter of each patient's tumour in mm. Shape (patients,).
        patient: Index of the patient of each pair. Shape (N,).
        tumor: Index of the synthetic tumour of each pair. Shape (N,).
        real_scores: Held-out scores of the real patches, higher means synthetic. Shape (N,).
        synthetic_scores: Held-out scores of the synthetic patches. Shape (N,).
    """

    patients: tuple[str, ...]
    diameters_mm: NDArray[np.float64]
    patient: NDArray[np.int64]
    tumor: NDArray[np.int64]
    real_scores: NDArray[np.float64]
    synthetic_scores: NDArray[np.float64]

    def pooled_auc(self, draws: int, rng: np.random.Generator, bin_mm: tuple[float, float] = (0.0, np.inf)) -> Interval:
        """Area under the curve over all patches, patients resampled.

        Args:
            bin_mm: Smallest and largest diameter of the tumours that count, in mm.

        Returns:
            The area; 0.5 means that real and synthetic cannot be told apart.
        """
        return bootstrap(self._by_patient(bin_mm), _auc, draws, rng)

    def within_patient_auc(self, draws: int, rng: np.random.Generator) -> Interval:
        """Mean over the patients of the area under each one's curve."""
        by_patient = {name: np.array([_auc(values)]) for name, values in self._by_patient((0.0, np.inf)).items()}
        return bootstrap(by_patient, lambda values: float(values.mean()), draws, rng)

    def paired_share(self, draws: int, rng: np.random.Generator) -> Interval:
        """Share of pairs of one position in which the synthetic patch scores higher; ties count one half.

        Stricter than the area under the curve: nobody who sees a synthetic tumour has the real one beside it.
        """

        def share(pairs: NDArray[np.floating]) -> float:
            return float(np.mean(0.5 * (np.sign(pairs[:, 1] - pairs[:, 0]) + 1.0)))

        return bootstrap(self._by_patient((0.0, np.inf)), share, draws, rng)

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

    def _by_patient(self, bin_mm: tuple[float, float]) -> dict[str, NDArray[np.float64]]:
        """Pairs of (real, synthetic) scores of each patient. Shapes (N_patient, 2)."""
        scores = np.stack([self.real_scores, self.synthetic_scores], axis=1)
        return {
            name: scores[self.patient == index]
            for index, name in enumerate(self.patients)
            if bin_mm[0] <= self.diameters_mm[index] < bin_mm[1]
        }


def probe(
    tumors: Sequence[MadeTumor],
    window_hu: tuple[float, float],
    settings: ClassifierSettings,
    rng: np.random.Generator,
    *,
    only_rim: bool = False,
    heading: str = "",
) -> ProbeResult | None:
    """Train the classifier on in-place tumours of one method against the real ones.

    Args:
        tumors: Tumours in place; each position takes one of its scan's draws.
        window_hu: Window of the values in HU, brought to [-1, 1].
        only_rim: Hide the inside of the label and centre the patches on its surface.
        heading: What the progress bar says.

    Returns:
        Held-out scores, or None with fewer than two patients.
    """
    pairs = collect_pairs(tumors, window_hu, settings, rng, only_rim=only_rim)
    return _score(pairs, tumors, settings, rng, heading)


def probe_nothing(
    tumors: Sequence[MadeTumor],
    window_hu: tuple[float, float],
    settings: ClassifierSettings,
    rng: np.random.Generator,
    *,
    only_rim: bool = False,
    heading: str = "",
) -> ProbeResult | None:
    """The same with real patches on both sides: half of the positions are called synthetic at random.

    Args:
        tumors: Tumours in place, of which only the real scans are used.
        window_hu: Window of the values in HU.
        only_rim: As in `probe`.
        heading: What the progress bar says.

    Returns:
        Held-out scores, whose area under the curve should be 0.5, or None with fewer than two patients.
    """
    first = collect_pairs(tumors, window_hu, settings, rng, only_rim=only_rim)
    second = collect_pairs(tumors, window_hu, settings, rng, only_rim=only_rim)
    pairs = PatchPairs(first.real, second.real, first.patients, first.tumors)
    return _score(pairs, tumors, settings, rng, heading)


def collect_pairs(
    tumors: Sequence[MadeTumor],
    window_hu: tuple[float, float],
    settings: ClassifierSettings,
    rng: np.random.Generator,
    *,
    only_rim: bool = False,
) -> PatchPairs:
    """Cut patches of the same positions from the real and from the synthetic scans.

    Args:
        window_hu: Window of the values in HU, brought to [-1, 1].
        settings: Side and number of the patches.
        only_rim: Hide the inside of the label and centre the patches on its surface.

    Returns:
        The pairs, of every patient in turn.
    """
    names = sorted({tumor.place.scan.identifier for tumor in tumors})
    real, synthetic, patients, chosen = [], [], [], []
    for patient, name in enumerate(names):
        own = [index for index, tumor in enumerate(tumors) if tumor.place.scan.identifier == name]
        place = tumors[own[0]].place
        centres = _centres(place, only_rim=only_rim)
        for _ in range(settings.positions_per_tumor):
            centre = centres[int(rng.integers(len(centres)))]
            index = own[int(rng.integers(len(own)))]
            for patches, image_hu in ((real, place.host_hu), (synthetic, tumors[index].image_hu)):
                patches.append(_cut(place, image_hu, centre, window_hu, settings.patch_side, only_rim=only_rim))
            patients.append(patient)
            chosen.append(index)
    return PatchPairs(np.stack(real), np.stack(synthetic), np.array(patients), np.array(chosen))


def _score(
    pairs: PatchPairs,
    tumors: Sequence[MadeTumor],
    settings: ClassifierSettings,
    rng: np.random.Generator,
    heading: str,
) -> ProbeResult | None:
    names = tuple(sorted({tumor.place.scan.identifier for tumor in tumors}))
    if len(names) < 2:
        return None
    radii = {tumor.place.scan.identifier: tumor.place.spec.radius_mm for tumor in tumors}
    real_scores, synthetic_scores = score_held_out(pairs, settings, rng, heading=heading)
    diameters = np.array([2.0 * radii[name] for name in names])
    return ProbeResult(names, diameters, pairs.patients, pairs.tumors, real_scores, synthetic_scores)


def _centres(place: Place, *, only_rim: bool) -> NDArray[np.int64]:
    """Voxels of the box at which patches are centred. Shape (N, 3)."""
    if only_rim:
        step_mm = min(place.scan.spacing_mm)
        return np.argwhere(np.abs(place.distance_mm) <= step_mm)
    return np.argwhere(place.label)


def _cut(
    place: Place,
    image_hu: NDArray[np.floating],
    centre: NDArray[np.int64],
    window_hu: tuple[float, float],
    side: int,
    *,
    only_rim: bool,
) -> NDArray[np.float32]:
    """Channels of a patch around a voxel of the box (see `PatchPairs`); outside the scan is air. (3, S, S, S)."""
    corner = np.array([part.start for part in place.box])
    shape = np.asarray(place.scan.image_hu.shape)
    low = centre + corner - side // 2
    first, last = np.maximum(low, 0), np.minimum(low + side, shape)
    whole = place.scan.image_hu[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].copy()
    distance_mm = np.full(whole.shape, DISTANCE_LIMIT_MM, dtype=np.float32)
    begin, end = np.maximum(first, corner), np.minimum(last, corner + np.asarray(place.label.shape))
    source = tuple(slice(a, b) for a, b in zip(begin - corner, end - corner, strict=True))
    within = tuple(slice(a, b) for a, b in zip(begin - first, end - first, strict=True))
    whole[within] = image_hu[source]
    distance_mm[within] = np.clip(place.distance_mm[source], -DISTANCE_LIMIT_MM, DISTANCE_LIMIT_MM)
    channels = np.stack([_scaled(whole, window_hu), _scaled(whole, SOFT_TISSUE_HU), distance_mm / DISTANCE_LIMIT_MM])
    if only_rim:
        channels[:2, distance_mm < 0.0] = 0.0
    patch = np.array([-1.0, -1.0, 1.0], dtype=np.float32)[:, None, None, None] * np.ones((1, side, side, side))
    target = tuple(slice(a, b) for a, b in zip(first - low, last - low, strict=True))
    patch[(slice(None), *target)] = channels
    return patch.astype(np.float32)


def _scaled(image_hu: NDArray[np.floating], window_hu: tuple[float, float]) -> NDArray[np.floating]:
    middle, half = 0.5 * (window_hu[0] + window_hu[1]), 0.5 * (window_hu[1] - window_hu[0])
    return (np.clip(image_hu, *window_hu) - middle) / half


def _auc(pairs: NDArray[np.floating]) -> float:
    scores = pairs.T.ravel()  # real, then synthetic
    return area_under_curve(scores, np.arange(len(scores)) >= len(pairs))


def auc_or_none(result: ProbeResult | None, draws: int, rng: np.random.Generator) -> Interval:
    """Pooled area under the curve of a result, NaN without one."""
    return NOT_MEASURED if result is None else result.pooled_auc(draws, rng)
