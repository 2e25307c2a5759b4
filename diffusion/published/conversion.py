"""From the published files to a generator folder; nothing in the files is run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from autoencoder.engine.files import replaced_folder, write_json
from autoencoder.published.network import PublishedAutoencoder
from diffusion.generator.folder_check import COMPOSITES, CONVERSION_FILE, PUBLISHED_SIDE, GeneratorFolderError
from diffusion.generator.info import GeneratorInfo
from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_identifier, save_provenance
from diffusion.generator_folder import CARD_FILE, INFO_FILE, PROVENANCE_FILE
from diffusion.published.checkpoint import (
    CheckpointError,
    are_equal,
    autoencoder_tensors,
    denoiser_tensors,
    embedded_autoencoder_tensors,
    read_checkpoint,
)
from diffusion.published.folder import MARGIN_VOXELS, SPACING_MM, save_networks
from diffusion.published.network import PublishedDenoiser
from diffusion.published.sampler import EARLY_TIMESTEPS, LATE_TIMESTEPS, PublishedSampler

PRESET = "published"
LICENCES = (
    "The code of DiffTumor is licensed CC BY-NC-ND 4.0, and its authors state pending patents on the method.",
    "Their weight repositories on Hugging Face are tagged Apache-2.0.",
    "Whether you may use the weights, and for what, is for you to decide; this conversion grants nothing.",
)
"""What is known of the licences of the published files."""

NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """The files that one generator is made from; `late` may be missing."""

    autoencoder: Path
    early: Path
    late: Path | None = None

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        """Yield role and path of each file."""
        named = (("autoencoder", self.autoencoder), ("early", self.early), ("late", self.late))
        return ((role, path) for role, path in named if path is not None)


def convert(
    files: PublishedFiles,
    organ: str,
    folder: Path,
    *,
    training_cases: tuple[str, ...] = (),
    composite: str = COMPOSITES[0],
    replace: bool = False,
    says: Callable[[str], None] = print,
) -> None:
    """Write a generator folder from published files, complete or not at all.

    Args:
        training_cases: Identifiers of the cases that trained the diffusion model, as far as they are known.
        composite: One of `COMPOSITES`.
        says: Told what is being done.

    Raises:
        CheckpointError: If a file is missing, cut off, or not what it is given for.
        GeneratorFolderError: If the folder exists and `replace` is False.
    """
    if folder.exists() and not replace:
        raise GeneratorFolderError(f"{folder} exists already. Choose another --output, or add --overwrite.")
    sampler = load_published(files, says)
    provenance = Provenance(
        diffusion=tuple(
            CaseFingerprint(identifier_hash=hash_identifier(each), image_hash=None) for each in training_cases
        ),
        autoencoder=(),
        is_complete=False,
    )
    info = GeneratorInfo(
        roi_sides=(PUBLISHED_SIDE,),
        spacing_range_mm=(SPACING_MM, SPACING_MM),
        margin_voxels=MARGIN_VOXELS,
        preset=PRESET,
        data_note=f"{organ} tumours; converted from weights published with DiffTumor (CVPR 2024)",
    )
    record: dict[str, Any] = {"organ": organ, "composite": composite, "licences": list(LICENCES), "files": []}
    for role, path in files:
        says(f"Hashing {path.name}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        record["files"].append({"role": role, "name": path.name, "bytes": path.stat().st_size, "sha256": digest})
    with replaced_folder(folder) as unfinished:
        save_networks(unfinished, sampler)
        write_json(unfinished / CONVERSION_FILE, record)
        write_json(unfinished / INFO_FILE, asdict(info))
        save_provenance(unfinished / PROVENANCE_FILE, provenance)
        (unfinished / CARD_FILE).write_text(_write_card(record, len(training_cases)), encoding="utf-8")


def load_published(files: PublishedFiles, says: Callable[[str], None] = lambda _: None) -> PublishedSampler:
    """Read published files and make their networks, in evaluation mode.

    Raises:
        CheckpointError: If a file is missing, cut off, or not what it is given for.
    """
    says(f"Reading {files.autoencoder.name}")
    weights = autoencoder_tensors(read_checkpoint(files.autoencoder), files.autoencoder)
    early, embedded = _read_denoiser(files.early, EARLY_TIMESTEPS, "--diffusion", says)
    late = None
    if files.late is not None:
        late, _ = _read_denoiser(files.late, LATE_TIMESTEPS, "--late", says)
    decoder = None
    if embedded is not None and not are_equal(embedded, weights):
        says(f"{files.early.name} holds an autoencoder of its own, which differs and decodes its tumours")
        decoder = _autoencoder(embedded, files.early)
    return PublishedSampler(_autoencoder(weights, files.autoencoder), early, late, decoder)


def _autoencoder(weights: Mapping[str, Tensor], path: Path) -> PublishedAutoencoder:
    """The network; a codebook of one value, by whose range nothing can be divided, is refused."""
    low, high = weights["codebook.embeddings"].aminmax()
    if not bool(low < high):
        raise CheckpointError(f"codebook.embeddings in {path} holds one value only, so it draws nothing.")
    return _network(PublishedAutoencoder(), weights)


def _read_denoiser(
    path: Path, wanted: int, option: str, says: Callable[[str], None]
) -> tuple[PublishedDenoiser, dict[str, Tensor] | None]:
    """The network of a diffusion model, and the autoencoder that its file carries along, if it is whole."""
    says(f"Reading {path.name}")
    checkpoint = read_checkpoint(path)
    weights, timesteps = denoiser_tensors(checkpoint, path)
    if timesteps != wanted:
        raise CheckpointError(
            f"{path} is a diffusion model of {timesteps} time steps, and {option} wants one of {wanted}. Those of "
            f"early tumours have {EARLY_TIMESTEPS} (ORGAN_early.pt), the others {LATE_TIMESTEPS} (ORGAN_noearly.pt)."
        )
    return _network(PublishedDenoiser(), weights), embedded_autoencoder_tensors(checkpoint, path)


def _network(network: NetworkT, weights: Mapping[str, Tensor]) -> NetworkT:
    network.load_state_dict(dict(weights))
    return network.requires_grad_(False).eval()


def _write_card(record: dict[str, Any], named_cases: int) -> str:
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("README.md.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(template).render(**record, named_cases=named_cases)
