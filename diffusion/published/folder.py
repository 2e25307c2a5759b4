"""Published networks in a generator folder: safetensors and configurations, as those of a training here.

Layout: model_index.json, autoencoder/, early/, perhaps late/ and early_decoder/, conversion.json, generator.json,
provenance.json, README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autoencoder.engine.files import write_json
from diffusion.generator.folder_check import (
    FIX_PUBLISHED,
    MODEL_INDEX_FILE,
    PUBLISHED_CLASS,
    PUBLISHED_NETWORKS,
    WEIGHTS_FILE,
    GeneratorFolderError,
    published_networks,
)

if TYPE_CHECKING:
    import torch

    from autoencoder.layers import Network
    from diffusion.published.sampler import PublishedSampler

    NetworkT = TypeVar("NetworkT", bound=Network)

SPACING_MM, MARGIN_VOXELS = 1.0, 8
"""The networks are trained on crops of `PUBLISHED_SIDE` at this spacing, and normalise over all of it."""


def save_networks(folder: Path, sampler: PublishedSampler) -> None:
    """Write the networks of a sampler and what they are into a folder that exists."""
    from safetensors.torch import save_file

    index: dict[str, Any] = {"_class_name": PUBLISHED_CLASS}
    for name in PUBLISHED_NETWORKS:
        network: Network | None = getattr(sampler, name)
        if network is None:
            continue
        index[name] = type(network).__name__
        (folder / name).mkdir()
        write_json(folder / name / "config.json", {"_class_name": index[name]})
        tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(tensors, folder / name / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / MODEL_INDEX_FILE, index)


def load_networks(folder: Path, device: torch.device | str) -> PublishedSampler:
    """Load the networks of a folder, which was checked, in evaluation mode.

    Raises:
        GeneratorFolderError: If weights and configuration of a network do not fit.
    """
    from autoencoder.published.network import PublishedAutoencoder
    from diffusion.published.network import PublishedDenoiser
    from diffusion.published.sampler import PublishedSampler

    classes = {"PublishedAutoencoder": PublishedAutoencoder, "PublishedDenoiser": PublishedDenoiser}
    networks: dict[str, Any] = {
        name: _load(folder / name, classes[PUBLISHED_NETWORKS[name]]).to(device) for name in published_networks(folder)
    }
    return PublishedSampler(**networks)


def _load(component: Path, network_class: type[NetworkT]) -> NetworkT:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = component / WEIGHTS_FILE
    try:
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten
            network = network_class()
        tensors = load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise GeneratorFolderError(f"{path} cannot be read: {error}. {FIX_PUBLISHED}") from error
    expected = {name: value.shape for name, value in network.state_dict().items()}
    found = {name: value.shape for name, value in tensors.items()}
    if wrong := sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)):
        raise GeneratorFolderError(f"{path}: {len(wrong)} tensors differ, first {wrong[0]!a}. {FIX_PUBLISHED}")
    network.load_state_dict(tensors)
    return network.requires_grad_(False).eval()
