"""Chunked copies of CTs, decoded once, from which random boxes are read without decoding whole volumes.

Reading a box decodes only the chunks that it touches, so memory does not depend on the number or the size
of the cases.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from diffusion.generator.provenance import (
    CaseFingerprint,
    ProvenanceError,
    hash_array,
    hash_content,
    hash_identifier,
    hash_tumor_mask,
)
from diffusion.generator.records import read_record
from nnunet_difftumor.cases.tumor_prints import PRINT_VERSION, take_tumor_prints
from nnunet_difftumor.ct.boxes import as_box
from nnunet_difftumor.ct.components import TumorComponent, find_tumors
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.ct.label_roles import require_declared
from nnunet_difftumor.ct.reading import place_labels, read_ct, read_labels
from nnunet_difftumor.ct.resample import AIR_HU
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.support.files.atomic_files import name_beside, write_json
from nnunet_difftumor.support.files.fact_cache import exact_stamp_of

FORMAT_VERSION = 3
STORED_RANGE_HU = (-1024.0, 3071.0)
"""Values outside are stored as the nearer end: scanner padding such as -3024 HU is air."""

BODY_ABOVE_HU = -300.0

_IMAGE_FILE, _LABELS_FILE, _BODY_FILE, _CASE_FILE = "image.b2nd", "labels.b2nd", "body.npy", "case.json"
_CHUNK = (32, 128, 128)
_BLOCK = (8, 32, 32)
_BODY_SAMPLES = 1024
_BODY_DRAWS = 50_000


@dataclass(frozen=True)
class CachedCase:
    """One case of the cache; holds no voxels. Shape and spacing are (D, H, W)."""

    identifier: str
    folder: Path  # where its arrays lie
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    fingerprint: CaseFingerprint
    tumor_values: tuple[int, ...]  # of the labels: those that mean tumour
    tumors: tuple[TumorComponent, ...]  # of at least 8 voxels

    def read_box(self, start: ArrayLike, stop: ArrayLike) -> NDArray[np.int16]:
        """Read a box of the CT in HU; what lies outside the volume is air.

        The first voxel (D, H, W) may be negative, and one past the last, `stop`, beyond the volume.
        """
        return self._read(_IMAGE_FILE, start, stop, int(AIR_HU))

    def read_label_box(self, start: ArrayLike, stop: ArrayLike) -> NDArray[np.int16]:
        """Read such a box of the labels; 0 outside the volume, and everywhere in a case without labels."""
        if not (self.folder / _LABELS_FILE).exists():
            return np.zeros(np.subtract(stop, start), dtype=np.int16)
        return self._read(_LABELS_FILE, start, stop, 0)

    def draw_body_voxel(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw a voxel (D, H, W) of the body (above -300 HU); any voxel if the volume holds only air."""
        samples = np.load(self.folder / _BODY_FILE)
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


def build_crop_cache(
    cases: Sequence[Case],
    folder: Path,
    *,
    tumor_values: tuple[int, ...] = (),
    declared: Collection[int] = (),
    workers: int = 0,
    needs_labels: bool = True,
    left_out: dict[str, str] | None = None,
) -> tuple[CachedCase, ...]:
    """Decode the cases that are not in the cache yet, and open exactly these cases.

    An entry is made anew when the path or the stamp (`exact_stamp_of`) of its CT or label file changed. Entries
    appear complete or not at all, so an interrupted build goes on where it stopped.

    Args:
        folder: Made if it is missing.
        tumor_values: Label values that mean tumour; with none, labels are not read.
        declared: All values that a label map may hold; none, to take any.
        workers: Processes that decode side by side; 0 decodes in this one.
        needs_labels: If False, a case whose labels do not fit its CT or cannot be read is opened without them: its
            `tumor_values` are empty.
        left_out: Bad cases are left out and named here, with their errors, unless none is left; None refuses them.

    Raises:
        DiffTumorError: The named error of the bad file; every bad file is listed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = [_Entry(case, folder, tumor_values, declared) for case in cases]
    errors = dict(_build_all(entries, workers))
    if not needs_labels and errors:
        entries = [_Entry(entry.case, folder) if entry in errors else entry for entry in entries]
        errors = dict(_build_all(entries, workers))
    if errors and (left_out is None or len(errors) == len(entries)):
        advice = [] if len(errors) == len(entries) else ["--skip-bad leaves such cases out and trains on the others."]
        raise type(next(iter(errors.values())))("\n".join([*map(str, list(errors.values())[:20]), *advice]))
    for entry, error in errors.items():
        entry.mark_bad(error)
        if left_out is not None:
            left_out[entry.case.identifier] = str(error)
    return tuple(entry.open() for entry in entries if entry not in errors)


def is_cached(
    cases: Sequence[Case],
    folder: Path,
    *,
    tumor_values: tuple[int, ...] = (),
    declared: Collection[int] = (),
    or_without: bool = False,
) -> bool:
    """Say whether `build_crop_cache` would find every case in the cache, or know it, or its labels, as bad."""
    return all(
        entry.is_current() or (or_without and (entry.is_bad() or _Entry(entry.case, folder).is_current()))
        for entry in (_Entry(case, folder, tumor_values, declared) for case in cases)
    )


def _build_all(all_entries: Sequence[_Entry], workers: int) -> Iterator[tuple[_Entry, DiffTumorError]]:
    """Decode what is not in the cache yet; yields what is bad."""
    entries = [entry for entry in all_entries if not entry.is_current()]
    built = _build_each(entries, workers)
    bar = tqdm(built, desc="Caching CTs", total=len(entries), unit="case", disable=not entries)
    yield from ((entry, error) for entry, error in zip(entries, bar, strict=True) if error is not None)


def _build_each(entries: Sequence[_Entry], workers: int) -> Iterator[DiffTumorError | None]:
    if workers <= 1 or len(entries) <= 1:
        yield from map(_Entry.build, entries)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(entries)), mp_context=context) as pool:
        yield from pool.map(_Entry.build, entries)


class _Entry:
    """What the cache holds, or will hold, of one case."""

    def __init__(
        self, case: Case, cache_folder: Path, tumor_values: tuple[int, ...] = (), declared: Collection[int] = ()
    ) -> None:
        self.case, self.tumor_values, self.declared = case, tumor_values, sorted(declared)
        self.label_path = case.label_path if tumor_values else None
        paths = [case.image_path] + ([self.label_path] if self.label_path else [])
        label = str(self.label_path and self.label_path.resolve())
        key = hashlib.sha256(repr((str(case.image_path.resolve()), label, tumor_values)).encode()).hexdigest()
        self.folder = cache_folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', case.identifier)}-{key[:12]}"
        self._mark = self.folder.with_name(f"{self.folder.name}.bad.json")
        self.signature = {
            "version": [FORMAT_VERSION, PRINT_VERSION],
            "identifier": case.identifier,
            "declared": self.declared,
            "files": [exact_stamp_of(path) if path.is_file() else None for path in paths],
        }

    def is_current(self) -> bool:
        return self._was_written(self.folder / _CASE_FILE)

    def is_bad(self) -> bool:
        return self._was_written(self._mark)

    def mark_bad(self, error: DiffTumorError) -> None:
        write_json(self._mark, {"signature": self.signature, "error": str(error)}, overwrite=True)

    def _was_written(self, path: Path) -> bool:
        try:
            return json.loads(path.read_text(encoding="utf-8"))["signature"] == self.signature
        except (OSError, ValueError, KeyError):
            return False

    def open(self) -> CachedCase:
        path = self.folder / _CASE_FILE
        stored = json.loads(path.read_text(encoding="utf-8"))
        del stored["signature"]
        return read_record(CachedCase, {**stored, "folder": self.folder}, str(path), ProvenanceError)

    def build(self) -> DiffTumorError | None:
        """Decode the case; a bad file is returned as its error."""
        temporary, outdated = name_beside(self.folder), name_beside(self.folder)
        try:
            if self.folder.exists() and not self.is_current():  # moved before the work: another's new one stays
                with suppress(FileNotFoundError):
                    os.replace(self.folder, outdated)
            temporary.mkdir()
            self._write(temporary)
            os.replace(temporary, self.folder)
        except DiffTumorError as error:
            return error
        except OSError:
            if not self.is_current():  # another process may have been faster
                raise
        finally:
            for leftover in (temporary, outdated):
                shutil.rmtree(leftover, ignore_errors=True)
        return None

    def _write(self, folder: Path) -> None:
        ct = read_ct(self.case.image_path)
        tumors: tuple[TumorComponent, ...] = ()
        seen: dict[str, Any] = {}
        if self.label_path is not None:
            own_labels, geometry = read_labels(self.label_path)
            if self.declared:
                require_declared({self.label_path: np.unique(own_labels).tolist()}, self.declared)
            labels = place_labels(own_labels, geometry, self.label_path, ct)
            tumor_mask = np.isin(labels, self.tumor_values)
            tumors = find_tumors(tumor_mask, ct.spacing_mm)
            seen["tumor_mask_hash"] = hash_tumor_mask(np.isin(own_labels, self.tumor_values))
            seen["tumor_prints"] = take_tumor_prints(tumor_mask, ct.spacing_mm, ct.image_hu)
            fits_a_byte = labels.min() >= 0 and labels.max() <= 255
            _store(labels.astype(np.uint8) if fits_a_byte else labels, folder / _LABELS_FILE)
        stored = np.rint(np.clip(ct.image_hu, *STORED_RANGE_HU)).astype(np.int16)
        _store(stored, folder / _IMAGE_FILE)
        np.save(folder / _BODY_FILE, _sample_body(stored))
        hashes: dict[str, Any] = {
            "identifier_hash": hash_identifier(self.case.identifier),
            "image_hash": hash_array(ct.image_hu),
            "content_hash": hash_content(ct.image_hu),
        }
        description = {
            "signature": self.signature,
            "identifier": self.case.identifier,
            "shape": stored.shape,
            "spacing_mm": ct.spacing_mm,
            "fingerprint": asdict(CaseFingerprint(**hashes, **seen)),
            "tumor_values": self.tumor_values,
            "tumors": [asdict(tumor) for tumor in tumors],
        }
        (folder / _CASE_FILE).write_text(json.dumps(description, indent=1), encoding="utf-8")


def _store(array: NDArray[Any], path: Path) -> None:
    options: dict[str, Any] = {
        "chunks": tuple(map(min, _CHUNK, array.shape)),
        "blocks": tuple(map(min, _BLOCK, array.shape)),
        "cparams": {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1},
    }
    contiguous: Any = np.ascontiguousarray(array)
    blosc2.asarray(contiguous, urlpath=str(path), mode="w", **options)


def _sample_body(image_hu: NDArray[np.int16]) -> NDArray[np.int32]:
    rng = np.random.default_rng(0)
    candidates = rng.integers(0, image_hu.size, size=_BODY_DRAWS)
    inside = candidates[image_hu.ravel()[candidates] > BODY_ABOVE_HU][:_BODY_SAMPLES]
    return np.stack(np.unravel_index(inside, image_hu.shape), axis=1).astype(np.int32)
