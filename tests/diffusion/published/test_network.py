"""The published denoiser against outputs of the authors' own, computed with random weights of its shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.published.checkpoint import denoiser_tensors, read_checkpoint
from diffusion.published.network import PublishedDenoiser, distance_buckets, rotate


@pytest.fixture(scope="module", autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def loaded(official_format: Path) -> PublishedDenoiser:
    path = official_format / "early.pt"
    model = PublishedDenoiser()
    model.load_state_dict(denoiser_tensors(read_checkpoint(path), path).weights)
    return model.eval()


@pytest.fixture(scope="module")
def untrained() -> PublishedDenoiser:
    return PublishedDenoiser().eval()


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("part", ["ema", "model"])
def test_the_names_are_those_of_the_file(official_format: Path, part):
    stored = read_checkpoint(official_format / "early.pt")[part]
    below = {name.removeprefix("denoise_fn.") for name in stored if name.startswith("denoise_fn.")}
    assert set(PublishedDenoiser().state_dict()) == {name for name in below if "rotary_emb" not in name}


@pytest.mark.parametrize("t", range(4))
def test_the_noise_agrees_at_each_early_step(loaded, official, t):
    predicted = loaded(official["den_x"], official["den_cond"], torch.tensor([t]))
    assert (predicted - official["den_y"][t]).abs().max() < 1e-4


@pytest.mark.parametrize("case", ["den2", "den3"])  # two crops at different steps with h != w; 40 slices
def test_the_noise_agrees_for_other_shapes(loaded, official, case):
    predicted = loaded(official[f"{case}_x"], official[f"{case}_cond"], official[f"{case}_t"])
    assert (predicted - official[f"{case}_y"]).abs().max() < 1e-4


def test_the_network_has_as_many_parameters_as_the_published_one(untrained):
    assert sum(parameter.numel() for parameter in untrained.parameters()) == 6_018_576


def test_distances_share_classes_that_widen():
    firsts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 23, 27]
    distance = torch.arange(60)
    expected = torch.bucketize(distance, torch.tensor(firsts), right=True) - 1
    assert torch.equal(distance_buckets(-distance), expected)
    assert torch.equal(distance_buckets(distance)[1:], expected[1:] + 16)


def test_the_bias_is_that_of_key_minus_query(untrained):
    bias = untrained.time_rel_pos_bias(6)
    table = untrained.time_rel_pos_bias.relative_attention_bias.weight
    assert bias.shape == (8, 6, 6)
    assert torch.equal(bias[:, 1, 4], table[16 + 3])
    assert torch.equal(bias[:, 4, 1], table[3])


def test_rotated_scores_depend_on_the_distance_only():
    query, key = rotate(_random(1, 32).expand(12, 32)), rotate(_random(2, 32)[1:].expand(12, 32))
    scores = query @ key.T
    assert torch.allclose(scores[2:, 2:], scores[:-2, :-2], atol=1e-4)
    assert not torch.allclose(scores[0, :-1], scores[0, 1:], atol=0.1)


def test_rotation_turns_neighbouring_channels():
    tokens = torch.zeros(2, 32)
    tokens[:, 0] = 1.0
    expected = torch.zeros(32)
    expected[0], expected[1] = math.cos(1.0), math.sin(1.0)
    turned = rotate(tokens)
    assert torch.allclose(turned[0], tokens[0])
    assert torch.allclose(turned[1], expected)


def test_any_number_of_slices_is_taken(untrained):
    assert untrained(_random(1, 8, 1, 8, 16), _random(1, 9, 1, 8, 16), torch.tensor([0])).shape == (1, 8, 1, 8, 16)


def test_crops_do_not_influence_each_other(untrained):
    latents, condition, timestep = _random(2, 8, 3, 8, 8), _random(2, 9, 3, 8, 8), torch.tensor([1, 150])
    together = untrained(latents, condition, timestep)
    alone = untrained(latents[1:], condition[1:], timestep[1:])
    assert torch.allclose(together[1:], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("latents", "condition"),
    [
        ((1, 8, 4, 8, 12), (1, 9, 4, 8, 12)),
        ((1, 8, 4, 8, 8), (1, 8, 4, 8, 8)),
        ((1, 8, 4, 8, 8), (2, 9, 4, 8, 8)),
        ((8, 4, 8, 8), (9, 4, 8, 8)),
    ],
)
def test_other_shapes_are_refused(untrained, latents, condition):
    with pytest.raises(ValueError, match="multiples of 32 voxels"):
        untrained(torch.zeros(latents), torch.zeros(condition), torch.tensor([0]))
