"""Published files, drawn at random here, become a generator folder that works as any other."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoencoder.published.network import PublishedAutoencoder
from diffusion.generator.folder_check import GeneratorFolderError, blends_as_published, require_whole_weights
from diffusion.generator.provenance import hash_identifier, load_provenance
from diffusion.generator_folder import check_generator_folder, load_autoencoder, load_generator
from diffusion.published.checkpoint import CheckpointError
from diffusion.published.conversion import PublishedFiles, convert, load_published
from diffusion.published.network import PublishedDenoiser
from diffusion.published.sampler import LARGEST_EARLY_RADIUS, PublishedSampler
from diffusion.published.sampling import published_schedule


def draw(network: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(value.shape, generator=rng) if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }


def save_denoiser(path: Path, timesteps: int, seed: int, embedded: dict[str, torch.Tensor] | None = None) -> Path:
    schedule = published_schedule(timesteps)
    averaged = {f"denoise_fn.{name}": value for name, value in draw(PublishedDenoiser(), seed).items()}
    averaged |= {"betas": schedule.betas, "alphas_cumprod": schedule.alphas_cumprod}
    averaged |= {f"vqgan.{name}": value for name, value in (embedded or {}).items()}
    torch.save({"step": 3, "model": {}, "ema": averaged, "scaler": {}}, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PublishedFiles:
    folder = tmp_path_factory.mktemp("published")
    weights = draw(PublishedAutoencoder(), 0)
    torch.save({"epoch": 1, "state_dict": weights}, folder / "AutoencoderModel.ckpt")
    return PublishedFiles(
        autoencoder=folder / "AutoencoderModel.ckpt",
        early=save_denoiser(folder / "liver_early.pt", 4, 1, embedded=weights),
        late=save_denoiser(folder / "liver_noearly.pt", 200, 2),
    )


@pytest.fixture(scope="module")
def generator(files: PublishedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "generator"
    convert(files, "liver", folder, training_cases=("liver_7", "liver_12"), says=lambda _: None)
    return folder


def test_the_folder_holds_the_same_numbers_and_where_they_come_from(files, generator):
    loaded, published = load_generator(generator), load_published(files)
    assert isinstance(loaded.sampler, PublishedSampler)
    for name in ("autoencoder", "early", "late"):
        kept, given = (getattr(each, name).state_dict() for each in (loaded.sampler, published))
        assert kept.keys() == given.keys()
        assert all(torch.equal(kept[key], given[key]) for key in kept)
    assert loaded.sampler.early_decoder is None  # the file's own is the same
    record = json.loads((generator / "conversion.json").read_text())
    hashes = {each["role"]: each["sha256"] for each in record["files"]}
    assert hashes == {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in files}
    assert "CC BY-NC-ND" in " ".join(record["licences"])
    card = (generator / "README.md").read_text()
    assert all(each in card for each in hashes.values())
    assert (loaded.info.roi_sides, loaded.info.spacing_range_mm) == ((96,), (1.0, 1.0))


def test_training_cases_are_known_by_name_and_the_record_says_that_there_may_be_others(generator):
    provenance = load_provenance(generator / "provenance.json")
    assert {each.identifier_hash for each in provenance.diffusion} == set(map(hash_identifier, ("liver_7", "liver_12")))
    assert not provenance.is_complete


def sample(generator: Path, radius: float, steps: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    side = 32
    grid = torch.stack(torch.meshgrid(*[torch.arange(side) - side / 2.0] * 3, indexing="ij"))
    mask = (grid.square().sum(dim=0).sqrt() <= radius).float()[None, None]
    image_hu = 60.0 + 10.0 * torch.randn(1, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    sampler = load_generator(generator).sampler
    output = sampler(image_hu, mask, generators=[torch.Generator().manual_seed(4)], num_inference_steps=steps)
    return output.tumor_hu, output.reconstruction_hu


def test_large_tumours_are_the_late_networks_and_small_ones_the_early_ones(files, generator, tmp_path):
    convert(replace(files, late=None), "liver", tmp_path / "early_only", says=lambda _: None)
    small, large = LARGEST_EARLY_RADIUS - 1.5, LARGEST_EARLY_RADIUS + 1.5
    assert torch.equal(sample(generator, small)[0], sample(tmp_path / "early_only", small)[0])
    assert not torch.equal(sample(generator, large)[0], sample(tmp_path / "early_only", large)[0])
    assert all(math.isfinite(float(each.sum())) for each in sample(generator, large))


def test_a_crops_tumour_is_the_same_whatever_its_neighbours_are(generator):
    side, sampler = 32, load_generator(generator).sampler
    grid = torch.stack(torch.meshgrid(*[torch.arange(side) - side / 2.0] * 3, indexing="ij")).square().sum(dim=0).sqrt()
    masks = torch.stack([(grid <= radius).float() for radius in (5.0, 13.0, 8.0)])[:, None]
    images_hu = 60.0 + 10.0 * torch.randn(3, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    rngs = [[torch.Generator().manual_seed(seed) for seed in range(3)] for _ in range(2)]
    together = sampler(images_hu, masks, generators=rngs[0])
    for index, rng in enumerate(rngs[1]):
        alone = sampler(images_hu[index : index + 1], masks[index : index + 1], generators=[rng])
        assert torch.equal(alone.reconstruction_hu[0], together.reconstruction_hu[index])
        is_same = (alone.tumor_hu[0] - together.tumor_hu[index]).abs() < 0.01
        assert is_same.float().mean() > 0.99  # a code next to a tie may turn


def test_an_early_model_with_an_autoencoder_of_its_own_decodes_with_it(files, tmp_path):
    other = save_denoiser(tmp_path / "other.pt", 4, 1, embedded=draw(PublishedAutoencoder(), 9))
    told: list[str] = []
    convert(replace(files, early=other, late=None), "liver", tmp_path / "own", says=told.append)
    convert(replace(files, late=None), "liver", tmp_path / "same", says=lambda _: None)
    assert any("of its own" in line for line in told)
    (tumor, host), (same_tumor, same_host) = sample(tmp_path / "own", 6.0), sample(tmp_path / "same", 6.0)
    assert torch.equal(host, same_host)
    assert not torch.equal(tumor, same_tumor)


def test_steps_are_the_networks_own_and_they_calculate_in_float32(generator):
    with pytest.raises(ValueError, match="Leave the number of steps out"):
        sample(generator, 6.0, steps=2)
    sampler = load_generator(generator).sampler
    crop = torch.zeros(1, 1, 32, 32, 32)
    with pytest.raises(ValueError, match="float32 only"):
        sampler(crop, crop + 1.0, generators=[torch.Generator()], autocast_dtype=torch.bfloat16)


def test_a_training_cannot_take_a_converted_autoencoder(generator):
    with pytest.raises(GeneratorFolderError, match=r"converted from published weights.*train-autoencoder"):
        load_autoencoder(generator / "autoencoder")


@pytest.mark.parametrize(
    ("swapped", "says"),
    [
        (lambda files: replace(files, autoencoder=files.early), "is a diffusion checkpoint.*Swap the two files"),
        (lambda files: replace(files, early=files.autoencoder), "is an autoencoder checkpoint.*Swap the two files"),
        (lambda files: replace(files, early=files.late), "200 time steps, and --diffusion wants one of 4"),
        (lambda files: replace(files, late=files.early), "4 time steps, and --late wants one of 200"),
        (lambda files: replace(files, late=files.late.with_name("absent.pt")), "absent.pt cannot be read"),
    ],
    ids=["autoencoder", "diffusion", "late as early", "early as late", "absent"],
)
def test_files_that_are_given_for_one_another_are_named_and_leave_nothing(files, tmp_path, swapped, says):
    with pytest.raises(CheckpointError, match=says):
        convert(swapped(files), "liver", tmp_path / "generator", says=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def look_at(folder: Path) -> None:
    check_generator_folder(folder)
    require_whole_weights(folder)
    blends_as_published(folder)


def lose_weights(folder: Path) -> None:
    (folder / "early" / "diffusion_pytorch_model.safetensors").unlink()


def cut_off(folder: Path) -> None:
    weights = folder / "late" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def rename_class(folder: Path) -> None:
    (folder / "early" / "config.json").write_text('{"_class_name": "Other"}')


def add_network(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "safety_checker": "Other"}))


def add_pickle(folder: Path) -> None:
    (folder / "weights.ckpt").write_bytes(b"")


def blend_otherwise(folder: Path) -> None:
    (folder / "conversion.json").write_text('{"composite": "poisson"}')


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lose_weights, "lacks early/diffusion_pytorch_model.safetensors"),
        (cut_off, "late.diffusion_pytorch_model.safetensors"),
        (rename_class, "Other"),
        (add_network, "safety_checker"),
        (add_pickle, "can run code"),
        (blend_otherwise, "composite must be one of own, published, got 'poisson'"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_damaged_folder_is_refused(generator, tmp_path, harm, says):
    copy = tmp_path / "generator"
    shutil.copytree(generator, copy)
    harm(copy)
    with pytest.raises(GeneratorFolderError, match=says):
        look_at(copy)


def test_an_existing_folder_is_replaced_only_when_asked(files, tmp_path):
    folder = tmp_path / "generator"
    folder.mkdir()
    with pytest.raises(GeneratorFolderError, match="exists already"):
        convert(replace(files, late=None), "liver", folder, says=lambda _: None)
