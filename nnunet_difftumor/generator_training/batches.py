"""Training batches for both generator stages: item i is a whole batch, a function of (seed, i) alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from autoencoder.engine.settings import TrainingPreset
from diffusion.texture import solid_part
from nnunet_difftumor.ct.components import TumorComponent
from nnunet_difftumor.errors import DatasetError, MissingLabelError
from nnunet_difftumor.generator_training import EARLY_RADIUS_MM, SPACING_RANGE_MM, augment
from nnunet_difftumor.generator_training.crop_cache import CachedCase
from nnunet_difftumor.generator_training.crops import (
    Crop,
    centred_tumor_crop,
    draw_crop,
    draw_tumor_crop,
    sample_tumor_crop,
)
from nnunet_difftumor.generator_training.pasted_lesions import draw_pasted_lesion

SIZE_BIN_EDGES_MM = (5.0, 10.0, 25.0)
"""Radii that divide tumours into bins of size: diameters of 10, 20 and 50 mm."""

SHARES: Mapping[str, float] = {
    "blobs": 0.3,  # crops for the autoencoder: faint lesions are added
    "pasted": 0.5,  # crops of tumours: a real one made small and put into tumour-free soft tissue of another place
    "tumor_shift": 0.5,  # of the others: the tumour's contrast is shifted
    "jitter": 0.3,  # of the others: the outline is drawn a little differently
    "border": 0.1,  # crops of tumours: the crop ends at the border of a scan
    "soft_tissue_shift": 0.5,  # crops of tumours: soft tissue as a whole is shifted by -30 to +100 HU
    "narrow_window": 0.25,  # all crops: the HU window is narrower than the autoencoder's
}
"""Shares of the crops that are varied so: small pasted tumours, so that small masks are no rarity; shifts of tumour and
soft tissue, so that contrast is learned and not the HU of one organ; and more."""

_HELDOUT_PER_CASE = 2
_HELDOUT_SPACING_MM = 2.0
_SMALLEST_BATCH = 2  # on a CPU the convolutions of a single small crop cost more than those of two

FloatArray = NDArray[np.float32]
Sample = tuple[FloatArray, NDArray[np.bool_]]
"""Image in HU and tumour mask of a crop."""
Batch = dict[str, Tensor]


class _Crops(Dataset[Batch], ABC):
    """Batches that depend on seed and index alone; each has one side of the preset's, and at least two crops."""

    def __init__(self, preset: TrainingPreset, seed: int) -> None:
        self._preset = preset
        self._seed = seed

    def __getitem__(self, index: int) -> Batch:
        """Return batch `index`, the same whenever it is asked for."""
        rng = np.random.default_rng([self._seed, index])
        side = int(rng.choice(self._preset.crop_sides, p=self._preset.crop_probabilities))
        return self._draw_batch(side, max(_SMALLEST_BATCH, self._preset.voxels_per_batch // side**3), rng)

    @abstractmethod
    def _draw_batch(self, side: int, count: int, rng: np.random.Generator) -> Batch: ...


class AutoencoderCrops(_Crops):
    """Batches {"image_hu": (B, 1, S, S, S)} for the autoencoder.

    Spacing, orientation, faint blobs and narrower HU windows are drawn for every crop (see `SHARES`).

    Raises:
        DatasetError: If there is no case.
    """

    def __init__(self, cases: Sequence[CachedCase], preset: TrainingPreset, seed: int) -> None:
        if not cases:
            raise DatasetError("No case is left to train the autoencoder on; hold out fewer, or add folders (-d).")
        super().__init__(preset, seed)
        self._cases = cases

    def _draw_batch(self, side: int, count: int, rng: np.random.Generator) -> Batch:
        return {"image_hu": _stack([self._draw_image(side, rng) for _ in range(count)])}

    def _draw_image(self, side: int, rng: np.random.Generator) -> FloatArray:
        case = self._cases[int(rng.integers(len(self._cases)))]
        (image_hu,) = augment.turn([draw_crop(case, side, SPACING_RANGE_MM, rng).image_hu()], rng)
        if rng.random() < SHARES["blobs"]:
            image_hu = augment.add_faint_blobs(image_hu, rng)
        return augment.narrow_window(image_hu, rng) if rng.random() < SHARES["narrow_window"] else image_hu


class TumorCrops(_Crops):
    """Batches {"image_hu": (B, 1, S, S, S), "tumor_mask": (B, 1, S, S, S) of 0 and 1} for the diffusion model.

    Every crop holds one whole tumour and its surroundings; all tumour voxels in the crop belong to the
    mask, which is never empty, but for fat or air that a label reaches over (see `solid_part`). A bin of size is
    drawn first, then a case with such a tumour, then the tumour.

    Args:
        cases: Cases to train on; those without tumour serve as hosts of pasted tumours only.
        spacing_range_mm: Finest and coarsest spacing in mm, drawn log-uniformly.
        early_only: Use only tumours with a radius of at most 10 mm.

    Raises:
        MissingLabelError: If no tumour is left.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        preset: TrainingPreset,
        seed: int,
        *,
        spacing_range_mm: tuple[float, float] = SPACING_RANGE_MM,
        early_only: bool = False,
    ) -> None:
        super().__init__(preset, seed)
        self._bins = divide_by_size(usable_tumors(cases, early_only=early_only))
        self._hosts = cases
        self._spacing_range_mm = spacing_range_mm

    def _draw_batch(self, side: int, count: int, rng: np.random.Generator) -> Batch:
        return _as_batch([self._draw_sample(side, rng) for _ in range(count)])

    def _draw_sample(self, side: int, rng: np.random.Generator) -> Sample:
        image_hu, mask = self._draw_tumor(side, rng)
        image_hu, mask = augment.turn((image_hu, mask), rng)
        if rng.random() < SHARES["border"]:
            image_hu = augment.cut_at_border(image_hu, mask, rng)
        if rng.random() < SHARES["narrow_window"]:
            image_hu = augment.narrow_window(image_hu, rng)
        # after the window, which follows an organ's HU in nnU-Net
        if rng.random() < SHARES["soft_tissue_shift"]:
            image_hu = augment.shift_soft_tissue(image_hu, rng)
        return image_hu, mask

    def _draw_tumor(self, side: int, rng: np.random.Generator) -> Sample:
        cases = self._bins[int(rng.integers(len(self._bins)))]
        case, tumors = cases[int(rng.integers(len(cases)))]
        tumor = tumors[int(rng.integers(len(tumors)))]
        if rng.random() < SHARES["pasted"]:
            host = self._hosts[int(rng.integers(len(self._hosts)))]
            pasted = draw_pasted_lesion(case, tumor, host, side, self._spacing_range_mm, rng)
            if pasted is not None:
                return pasted
        crop, mask = sample_tumor_crop(draw_tumor_crop(case, tumor, side, self._spacing_range_mm, rng), tumor)
        image_hu, share, label = crop.image_hu(), crop.tumor_share(), mask
        mask = solid_part(image_hu, label)
        share = np.where(label & ~mask, np.float32(0.0), share)
        if rng.random() < SHARES["tumor_shift"]:
            image_hu = augment.shift_tumor(image_hu, share, rng)
        if rng.random() < SHARES["jitter"]:
            mask = augment.jitter_mask(share, mask, rng)
        return image_hu, mask


CaseTumors = tuple[CachedCase, tuple[TumorComponent, ...]]


def divide_by_size(usable: Sequence[CaseTumors]) -> tuple[tuple[CaseTumors, ...], ...]:
    """Divide tumours into bins of size (`SIZE_BIN_EDGES_MM`), with their cases; small ones first, no empty bin."""
    bins = []
    for low_mm, high_mm in pairwise((0.0, *SIZE_BIN_EDGES_MM, float("inf"))):
        own = [(case, tuple(each for each in tumors if low_mm <= each.radius_mm < high_mm)) for case, tumors in usable]
        bins.append(tuple((case, tumors) for case, tumors in own if tumors))
    return tuple(cases for cases in bins if cases)


def usable_tumors(cases: Sequence[CachedCase], *, early_only: bool = False) -> tuple[CaseTumors, ...]:
    """List the cases that have a tumour to train on, with these tumours; early ones have a radius of at most 10 mm.

    Raises:
        MissingLabelError: If there is none.
    """
    limit_mm = EARLY_RADIUS_MM if early_only else float("inf")
    kept = [(case, tuple(t for t in case.tumors if t.radius_mm <= limit_mm)) for case in cases]
    usable = tuple((case, tumors) for case, tumors in kept if tumors)
    if usable:
        return usable
    if early_only and any(case.tumors for case in cases):
        smallest_mm = min(tumor.radius_mm for case in cases for tumor in case.tumors)
        raise MissingLabelError(
            f"No tumour has a radius of at most {EARLY_RADIUS_MM:g} mm (the smallest has {smallest_mm:.1f} mm), so "
            "there is no early tumour to learn from. Leave out --early-only, or add cases with small tumours."
        )
    raise MissingLabelError(
        f"None of the {len(cases)} training cases has a tumour of 8 voxels or more. "
        "Check --tumor-label, and which cases the split leaves for training."
    )


def heldout_image_crops(cases: Sequence[CachedCase], side: int) -> tuple[Batch, ...]:
    """Cut fixed crops of 2 mm, two a case, to measure the autoencoder on; not augmented. Side in voxels.

    The first crop of a case lies in its largest tumour, if it has one, the other in the body. For each case
    {"image_hu": (2, 1, side, side, side), "tumor_mask": same shape}.
    """
    batches = []
    for number, case in enumerate(cases):
        rng = np.random.default_rng([0, number])
        centres = np.array([case.draw_body_voxel(rng) for _ in range(_HELDOUT_PER_CASE)]) * np.array(case.spacing_mm)
        if case.tumors:
            largest = max(case.tumors, key=lambda tumor: tumor.volume_mm3)
            centres[0] = largest.centre_mm(case.spacing_mm)
        crops = [Crop(case, side, _HELDOUT_SPACING_MM, centre_mm) for centre_mm in centres]
        batches.append(_as_batch([(crop.image_hu(), crop.tumor_mask()) for crop in crops]))
    return tuple(batches)


def heldout_tumor_crops(
    cases: Sequence[CachedCase], side: int, *, early_only: bool = False, finest_mm: float = SPACING_RANGE_MM[0]
) -> tuple[Batch, ...]:
    """Cut crops around the two largest tumours of each case: centred, not augmented, nothing drawn. Side in voxels.

    Early tumours have a radius of at most 10 mm. Those that do not fit at the finest spacing in mm get a coarser one.
    Masks are without fat, as in training.
    For each case with a tumour {"image_hu": (B, 1, side, side, side), "tumor_mask": same shape}.
    """
    batches = []
    for case, tumors in usable_tumors(cases, early_only=early_only):
        chosen = sorted(tumors, key=lambda tumor: -tumor.volume_mm3)[:_HELDOUT_PER_CASE]
        crops = [sample_tumor_crop(centred_tumor_crop(case, tumor, side, finest_mm), tumor) for tumor in chosen]
        pairs = [(crop.image_hu(), mask) for crop, mask in crops]
        batches.append(_as_batch([(image_hu, solid_part(image_hu, mask)) for image_hu, mask in pairs]))
    return tuple(batches)


def _as_batch(samples: Sequence[Sample]) -> Batch:
    return {
        "image_hu": _stack([image_hu for image_hu, _ in samples]),
        "tumor_mask": _stack([mask.astype(np.float32) for _, mask in samples]),
    }


def _stack(crops: Sequence[FloatArray]) -> Tensor:
    return torch.from_numpy(np.stack(crops)[:, None])
