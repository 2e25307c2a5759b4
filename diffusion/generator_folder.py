"""A generator as a folder: weights, configurations, provenance and model card, checked before use.

Layout: model_index.json, autoencoder/, denoiser/, scheduler/, generator.json, provenance.json, README.md.
Reading the records alone (`check_generator_folder`) imports neither torch nor diffusers, loading a generator to sample
from it (`load_generator`) no diffusers, unless its objective needs a scheduler.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autoencoder.engine.files import replaced_folder, write_json
from diffusion.generator import folder_check
from diffusion.generator.folder_check import FIX, WEIGHTS_FILE, GeneratorFolderError
from diffusion.generator.info import GeneratorInfo
from diffusion.generator.provenance import Provenance, load_provenance, save_provenance
from diffusion.generator.records import read_json, read_record

if TYPE_CHECKING:
    import torch

    from autoencoder.layers import Network
    from autoencoder.model import AutoencoderKL3D
    from diffusion.pipeline import TumorDiffusionPipeline
    from diffusion.published.sampler import PublishedSampler
    from diffusion.sampling import TumorSampler

    NetworkT = TypeVar("NetworkT", bound=Network)

INFO_FILE = "generator.json"
PROVENANCE_FILE = "provenance.json"
CARD_FILE = "README.md"
_FIX_AUTOENCODER = "Copy the whole folder again, or train it again with `difftumor train-autoencoder`."


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator ready for use: networks in evaluation mode, what it was made for, the cases that trained it.

    `identity` is what `hash_generator` says of its folder; empty if it came from no folder. Published weights may ask
    to be blended as published.
    """

    sampler: TumorSampler | PublishedSampler
    info: GeneratorInfo
    provenance: Provenance
    identity: str = ""
    blends_as_published: bool = False


def save_generator(
    folder: Path,
    pipeline: TumorDiffusionPipeline,
    info: GeneratorInfo,
    provenance: Provenance,
    *,
    replace: bool = False,
) -> None:
    """Write a generator folder, complete or not at all; `replace` puts it in the place of an existing one.

    Raises:
        GeneratorFolderError: If the folder exists and `replace` is False, or `info` states another
            window than the autoencoder's.
    """
    from diffusion.generator.model_card import write_model_card

    if folder.exists() and not replace:
        raise GeneratorFolderError(f"{folder} exists already. Choose another folder, or move it away.")
    _check_window(folder, pipeline, info)
    with replaced_folder(folder) as unfinished:
        pipeline.save_pretrained(str(unfinished), safe_serialization=True)
        _forget_paths(unfinished)
        write_json(unfinished / INFO_FILE, asdict(info))
        (unfinished / CARD_FILE).write_text(
            write_model_card(info, provenance, str(pipeline.denoiser.config["objective"])), encoding="utf-8"
        )
        save_provenance(unfinished / PROVENANCE_FILE, provenance)


def _forget_paths(folder: Path) -> None:
    """Take out what diffusers notes about where a component was loaded from: a path of the user's machine."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_generator_folder(folder: Path) -> tuple[GeneratorInfo, Provenance]:
    """Check a generator folder without loading its networks, and read both records.

    Raises:
        GeneratorFolderError: If the folder is incomplete, foreign or could run code when loaded.
        ProvenanceError: If the record of the training cases is malformed.
    """
    folder_check.require_files(folder, (INFO_FILE, PROVENANCE_FILE))
    folder_check.check_component_classes(folder)
    return read_generator_info(folder), load_provenance(folder / PROVENANCE_FILE)


def read_generator_info(folder: Path) -> GeneratorInfo:
    """Read what a generator was made for.

    Raises:
        GeneratorFolderError: If the record is missing or malformed.
    """
    path = folder / INFO_FILE
    return read_record(GeneratorInfo, read_json(path, GeneratorFolderError, FIX), str(path), GeneratorFolderError)


def load_generator(folder: Path | str, device: torch.device | str = "cpu") -> LoadedGenerator:
    """Load a generator folder onto a device; nothing is downloaded or unpickled.

    Raises:
        GeneratorFolderError: If the folder is incomplete, foreign, damaged or could run code when loaded.
        ProvenanceError: If the record of the training cases is malformed.
    """
    import torch

    folder = Path(folder)
    info, provenance = check_generator_folder(folder)
    if folder_check.is_converted(folder):
        from diffusion.published.folder import load_networks

        if info.roi_sides != (folder_check.PUBLISHED_SIDE,):
            raise GeneratorFolderError(
                f"{folder / INFO_FILE}: roi_sides must be [{folder_check.PUBLISHED_SIDE}] for published networks, got "
                f"{list(info.roi_sides)}. {folder_check.FIX_PUBLISHED}"
            )
        published = load_networks(folder, device)
        _check_window(folder, published, info)
        is_asked = folder_check.blends_as_published(folder)
        return LoadedGenerator(published, info, provenance, hash_generator(folder), blends_as_published=is_asked)
    from autoencoder.network import AutoencoderNetwork
    from diffusion.network import DenoisingNetwork
    from diffusion.sampling import TumorSampler

    autoencoder = _load_network(folder / "autoencoder", AutoencoderNetwork, FIX).requires_grad_(False).to(device)
    denoiser = _load_network(folder / "denoiser", DenoisingNetwork, FIX).requires_grad_(False).to(device)
    try:
        scheduler = denoiser.objective.load_scheduler(folder / "scheduler")
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise GeneratorFolderError(f"{folder / 'scheduler'} cannot be loaded ({error}). {FIX}") from error
    sampler = TumorSampler(autoencoder, denoiser, scheduler)
    _check_window(folder, sampler, info)
    if autoencoder.device.type == "cpu":  # its convolutions of few channels take a quarter less time so
        autoencoder.to(memory_format=torch.channels_last_3d)
    return LoadedGenerator(sampler, info, provenance, hash_generator(folder))


def load_autoencoder(folder: Path) -> AutoencoderKL3D:
    """Load an autoencoder's folder (config.json, weights) in evaluation mode; nothing is downloaded or unpickled.

    Raises:
        GeneratorFolderError: If a file is missing, or weights and config do not fit.
    """
    from autoencoder.model import AutoencoderKL3D

    if not (folder / WEIGHTS_FILE).is_file():
        raise GeneratorFolderError(f"{folder} holds no {WEIGHTS_FILE}; other weights are not read. {_FIX_AUTOENCODER}")
    if (folder.parent / folder_check.MODEL_INDEX_FILE).is_file() and folder_check.is_converted(folder.parent):
        raise GeneratorFolderError(
            f"{folder} was converted from published weights, which a training here cannot use. Train an autoencoder "
            "with `difftumor train-autoencoder`, or take builtin:soft-tissue-tiny."
        )
    return _load_network(folder, AutoencoderKL3D, _FIX_AUTOENCODER)


def _load_network(component: Path, network_class: type[NetworkT], how_to_fix: str) -> NetworkT:
    """Make the network that a config asks for, with all tensors of its weights file, in evaluation mode.

    diffusers would leave a tensor that the file lacks at its random start, with a warning only.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from diffusion.network import free_entries

    path = component / WEIGHTS_FILE
    try:
        config = json.loads((component / "config.json").read_text(encoding="utf-8"))
        entries = free_entries(config, str(config.get("_class_name")))
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten
            network = network_class(**{name: value for name, value in entries.items() if not name.startswith("_")})
        tensors = load_file(path)
    except (SafetensorError, AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise GeneratorFolderError(
            f"{path} and {component / 'config.json'} cannot be read: {error}. {how_to_fix}"
        ) from error
    found = {name: value.shape for name, value in tensors.items()}
    expected = {name: value.shape for name, value in network.state_dict().items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise GeneratorFolderError(
            f"{path} does not fit {component / 'config.json'}: {len(wrong)} tensors differ, first {wrong[0]!r}. "
            f"{how_to_fix}"
        )
    network.load_state_dict(tensors)
    return network.eval()


def _check_window(folder: Path, sampler: TumorSampler | PublishedSampler, info: GeneratorInfo) -> None:
    window = sampler.autoencoder.window
    if (window.low_hu, window.high_hu) != (info.low_hu, info.high_hu):
        raise GeneratorFolderError(
            f"The generator of {folder} states the HU window {info.low_hu:g} to {info.high_hu:g}, its autoencoder has "
            f"{window.low_hu:g} to {window.high_hu:g}. {FIX}"
        )


def hash_generator(folder: Path) -> str:
    """Hash weights and configurations to 64 hexadecimal digits; the generator's place and README do not matter."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
