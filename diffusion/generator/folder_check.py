"""Checks that a generator folder is complete and ours, before any library reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusion.generator.records import read_json

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MODEL_INDEX_FILE = "model_index.json"
_PIPELINE_CLASS = "TumorDiffusionPipeline"
_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler", "DDPMScheduler")  # those of the objectives
_COMPONENTS = {
    "autoencoder": ("config.json", [["autoencoder.model", "AutoencoderKL3D"]]),
    "denoiser": ("config.json", [["diffusion.unet", "DenoisingUNet3D"]]),
    "scheduler": ("scheduler_config.json", [["diffusers", name] for name in _SCHEDULERS]),
}
"""Configuration of each component in its folder, and module and name of each class that may stand for it."""

_PIPELINE_FILES = (
    MODEL_INDEX_FILE,
    *(f"{component}/{config}" for component, (config, _) in _COMPONENTS.items()),
    *(f"{model}/{WEIGHTS_FILE}" for model in ("autoencoder", "denoiser")),
)
_HARMLESS_ENTRIES = {"_class_name", "_diffusers_version", "_name_or_path"}
_UNSAFE_SUFFIXES = {
    ".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc", ".so"
}  # fmt: skip
LOCAL_SAFETENSORS = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
"""How diffusers loads what is ours: nothing is downloaded or unpickled."""
FIX = "Copy the whole folder again, or train it again with `difftumor train-diffusion`."


class GeneratorFolderError(ValueError):
    """A folder is no complete generator of this package, or must not be loaded or written."""


def check_component_classes(folder: Path) -> None:
    """Refuse a folder whose pipeline is incomplete, foreign or could run code when loaded.

    Raises:
        GeneratorFolderError: If a file is missing, a pickle or code, or a component is not of our own class.
    """
    require_files(folder, _PIPELINE_FILES)
    unsafe = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix.lower() in _UNSAFE_SUFFIXES
    )
    if unsafe:
        raise GeneratorFolderError(
            f"{folder} holds files that can run code when they are loaded: {', '.join(unsafe)}. Weights must be "
            f"*.safetensors; remove these files if you trust the rest of the folder."
        )
    _check_model_index(folder / MODEL_INDEX_FILE)
    for component, (config, classes) in _COMPONENTS.items():
        path = folder / component / config
        found = _read_object(path).get("_class_name")
        allowed = [class_name for _, class_name in classes]
        if found not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise GeneratorFolderError(f"{path} configures the class {found!r}, expected {expected}. {FIX}")


def require_files(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse a folder that does not exist or lacks one of the files, named relative to it.

    Raises:
        GeneratorFolderError: If the folder or a file is missing; the message names all that are.
    """
    if not folder.is_dir():
        raise GeneratorFolderError(
            f"{folder} is no folder. Name the generator folder that `difftumor train-diffusion` wrote "
            f"(OUTPUT/generator)."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise GeneratorFolderError(f"{folder} is no complete generator, it lacks {', '.join(missing)}. {FIX}")


def require_whole_weights(folder: Path) -> None:
    """Refuse weights that end before what their head announces, as a broken download leaves them; none are loaded.

    Raises:
        GeneratorFolderError: If a file is cut off or no safetensors.
    """
    from safetensors import SafetensorError, safe_open

    for model in ("autoencoder", "denoiser"):
        path = folder / model / WEIGHTS_FILE
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise GeneratorFolderError(f"{path} is cut off or no safetensors file ({error}). {FIX}") from error


def _check_model_index(path: Path) -> None:
    index = _read_object(path)
    if index.get("_class_name") != _PIPELINE_CLASS:
        raise GeneratorFolderError(
            f"{path} names the pipeline {index.get('_class_name')!r}, expected {_PIPELINE_CLASS!r}. This is not a "
            f"generator of nnunet-difftumor."
        )
    components = {name: value for name, value in index.items() if name not in _HARMLESS_ENTRIES}
    for name in sorted(components.keys() | _COMPONENTS.keys()):
        _, allowed = _COMPONENTS.get(name, ("", []))
        if components.get(name) not in allowed:
            raise GeneratorFolderError(
                f"{path} names {components.get(name)!r} as {name!r}, expected {allowed or 'nothing'}. Loading it "
                f"would run foreign code, so it is refused. {FIX}"
            )


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path, GeneratorFolderError, FIX)
    if not isinstance(content, dict):
        raise GeneratorFolderError(f"{path} must hold a JSON object, got {type(content).__name__}. {FIX}")
    return content
