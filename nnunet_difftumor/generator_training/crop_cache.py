"""Chunked copies of CTs from which random boxes are read without decoding whole volumes.

Reading a box decodes only the chunks that it touches, so memory does not depend on the number or the size
of the cases. `cache_building` makes the cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion.generator.provenance import CaseFingerprint, ProvenanceError
from diffusion.generator.records import read_record
from nnunet_difftumor.ct.boxes import as_box
from nnunet_difftumor.ct.components import TumorComponent
from nnunet_difftumor.ct.resample import AIR_HU

IMAGE_FILE = "image.b2nd"
LABELS_FILE = "labels.b2nd"
BODY_FILE = "body.npy"
CASE_FILE = "case.json"


@dataclass(frozen=True)
class CachedCase:
    """One case of the cache; holds no voxels.

    Attributes:
        folder: Where its arrays lie.
        shape, spacing_mm: Of the volume, (D, H, W); spacing in mm.
        tumor_values: Label values that mean tumour.
        tumors: Connected tumours of at least 8 voxels.
    """

    identifier: str
    folder: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    fingerprint: CaseFingerprint
    tumor_values: tuple[int, ...]
    tumors: tuple[TumorComponent, ...]

    def read_box(self, start: ArrayLike, stop: ArrayLike) -> NDArray[np.int16]:
        """Read a box of the CT in HU; what lies outside the volume is air.

        The first voxel (D, H, W) may be negative, and one past the last, `stop`, beyond the volume.
        """
        return self._read(IMAGE_FILE, start, stop, int(AIR_HU))

    def read_label_box(self, start: ArrayLike, stop: ArrayLike) -> NDArray[np.int16]:
        """Read such a box of the labels; 0 outside the volume, and everywhere in a case without labels."""
        if not (self.folder / LABELS_FILE).exists():
            return np.zeros(np.subtract(stop, start), dtype=np.int16)
        return self._read(LABELS_FILE, start, stop, 0)

    def draw_body_voxel(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw a voxel (D, H, W) of the body (above -300 HU); any voxel if the volume holds only air."""
        samples = np.load(self.folder / BODY_FILE)
        if len(samples) == 0:
            return rng.integers(0, self.shape)
        return samples[int(rng.integers(len(samples)))].astype(np.int64)

    def _read(self, name: str, start: ArrayLike, stop: ArrayLike, outside: int) -> NDArray[np.int16]:
        options: dict[str, Any] = {"mmap_mode": "r", "dparams": {"nthreads": 1}}
        return copy_box(blosc2.open(str(self.folder / name), mode="r", **options), start, stop, outside=outside)


def copy_box(
    stored: Any, start: ArrayLike, stop: ArrayLike, *, outside: int, first: ArrayLike = (0, 0, 0)
) -> NDArray[np.int16]:
    """Copy a box out of an array (D, H, W) whose first voxel is `first`; beyond the array is `outside`."""
    start, stop, first = map(np.asarray, (start, stop, first))
    box = np.full(stop - start, outside, dtype=np.int16)
    low, high = np.maximum(start, first), np.minimum(stop, first + stored.shape)
    if (low < high).all():
        box[as_box(low - start, high - start)] = stored[as_box(low - first, high - first)]
    return box


def open_cached_case(entry: Path) -> CachedCase:
    """Open one case of a cache, by its folder there; no voxel is read."""
    stored = json.loads((entry / CASE_FILE).read_text(encoding="utf-8"))
    del stored["signature"]
    return read_record(CachedCase, {**stored, "folder": entry}, str(entry / CASE_FILE), ProvenanceError)
