"""Which cases trained a generator, as hashes and prints: what a leak guard compares with a validation split.

Only numpy and the standard library are imported here, so that a trainer can read it cheaply. A hash of
an identifier hides a name from a glance, not from someone who can guess the names. Prints recognise a tumour in
another resampling; they are rounded, and say nothing of its picture.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoencoder.engine.files import write_json
from diffusion.generator.records import read_json, read_record, require_numbers

_HASH = re.compile(r"[0-9a-f]{64}")
_FIX = (
    "A generator needs the record of the cases that trained it: copy the whole folder, or train it again with "
    "`difftumor train-diffusion`."
)


SOFT_TISSUE_HU = (-150.0, 250.0)
"""Limits of what is compared of a CT: a copy windowed to abdominal soft tissue shows the same."""


class ProvenanceError(ValueError):
    """A provenance record is malformed."""


@dataclass(frozen=True, kw_only=True)
class SurroundingsPrint:
    """The CT around a tumour's centroid in rounded numbers, weighted by (1 - (distance / radius)^2)^2.

    Attributes:
        radius_mm: Distance in mm at which the weight is 0.
        slope_hu: Length of the weighted mean of (value - mean) * offset / radius, in HU: brighter on one side.
        quadrupole_hu: Norm of the weighted mean of (value - mean) times the traceless tensor
            offset offset^T / radius^2, in HU: brighter along one axis.
    """

    radius_mm: float
    mean_hu: float
    slope_hu: float
    quadrupole_hu: float

    def __post_init__(self) -> None:
        require_numbers(**vars(self))


@dataclass(frozen=True, kw_only=True)
class TumorPrint:
    """A tumour mask, or a part of it, in numbers that do not depend on position, direction and voxel size.

    Attributes:
        voxel_mm: Root mean square of the grid's spacing in mm, which says how exact the other numbers are.
        axes_mm: Standard deviation along the three principal axes in mm, largest first.
        skewness: Length of the vector of third moments, in units of the mean axis cubed.
        asymmetry: Norm of the tensor of third moments, in units of the mean axis cubed.
        surroundings: The CT around the centroid, for each radius that lies within the scan.
    """

    voxel_mm: float
    volume_mm3: float
    axes_mm: tuple[float, float, float]
    skewness: float
    asymmetry: float
    surroundings: tuple[SurroundingsPrint, ...] = ()

    def __post_init__(self) -> None:
        if len(self.axes_mm) != 3:
            raise ValueError(f"axes_mm must be three numbers in mm, got {list(self.axes_mm)}.")
        largest, middle, smallest = self.axes_mm
        require_numbers(voxel_mm=self.voxel_mm, volume_mm3=self.volume_mm3, skewness=self.skewness)
        require_numbers(asymmetry=self.asymmetry, largest=largest, middle=middle, smallest=smallest)
        if min(self.voxel_mm, self.volume_mm3, smallest) <= 0:
            raise ValueError(
                f"voxel_mm, volume_mm3 and axes_mm must be above 0, got {self.voxel_mm}, {self.volume_mm3} and "
                f"{list(self.axes_mm)}."
            )


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One case, recognisable without its data: hashes of identifier, decoded CT in HU and tumour mask.

    Attributes:
        image_hash: None where no more than the identifier is known.
        tumor_mask_hash: None for a case without a tumour.
        tumor_prints: The tumour mask and its largest parts in numbers that survive resampling; None for a case
            whose labels were not looked at.
        content_hash: See `hash_content`; None for a CT that shows nothing, and in older records.
    """

    identifier_hash: str
    image_hash: str | None
    tumor_mask_hash: str | None = None
    tumor_prints: tuple[TumorPrint, ...] | None = None
    content_hash: str | None = field(default=None, metadata={"may_lack": True})

    def __post_init__(self) -> None:
        _require_hash("identifier_hash", self.identifier_hash)
        for name in ("image_hash", "content_hash", "tumor_mask_hash"):
            if getattr(self, name) is not None:
                _require_hash(name, getattr(self, name))
        if self.tumor_mask_hash is not None and self.tumor_prints is None:
            raise ProvenanceError("A case with a tumor_mask_hash needs tumor_prints: without, copies go unnoticed.")

    @property
    def content_hashes(self) -> frozenset[str]:
        """Hashes of CT and tumour mask; a case that shares one with another is a copy of it."""
        hashes = (self.image_hash, self.content_hash, self.tumor_mask_hash)
        return frozenset(each for each in hashes if each is not None)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The cases that trained the two stages of a generator.

    Attributes:
        fold: Cross-validation fold whose training cases were used; None without a split.
        splits_hash: `hash_file` of the splits file; None without a split.
        is_complete: False if other cases may have trained the stages, as far as is known: whether the generator knows
            a case can then be shown, but not excluded.
    """

    diffusion: tuple[CaseFingerprint, ...]
    autoencoder: tuple[CaseFingerprint, ...]
    fold: int | None = None
    splits_hash: str | None = None
    is_complete: bool = field(default=True, metadata={"may_lack": True})
    format_version: int = 2

    def __post_init__(self) -> None:
        if self.fold is not None and (type(self.fold) is not int or self.fold < 0):
            raise ProvenanceError(f"fold must be an integer of 0 or more, or null, got {self.fold!r}.")
        if self.splits_hash is not None:
            _require_hash("splits_hash", self.splits_hash)
        if type(self.is_complete) is not bool:
            raise ProvenanceError(f"is_complete must be true or false, got {self.is_complete!r}.")
        if (self.fold is None) != (self.splits_hash is None):
            raise ProvenanceError(
                f"fold and splits_hash belong together, got fold={self.fold!r} and "
                f"splits_hash={self.splits_hash!r}. Give both, or neither."
            )


def save_provenance(path: Path, provenance: Provenance) -> None:
    """Write a record to a file, whole; an existing file is replaced."""
    write_json(path, asdict(provenance))


def load_provenance(path: Path) -> Provenance:
    """Read a record from a file.

    Raises:
        ProvenanceError: If the file is missing or unreadable, or an entry unknown, missing or malformed; the message
            names file and entry.
    """
    content = read_json(path, ProvenanceError, _FIX)
    return read_record(Provenance, content, str(path), ProvenanceError)


def hash_cases(cases: Sequence[CaseFingerprint]) -> str:
    """Hash which cases these are, in this order; prints of the same files may change with the program."""
    records = [(case.identifier_hash, case.image_hash, case.tumor_mask_hash) for case in cases]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def hash_identifier(identifier: str) -> str:
    """Hash nnU-Net's identifier of a case, without channel suffix and file ending, to 64 hexadecimal digits.

    Raises:
        ValueError: If the identifier is empty.
    """
    if not identifier:
        raise ValueError("A case identifier must not be empty; use the file's name without its ending.")
    return hashlib.sha256(b"nnunet-difftumor case\0" + identifier.encode("utf-8")).hexdigest()


def hash_array(array: NDArray[Any]) -> str:
    """Hash shape and values of an image, such as a CT decoded to HU, to 64 hexadecimal digits.

    Values are compared as float32, so an int16 and a float64 copy of the same CT agree.

    Raises:
        ValueError: If the array is empty or holds no real numbers.
    """
    if array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"hash_array needs a non-empty array of numbers, got shape {array.shape} and type {array.dtype}."
        )
    digest = hashlib.sha256(_shape_header(b"array", array.shape))
    for part in np.atleast_2d(array):  # slice by slice: a whole CT as float32 would double the memory
        values = np.ascontiguousarray(part, dtype="<f4") + np.float32(0.0)  # -0 and +0 are the same value
        digest.update(values.astype("<f4", copy=False).data)
    return digest.hexdigest()


def hash_content(image_hu: NDArray[Any]) -> str | None:
    """Hash what a CT in HU (D, H, W) shows, whichever way its axes run and whatever spacing it states.

    Values are whole HU within `SOFT_TISSUE_HU`; outer planes of one value, padding of any number or air, are left out.
    Sums along each axis are hashed; those of planes say in which order and direction the axes are taken, so that a
    mirrored or turned copy, in whatever header, has the same hash. None where so little is left that chance makes it.
    """
    values = np.empty(image_hu.shape, np.int16)
    for part, whole in zip(image_hu, values, strict=True):
        whole_hu = part if part.dtype == np.int16 else np.rint(np.float32(part))
        whole[...] = np.clip(whole_hu, int(SOFT_TISSUE_HU[0]), int(SOFT_TISSUE_HU[1]))
    for _ in range(2):  # planes of air are planes of one value where the padding around them is gone
        low, high = values.min(axis=0), values.max(axis=0)
        spans = (np.ptp(values, axis=(1, 2)), high.max(axis=1) - low.min(axis=1), high.max(axis=0) - low.min(axis=0))
        varied = [np.flatnonzero(each) for each in spans]
        if not all(map(len, varied)):
            return None
        values = values[tuple(slice(each[0], each[-1] + 1) for each in varied)]
    if values.size < 64:
        return None
    sums = [values.sum(axis=axis, dtype=np.int32, keepdims=True) for axis in range(3)]
    lines = [sums[axis - 1].sum(axis=(axis + 1) % 3, dtype=np.int64).ravel().tolist() for axis in range(3)]
    mirrored = tuple(axis for axis in range(3) if lines[axis][::-1] < lines[axis])
    order = sorted(range(3), key=lambda axis: min(lines[axis], lines[axis][::-1]))
    turned = (np.flip(sums[axis], mirrored).transpose(order) for axis in order)
    return hashlib.sha256("".join(map(hash_array, turned)).encode()).hexdigest()


def hash_tumor_mask(tumor_mask: NDArray[np.bool_]) -> str | None:
    """Hash shape (D, H, W) and voxels of a tumour mask to 64 hexadecimal digits; None for an empty one: all are alike.

    Raises:
        ValueError: If the mask is not boolean.
    """
    if tumor_mask.dtype != np.bool_:
        raise ValueError(f"tumor_mask must be boolean, got type {tumor_mask.dtype}. Use (label == tumor_label).")
    if not tumor_mask.any():
        return None
    digest = hashlib.sha256(_shape_header(b"mask", tumor_mask.shape))
    digest.update(np.packbits(tumor_mask).tobytes())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Hash the bytes of a small file, such as splits_final.json, to 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shape_header(kind: bytes, shape: tuple[int, ...]) -> bytes:
    return b"nnunet-difftumor " + kind + b"\0" + ",".join(str(side) for side in shape).encode() + b"\0"


def _require_hash(name: str, value: object) -> None:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ProvenanceError(
            f"{name} must be 64 lower-case hexadecimal digits (SHA-256), got {value!r}. Use the hash functions "
            f"of diffusion.generator.provenance."
        )
