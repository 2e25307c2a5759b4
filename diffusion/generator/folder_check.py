"""Checks that a generator folder is complete and ours, before any library reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusion.generator.records import read_json

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MODEL_INDEX_FILE = "model_index.json"
_PIPELINE_CLASS = "TumorDiffusionPipeline"
PUBLISHED_CLASS = "PublishedSampler"
PUBLISHED_SIDE = 96
"""Side in voxels of the crops that the published networks were trained on."""
PUBLISHED_NETWORKS = {
    "autoencoder": "PublishedAutoencoder",
    "early": "PublishedDenoiser",
    "late": "PublishedDenoiser",
    "early_decoder": "PublishedAutoencoder",
}
"""Networks of a generator that was converted from the published weights, which may lack the last two."""
_NEEDED = ("autoencoder", "early")
CONVERSION_FILE = "conversion.json"
COMPOSITES = ("own", "published")
"""How a converted generator's tissue is blended: as all tissue here, or as its authors do."""
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
FIX_PUBLISHED = "Copy the whole folder again, or convert the weights again with `difftumor convert-weights`."


class GeneratorFolderError(ValueError):
    """A folder is no complete generator of this package, or must not be loaded or written."""


def check_component_classes(folder: Path) -> None:
    """Refuse a folder whose pipeline is incomplete, foreign or could run code when loaded.

    Raises:
        GeneratorFolderError: If a file is missing, a pickle or code, or a component is not of our own class.
    """
    require_files(folder, (MODEL_INDEX_FILE,))
    is_published = is_converted(folder)
    networks = published_networks(folder) if is_published else ()
    files = tuple(f"{name}/{file}" for name in networks for file in ("config.json", WEIGHTS_FILE))
    if is_published:
        require_files(folder, (*files, CONVERSION_FILE), FIX_PUBLISHED)
    else:
        require_files(folder, _PIPELINE_FILES)
    unsafe = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix.lower() in _UNSAFE_SUFFIXES
    )
    if unsafe:
        raise GeneratorFolderError(
            f"{folder} holds files that can run code when they are loaded: {', '.join(unsafe)}. Weights must be "
            f"*.safetensors; remove these files if you trust the rest of the folder."
        )
    if is_published:
        _check_published(folder)
        return
    _check_model_index(folder / MODEL_INDEX_FILE)
    for component, (config, classes) in _COMPONENTS.items():
        path = folder / component / config
        found = _read_object(path).get("_class_name")
        allowed = [class_name for _, class_name in classes]
        if found not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise GeneratorFolderError(f"{path} configures the class {found!r}, expected {expected}. {FIX}")


def is_converted(folder: Path) -> bool:
    """Whether a folder says that it was converted from the published weights; its file must be there."""
    return _read_object(folder / MODEL_INDEX_FILE).get("_class_name") == PUBLISHED_CLASS


def blends_as_published(folder: Path) -> bool:
    """Whether a converted folder asks for the published way of blending instead of ours."""
    composite = _read_object(folder / CONVERSION_FILE).get("composite")
    if composite not in COMPOSITES:
        raise GeneratorFolderError(
            f"{folder / CONVERSION_FILE}: composite must be one of {', '.join(COMPOSITES)}, got {composite!r}. "
            f"{FIX_PUBLISHED}"
        )
    return composite == COMPOSITES[1]


def published_networks(folder: Path) -> tuple[str, ...]:
    """Names of the networks that a converted folder must hold."""
    index = _read_object(folder / MODEL_INDEX_FILE)
    return tuple(name for name in PUBLISHED_NETWORKS if name in _NEEDED or name in index)


def _check_published(folder: Path) -> None:
    index = _read_object(folder / MODEL_INDEX_FILE)
    found = {name: value for name, value in index.items() if name not in _HARMLESS_ENTRIES}
    expected = {name: PUBLISHED_NETWORKS[name] for name in published_networks(folder)}
    configured = {name: _read_object(folder / name / "config.json").get("_class_name") for name in expected}
    if found != expected or configured != expected:
        raise GeneratorFolderError(
            f"{folder} names the networks {found} and configures {configured}, expected {expected}. {FIX_PUBLISHED}"
        )


def require_files(folder: Path, names: tuple[str, ...], fix: str = FIX) -> None:
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
        raise GeneratorFolderError(f"{folder} is no complete generator, it lacks {', '.join(missing)}. {fix}")


def require_whole_weights(folder: Path) -> None:
    """Refuse weights that end before what their head announces, as a broken download leaves them; none are loaded.

    Raises:
        GeneratorFolderError: If a file is cut off or no safetensors.
    """
    from safetensors import SafetensorError, safe_open

    for model in published_networks(folder) if is_converted(folder) else ("autoencoder", "denoiser"):
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
