"""Which cases trained a generator, as hashes: what a leak guard compares with a validation split.

Only numpy and the standard library are imported here, so that a trainer can read it cheaply. A hash of
an identifier hides a name from a glance, not from someone who can guess the names.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoencoder.engine.files import write_json
from diffusion.generator.records import read_record
from diffusion.generator.tumor_print import TumorPrint

FORMAT_VERSION = 2

_HASH = re.compile(r"[0-9a-f]{64}")


class ProvenanceError(ValueError):
    """A provenance record is malformed."""


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One case, recognisable without its data: hashes of identifier, decoded CT in HU and tumour mask.

    Attributes:
        tumor_mask_hash: None for a case without a tumour.
        tumor_prints: The tumour mask and its largest parts in numbers that survive resampling; None for a case
            whose labels were not looked at.
    """

    identifier_hash: str
    image_hash: str
    tumor_mask_hash: str | None = None
    tumor_prints: tuple[TumorPrint, ...] | None = None

    def __post_init__(self) -> None:
        _require_hash("identifier_hash", self.identifier_hash)
        _require_hash("image_hash", self.image_hash)
        if self.tumor_mask_hash is not None:
            _require_hash("tumor_mask_hash", self.tumor_mask_hash)
            if self.tumor_prints is None:
                raise ProvenanceError("A case with a tumor_mask_hash needs tumor_prints: without, copies go unnoticed.")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The cases that trained the two stages of a generator.

    Attributes:
        fold: Cross-validation fold whose training cases were used; None without a split.
        splits_hash: `hash_file` of the splits file; None without a split.
    """

    diffusion: tuple[CaseFingerprint, ...]
    autoencoder: tuple[CaseFingerprint, ...]
    fold: int | None = None
    splits_hash: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _require_version(self.format_version)
        if self.fold is not None and (isinstance(self.fold, bool) or not isinstance(self.fold, int)):
            raise ProvenanceError(f"fold must be an integer or null, got {self.fold!r}.")
        if self.fold is not None and self.fold < 0:
            raise ProvenanceError(f"fold must be 0 or more, got {self.fold}.")
        if self.splits_hash is not None:
            _require_hash("splits_hash", self.splits_hash)
        if (self.fold is None) != (self.splits_hash is None):
            raise ProvenanceError(
                f"fold and splits_hash belong together, got fold={self.fold!r} and "
                f"splits_hash={self.splits_hash!r}. Give both, or neither."
            )

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str, source: str = "provenance.json") -> Provenance:
        """Read a record strictly: an unknown, a missing or a malformed entry is an error.

        Raises:
            ProvenanceError: If the text is no such record; the message names the file, `source`, and the entry.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ProvenanceError(
                f"{source} is not valid JSON ({error}). It may be cut off: copy the generator folder again."
            ) from error
        if isinstance(content, dict) and "format_version" in content:
            _require_version(content["format_version"], f"{source}: ")  # first: another one may have other entries
        return read_record(Provenance, content, source, ProvenanceError)


def save_provenance(path: Path, provenance: Provenance) -> None:
    """Write a record to a file, by way of a temporary name; an existing file is replaced."""
    write_json(path, asdict(provenance))


def load_provenance(path: Path) -> Provenance:
    """Read a record from a file.

    Raises:
        ProvenanceError: If the file is missing, unreadable or malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProvenanceError(
            f"{path} cannot be read ({error}). A generator needs the record of the cases that trained it: "
            f"copy the whole folder, or train it again with `difftumor train-diffusion`."
        ) from error
    return Provenance.from_json(text, source=str(path))


def hash_identifier(identifier: str) -> str:
    """Hash nnU-Net's identifier of a case, without channel suffix and file ending, to 64 hexadecimal digits.

    Raises:
        ValueError: If the identifier is empty.
    """
    if not identifier:
        raise ValueError("A case identifier must not be empty; use the file's name without its ending.")
    return hashlib.sha256(b"nnunet-difftumor case\0" + identifier.encode("utf-8")).hexdigest()


def hash_array(array: NDArray[Any]) -> str:
    """Hash shape and values of an image to 64 hexadecimal digits.

    Values are compared as float32, so an int16 and a float64 copy of the same CT agree.

    Args:
        array: Numbers or booleans, any shape; a CT decoded to HU.

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
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def hash_tumor_mask(tumor_mask: NDArray[np.bool_]) -> str | None:
    """Hash shape (D, H, W) and voxels of a tumour mask to 64 hexadecimal digits.

    None if the mask is empty: empty masks tell no two cases apart.

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


def _require_version(version: object, place: str = "") -> None:
    if version != FORMAT_VERSION:
        raise ProvenanceError(
            f"{place}Provenance has format_version {version!r}, this release reads {FORMAT_VERSION}. "
            f"Use the release that wrote it, or train the generator again."
        )


def _require_hash(name: str, value: object) -> None:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ProvenanceError(
            f"{name} must be 64 lower-case hexadecimal digits (SHA-256), got {value!r}. Use the hash functions "
            f"of diffusion.generator.provenance."
        )
