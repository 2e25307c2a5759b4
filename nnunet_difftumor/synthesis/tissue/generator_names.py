"""Generators that come with the installation and are named `builtin:NAME` wherever a generator folder is."""

from __future__ import annotations

from pathlib import Path

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.tumor.published_contrasts import HYPODENSE, TRAINING, find_target

BUILTIN_PREFIX = "builtin:"
BUILTIN_NAMES = ("soft-tissue-tiny",)
DEFAULT_GENERATOR = f"{BUILTIN_PREFIX}{BUILTIN_NAMES[0]}"
BUILTIN_ROOT = Path(__file__).parent / "builtin_generators"

_MODEL_INDEX = "model_index.json"


class BuiltinNotInstalledError(ConfigurationError):
    """A generator that is known by name did not come with this installation."""


def is_builtin(text_or_path: str | Path) -> bool:
    """Return True for `builtin:NAME`, known or not."""
    return str(text_or_path).startswith(BUILTIN_PREFIX)


def resolve_generator(text_or_path: str | Path) -> Path:
    """Find the generator that a user named: `builtin:NAME`, its folder, or where `difftumor train-diffusion` put it.

    Whether a path of the user's is a generator is for the loader to say.

    Raises:
        ConfigurationError: If no builtin generator has that name.
        BuiltinNotInstalledError: If it has one, but the weights are not in this installation.
    """
    text = str(text_or_path)
    if not is_builtin(text):
        folder = Path(text_or_path).expanduser()
        inner = folder / "generator"  # what train-diffusion leaves in its output folder
        return inner if (inner / _MODEL_INDEX).is_file() else folder
    name = text.removeprefix(BUILTIN_PREFIX)
    if name not in BUILTIN_NAMES:
        known = ", ".join(f"{BUILTIN_PREFIX}{known}" for known in BUILTIN_NAMES)
        raise ConfigurationError(f"There is no generator '{text}'. Known: {known}; or give a generator folder.")
    folder = BUILTIN_ROOT / name
    if not (folder / _MODEL_INDEX).is_file():
        raise BuiltinNotInstalledError(
            f"{text} is not in this installation: {BUILTIN_ROOT.name}/{name} holds no {_MODEL_INDEX}. Releases carry "
            "the weights, a bare source tree may not. Install a release, or train a generator of your own with "
            "`difftumor train-autoencoder` and `difftumor train-diffusion`, and name its folder: "
            '--generator DIR, or "generator": "DIR" in difftumor.json.'
        )
    return folder


def default_target(generator: str, organ_name: str | None = None) -> str:
    """Choose what looks are drawn from, one of `TARGETS`, where the user did not say.

    A generator of the user's own was trained on the tumours that are wanted: they are the reference. A builtin one
    was trained on tumours of another organ: a published contrast of the organ is better, and where there is none,
    the training tumours that are darker than their surroundings, as tumours in enhanced organs mostly are.
    """
    if not is_builtin(generator):
        return TRAINING
    return (find_target(organ_name) if organ_name else None) or HYPODENSE
