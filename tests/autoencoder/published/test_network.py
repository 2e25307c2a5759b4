"""The published autoencoder against outputs of the authors' own, computed with random weights of its shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoencoder.published.network import CODES, PublishedAutoencoder, swap_last_axes
from diffusion.published.checkpoint import autoencoder_tensors, read_checkpoint


@pytest.fixture(scope="module", autouse=True)
def _one_thread_without_gradients() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def loaded(official_format: Path) -> PublishedAutoencoder:
    path = official_format / "autoencoder.ckpt"
    model = PublishedAutoencoder()
    model.load_state_dict(autoencoder_tensors(read_checkpoint(path), path))
    return model.eval()


@pytest.fixture
def untrained() -> PublishedAutoencoder:
    model = PublishedAutoencoder().eval()
    rng = torch.Generator().manual_seed(0)
    model.codebook.embeddings.copy_(torch.randn(model.codebook.embeddings.shape, generator=rng))
    return model


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def test_the_names_are_those_of_the_file(official_format: Path):
    stored = read_checkpoint(official_format / "autoencoder.ckpt")["state_dict"]
    statistics = {"codebook.N", "codebook.z_avg"}
    assert set(PublishedAutoencoder().state_dict()) == {*stored} - statistics


@pytest.mark.parametrize("crop", ["enc", "enc2"])
def test_encoding_agrees(loaded, official, crop):
    assert _largest(loaded.encode_unit(official[f"{crop}_x"]) - official[f"{crop}_h"]) < 3e-5


def test_normalised_latents_agree(loaded, official):
    assert _largest(loaded.normalise(official["enc_h"]) - official["enc_h_norm"]) < 1e-6
    low, high = loaded.codebook.limits(official["enc_h"])
    assert (low, high) == (official["cb_min"], official["cb_max"])


@pytest.mark.parametrize(("latents", "codes"), [("enc_h", "enc_idx"), ("dec_z", "dec_idx")])
def test_the_same_codes_are_nearest(loaded, official, latents, codes):
    assert torch.equal(loaded.nearest_codes(official[latents]), official[codes])


@pytest.mark.parametrize(("latents", "image"), [("enc_h", "enc_dec_y"), ("dec_z", "dec_y")])
def test_decoding_agrees(loaded, official, latents, image):
    assert _largest(loaded.decode_unit(official[latents]) - official[image]) < 3e-5


def test_images_in_hu_and_our_axes_give_the_same(loaded, official):
    image_hu = loaded.window.to_hu(official["enc_x"].clamp(-1, 1))
    latents = loaded.encode(swap_last_axes(image_hu))
    expected = loaded.normalise(loaded.encode_unit(official["enc_x"].clamp(-1, 1)))
    assert _largest(latents - expected) < 3e-5
    decoded_hu = loaded.decode(loaded.normalise(official["dec_z"]))
    assert _largest(swap_last_axes(loaded.window.to_unit(decoded_hu)) - official["dec_y"].clamp(-1, 1)) < 3e-5


def test_crops_with_three_different_sides_come_back_as_they_were(untrained):
    image_hu = torch.full((2, 1, 8, 12, 16), 40.0)
    latents = untrained.encode(image_hu)
    assert latents.shape == (2, 8, 2, 4, 3)
    assert untrained.decode(latents).shape == untrained.reconstruct(image_hu).shape == image_hu.shape


def test_air_and_padding_saturate(untrained):
    air = torch.full((1, 1, 8, 8, 8), -1000.0)
    assert torch.equal(untrained.encode(air), untrained.encode(torch.full_like(air, -175.0)))


def test_crops_do_not_influence_each_other(untrained):
    image_hu = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)) * 100
    assert torch.equal(untrained.reconstruct(image_hu)[:1], untrained.reconstruct(image_hu[:1]))


def test_normalising_maps_the_codebook_to_the_unit_range_and_back(untrained):
    codes = untrained.codebook.embeddings
    unit = untrained.normalise(codes)
    assert (unit.min(), unit.max()) == (-1.0, 1.0)
    assert _largest(untrained.denormalise(unit) - codes) < 1e-6


@pytest.mark.parametrize("shape", [(1, 8, 1, 1, 1), (2, 8, 3, 4, 5)])
def test_the_nearest_code_has_the_smallest_distance(untrained, shape):
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    distances = torch.cdist(latents.movedim(1, -1).double(), untrained.codebook.embeddings.double())
    assert torch.equal(untrained.nearest_codes(latents), distances.argmin(dim=-1))


def test_of_equal_codes_the_first_is_taken(untrained):
    untrained.codebook.embeddings[[5, 40, 300, CODES - 1]] = torch.full((8,), 9.0)
    assert untrained.nearest_codes(torch.full((1, 8, 3, 3, 3), 9.0)).unique().tolist() == [5]


def test_codes_are_their_own_nearest_also_under_autocast(untrained):
    latents = untrained.codebook.embeddings[::97].T[None, :, :, None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = untrained.nearest_codes(latents)
    assert torch.equal(found.flatten(), torch.arange(0, CODES, 97))


@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 6), (1, 2, 8, 8, 8), (8, 8, 8), (1, 1, 0, 8, 8)])
def test_images_of_another_shape_are_refused(untrained, shape):
    with pytest.raises(ValueError, match="multiples of 4"):
        untrained.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 9, 2, 2, 2), (8, 2, 2, 2)])
def test_latents_of_another_shape_are_refused(untrained, shape):
    with pytest.raises(ValueError, match=r"shape \(B, 8, f, h, w\)"):
        untrained.decode(torch.zeros(shape))
