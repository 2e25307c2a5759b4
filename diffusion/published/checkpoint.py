"""Reads the weights out of the published DiffTumor files without running anything that is in them."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from autoencoder.published.network import PublishedAutoencoder
from diffusion.published.network import PublishedDenoiser
from diffusion.published.sampling import published_schedule

_EMBEDDED_AUTOENCODER = "vqgan."
_DENOISER = "denoise_fn."
_COMPUTED = ".rotary_emb."
_SHOWN_NAMES, _SHOWN_LETTERS = 3, 80
_MOST_TIMESTEPS = 1000
_LARGEST_COUNT = 2**62
_FIX_PATH = "Check the path and whether you may read it."
_FIX = "Download the file again from where the authors of DiffTumor publish it."
_INDEX = "data.pkl"
_STORAGES = MappingProxyType(
    {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
    }
)


class CheckpointError(ValueError):
    """A file is none of the published DiffTumor checkpoints, or not the one that is asked for."""


class DenoiserTensors(NamedTuple):
    """Averaged weights by their names in `PublishedDenoiser`, and the number T of steps of training."""

    weights: dict[str, Tensor]
    timesteps: int


class InertRecord:
    """Stands for an object of any class in a file: it takes whatever it is given and keeps nothing."""

    pickled_name: ClassVar[str] = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """Take an item of a list."""

    def extend(self, values: Any) -> None:
        """Take items of a list."""

    def add(self, value: Any) -> None:
        """Take an item of a set."""

    def __repr__(self) -> str:
        return f"<inert {self.pickled_name}>"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose numbers are still in the file; shape and type are known."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: _Storage = field(repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.storage.dtype

    def __setstate__(self, _: Any) -> None:
        raise _ArchiveError("it changes what stands for a tensor")


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Read the index of a file that `torch.save` wrote; tensors become `StoredTensor`, which is read when needed.

    What is neither number, string, list, tuple, set, dict nor tensor becomes an `InertRecord`: nothing that the file
    names is imported or called.

    Raises:
        CheckpointError: If the file cannot be read, is no such archive, is cut off, or holds no dict.
    """
    try:
        content = _read_index(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. {_FIX_PATH}") from error
    except _ArchiveError as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}. {_FIX}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a dict, got {type(content).__name__}. {_FIX}")
    return content


def autoencoder_tensors(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Load the tensors of `PublishedAutoencoder` out of `AutoencoderModel.ckpt`, float32 on the CPU.

    Raises:
        CheckpointError: If it is a diffusion checkpoint, or a tensor is missing, of another shape or damaged.
    """
    if "state_dict" not in checkpoint and "ema" in checkpoint:
        raise CheckpointError(
            f"{path} is a diffusion checkpoint, expected the autoencoder (AutoencoderModel.ckpt). Swap the two files."
        )
    return _load_all(_section(checkpoint, "state_dict", path), _shapes(PublishedAutoencoder), path)


def denoiser_tensors(checkpoint: Mapping[str, Any], path: Path) -> DenoiserTensors:
    """Load the averaged tensors of `PublishedDenoiser` out of a diffusion checkpoint, float32 on the CPU.

    Raises:
        CheckpointError: If it is the autoencoder, a tensor is missing, of another shape or damaged, the denoiser has
            tensors that are not known, or the noise schedule is not the cosine one.
    """
    if "ema" not in checkpoint and "state_dict" in checkpoint:
        raise CheckpointError(
            f"{path} is an autoencoder checkpoint, expected a diffusion model (such as liver_early.pt). Swap the two "
            f"files."
        )
    averaged = _section(checkpoint, "ema", path)
    shapes = _shapes(PublishedDenoiser)
    found = {name: value for name, value in _below(averaged, _DENOISER).items() if _COMPUTED not in name}
    unexpected = sorted(found.keys() - shapes.keys())
    if unexpected:
        raise CheckpointError(
            f"{path} holds {len(unexpected)} tensors below {_DENOISER} that the published models do not have: "
            f"{_some(unexpected)}. It is another architecture, which is not supported."
        )
    return DenoiserTensors(_load_all(found, shapes, path, prefix=_DENOISER), _timesteps(averaged, path))


def embedded_autoencoder_tensors(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor] | None:
    """Load the autoencoder that a diffusion checkpoint carries along, or None where it is not complete.

    The authors decode with it in the models of early tumours. It should equal their `AutoencoderModel.ckpt`.

    Raises:
        CheckpointError: If there are no averaged weights or a tensor is of another shape or damaged.
    """
    found = _below(_section(checkpoint, "ema", path), _EMBEDDED_AUTOENCODER)
    shapes = _shapes(PublishedAutoencoder)
    if not found.keys() >= shapes.keys():
        return None
    return _load_all(found, shapes, path, prefix=_EMBEDDED_AUTOENCODER)


def are_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names with the same values."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def _section(checkpoint: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = checkpoint.get(name)
    if not isinstance(section, dict):
        arrived = "nothing" if section is None else type(section).__name__
        raise CheckpointError(f"{path} must hold a dict of tensors as {name!r}, got {arrived}. {_FIX}")
    return section


def _below(section: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in section.items()
        if isinstance(name, str) and name.startswith(prefix)
    }


def _shapes(network: type[nn.Module]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network().state_dict().items()}


def _load_all(
    found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path, *, prefix: str = ""
) -> dict[str, Tensor]:
    missing = [prefix + name for name in shapes if name not in found]
    if missing:
        raise CheckpointError(f"{path} lacks {len(missing)} of {len(shapes)} tensors: {_some(missing)}. {_FIX}")
    return {name: _load(found[name], shape, prefix + name, path) for name, shape in shapes.items()}


def _load(value: Any, shape: tuple[int, ...], name: str, path: Path) -> Tensor:
    if not isinstance(value, StoredTensor) or not value.dtype.is_floating_point or value.shape != shape:
        arrived = f"{value.dtype} {value.shape}" if isinstance(value, StoredTensor) else type(value).__name__
        raise CheckpointError(
            f"{path} must hold {name} as floating point of shape {shape}, got {arrived}. It is another architecture, "
            f"which is not supported."
        )
    last = value.offset + sum((side - 1) * step for side, step in zip(value.shape, value.stride, strict=True))
    try:
        if last >= value.storage.count:
            raise _ArchiveError(f"number {last} of a storage of {value.storage.count} is asked for")
        numbers = value.storage.read().as_strided(value.shape, value.stride, value.offset).float().contiguous()
    except (_ArchiveError, OSError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{name} in {path} cannot be read: {_one_line(error)}. {_FIX}") from error
    if not bool(torch.isfinite(numbers).all()):
        raise CheckpointError(f"{name} in {path} holds numbers that are not finite, so it draws nothing. {_FIX}")
    return numbers


def _timesteps(averaged: Mapping[str, Any], path: Path) -> int:
    betas = averaged.get("betas")
    if not isinstance(betas, StoredTensor) or len(betas.shape) != 1 or betas.shape[0] < 1:
        raise CheckpointError(f"{path} lacks the noise schedule, a tensor 'betas' with one number per step. {_FIX}")
    timesteps = betas.shape[0]
    if timesteps > _MOST_TIMESTEPS:
        raise CheckpointError(f"{path} has a noise schedule of {timesteps} steps; the published models have 4 or 200.")
    stored = _load(betas, (timesteps,), "betas", path)
    if not torch.allclose(stored, published_schedule(timesteps).betas, rtol=0.0, atol=1e-5):
        raise CheckpointError(
            f"{path} was trained with a noise schedule of {timesteps} steps that is not the cosine one of the "
            f"published models, which is not supported."
        )
    return timesteps


def _some(names: list[str]) -> str:
    return ", ".join(map(_one_line, names[:_SHOWN_NAMES])) + (", ..." if len(names) > _SHOWN_NAMES else "")


def _one_line(said: object) -> str:
    """What a file, or an error about it, says, on one line and not at length."""
    text = ascii(str(said).splitlines()[0] if str(said) else "")[1:-1]
    return text if len(text) <= 3 * _SHOWN_LETTERS else f"{text[: 3 * _SHOWN_LETTERS]}..."


class _ArchiveError(ValueError):
    """What is wrong with an archive, as the end of a sentence."""


@dataclass(frozen=True)
class _Storage:
    """Numbers in an entry of the archive."""

    archive: zipfile.ZipFile
    entry: str
    dtype: torch.dtype
    count: int

    def read(self) -> Tensor:
        """Return all numbers, on the CPU. Shape (count,).

        Raises:
            _ArchiveError: If the entry is missing, damaged or of another length.
        """
        expected = self.count * self.dtype.itemsize
        try:
            length = self.archive.getinfo(self.entry).file_size
            if length != expected:
                raise _ArchiveError(f"the entry {_one_line(self.entry)} has {length} bytes, expected {expected}")
            return torch.frombuffer(bytearray(_read_entry(self.archive, self.entry)), dtype=self.dtype)
        except KeyError as error:
            raise _ArchiveError(f"the entry {_one_line(self.entry)} is missing") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise _ArchiveError(f"the entry {_one_line(self.entry)} is damaged ({_one_line(error)})") from error

    def __setstate__(self, _: Any) -> None:
        raise _ArchiveError("it changes what stands for a storage")


def _read_entry(archive: zipfile.ZipFile, entry: str) -> bytes:
    """Read an entry, which `torch.save` never compresses: one that is may be far larger than its file."""
    if archive.getinfo(entry).compress_type != zipfile.ZIP_STORED:
        raise _ArchiveError(f"its entry {_one_line(entry)} is compressed, which those of torch.save are not")
    return archive.read(entry)


def _read_index(path: Path) -> Any:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise _ArchiveError(_why_no_zip(path)) from error
    except (NotImplementedError, ValueError, struct.error) as error:
        raise _ArchiveError(f"its zip directory is damaged ({_one_line(error)})") from error
    indices = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith(f"/{_INDEX}")]
    if len(indices) != 1:
        raise _ArchiveError(f"it is a zip archive with {len(indices)} entries */{_INDEX}, those of torch.save have 1")
    try:
        order = f"{indices[0].removesuffix(_INDEX)}byteorder"
        if order in archive.namelist() and _read_entry(archive, order) != b"little":
            raise _ArchiveError("its numbers are big-endian; load it with torch where it was made, and save it anew")
        content = _read_entry(archive, indices[0])
        _refuse_wide_memo(content)
        return _Unpickler(archive, indices[0], content).load()
    except _ArchiveError:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise _ArchiveError(f"its entry {_INDEX} is damaged ({type(error).__name__}: {_one_line(error)})") from error


def _refuse_wide_memo(content: bytes) -> None:
    """Refuse a pickle that asks for a table of more places than it has bytes."""
    for opcode, place, _ in pickletools.genops(content):
        if opcode.name.endswith("PUT") and isinstance(place, int) and place > len(content):
            raise _ArchiveError(f"its entry {_INDEX} asks for a table of {place} places")


def _why_no_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        return "it is a zip archive that is cut off"
    if start.startswith(b"\x80"):
        return (
            "it is a pickle in the format of torch before 1.6, which is not read; where you trust it, load it with "
            "torch and save it again with torch.save"
        )
    return "it is no zip archive as torch.save writes them, but perhaps a web page in its place"


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers and tensors; no name is looked up anywhere but here.

    What stands for functions and classes is made anew each time, so that a file cannot change it for the next one.
    """

    def __init__(self, archive: zipfile.ZipFile, index: str, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._archive = archive
        self._top = index.removesuffix(_INDEX)

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return what stands for a name; nothing is imported."""
        name = f"{module_name}.{global_name}"
        known: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": OrderedDict,  # written in C: its attributes cannot be set
            "torch._utils._rebuild_tensor_v2": lambda *given: _stored_tensor(*given),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
        }
        if module_name == "torch" and global_name in _STORAGES:
            return _STORAGES[global_name]
        return known.get(name) or type("InertRecord", (InertRecord,), {"pickled_name": name})

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that an identifier names; nothing of it is read."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(key, str) or not _is_count(count):
            raise _ArchiveError("an identifier in it names no storage")
        if not isinstance(dtype, torch.dtype):
            return InertRecord()
        return _Storage(self._archive, f"{self._top}data/{key}", dtype, count)


def _stored_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor | InertRecord:
    if not isinstance(storage, _Storage):
        return InertRecord()
    if len(shape) != len(stride) or not all(_is_count(number) for number in (offset, *shape, *stride)):
        raise _ArchiveError("a tensor has an offset, a shape or a stride that is none")
    return StoredTensor(tuple(shape), tuple(stride), offset, storage)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_COUNT
