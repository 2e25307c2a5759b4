"""A generator as a folder: weights, configurations, provenance and model card, checked before use.

Layout: model_index.json, autoencoder/, denoiser/, scheduler/, generator.json, provenance.json, README.md.
Reading the records alone (`check_generator_folder`) imports neither torch nor diffusers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoencoder.engine.files import replaced_folder, write_json
from diffusion.generator import folder_check
from diffusion.generator.folder_check import FIX, LOCAL_SAFETENSORS, WEIGHTS_FILE, GeneratorFolderError
from diffusion.generator.info import GeneratorInfo
from diffusion.generator.model_card import write_model_card
from diffusion.generator.provenance import Provenance, load_provenance, save_provenance
from diffusion.generator.records import read_json, read_record

if TYPE_CHECKING:
    import torch

    from autoencoder.model import AutoencoderKL3D
    from diffusion.pipeline import TumorDiffusionPipeline

INFO_FILE = "generator.json"
PROVENANCE_FILE = "provenance.json"
CARD_FILE = "README.md"
_FIX_AUTOENCODER = "Copy the whole folder again, or train it again with `difftumor train-autoencoder`."


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator ready for use: the pipeline in evaluation mode, what it was made for, the cases that trained it.

    `identity` is what `hash_generator` says of its folder; empty if it came from no folder.
    """

    pipeline: TumorDiffusionPipeline
    info: GeneratorInfo
    provenance: Provenance
    identity: str = ""


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
    from autoencoder.model import AutoencoderKL3D
    from diffusion.pipeline import TumorDiffusionPipeline
    from diffusion.unet import DenoisingUNet3D

    for component, model_class in (("autoencoder", AutoencoderKL3D), ("denoiser", DenoisingUNet3D)):
        _check_weights(folder / component, model_class, FIX)
    try:
        pipeline = TumorDiffusionPipeline.from_pretrained(folder)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise GeneratorFolderError(f"{folder} cannot be loaded ({error}). {FIX}") from error
    _check_window(folder, pipeline, info)
    for model in (pipeline.autoencoder, pipeline.denoiser):
        model.eval().requires_grad_(False)
    pipeline = pipeline.to(device)
    if pipeline.autoencoder.device.type == "cpu":  # its convolutions of few channels take a quarter less time so
        torch.nn.Module.to(pipeline.autoencoder, memory_format=torch.channels_last_3d)
    return LoadedGenerator(pipeline, info, provenance, hash_generator(folder))


def load_autoencoder(folder: Path) -> AutoencoderKL3D:
    """Load an autoencoder's folder (config.json, weights) in evaluation mode; nothing is downloaded or unpickled.

    Raises:
        GeneratorFolderError: If a file is missing, or weights and config do not fit.
    """
    from autoencoder.model import AutoencoderKL3D

    if not (folder / WEIGHTS_FILE).is_file():
        raise GeneratorFolderError(f"{folder} holds no {WEIGHTS_FILE}; other weights are not read. {_FIX_AUTOENCODER}")
    _check_weights(folder, AutoencoderKL3D, _FIX_AUTOENCODER)
    return AutoencoderKL3D.from_pretrained(str(folder), **LOCAL_SAFETENSORS).eval()


def _check_weights(component: Path, model_class: Any, how_to_fix: str) -> None:
    """Compare the tensors of a weights file with those that its config asks for.

    diffusers leaves a tensor that the file lacks at its random start, with a warning only.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    path = component / WEIGHTS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in list(file.keys())}
        config = model_class.load_config(str(component), local_files_only=True)
        with torch.device("meta"):  # shapes only
            model = model_class.from_config(config)
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise GeneratorFolderError(
            f"{path} and {component / 'config.json'} cannot be read: {error} {how_to_fix}"
        ) from error
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise GeneratorFolderError(
            f"{path} does not fit {component / 'config.json'}: {len(wrong)} tensors differ, first {wrong[0]!r}. "
            f"{how_to_fix}"
        )


def _check_window(folder: Path, pipeline: TumorDiffusionPipeline, info: GeneratorInfo) -> None:
    window = pipeline.autoencoder.window
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
