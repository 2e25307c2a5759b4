"""Published files are read without running what is in them, and files that are something else are named as such."""

from __future__ import annotations

import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoencoder.published.network import PublishedAutoencoder
from diffusion.published.checkpoint import (
    CheckpointError,
    InertRecord,
    StoredTensor,
    are_equal,
    autoencoder_tensors,
    denoiser_tensors,
    embedded_autoencoder_tensors,
    read_checkpoint,
)
from diffusion.published.network import PublishedDenoiser
from diffusion.published.sampling import published_schedule


def _weights(network: Callable[[], nn.Module], value: float, prefix: str = "") -> OrderedDict[str, Tensor]:
    """Tensors of the network's names and shapes, all with one value, which take little space in a file."""
    shapes = {name: tensor.shape for name, tensor in network().state_dict().items()}
    return OrderedDict((prefix + name, torch.tensor(value).expand(shape)) for name, shape in shapes.items())


def _denoiser(value: float, timesteps: int = 4) -> OrderedDict[str, Tensor]:
    frequencies = {"denoise_fn.mid_temporal_attn.fn.fn.fn.rotary_emb.freqs": torch.ones(16)}
    betas = {"betas": published_schedule(timesteps).betas}
    return OrderedDict(betas | _weights(PublishedDenoiser, value, "denoise_fn.") | frequencies)


@pytest.fixture
def autoencoder_content() -> dict[str, Any]:
    ignored = {"codebook.N": torch.ones(3), "video_discriminator.num_batches_tracked": torch.tensor(7)}
    return {"epoch": 3, "state_dict": OrderedDict(_weights(PublishedAutoencoder, 2.0) | ignored)}


@pytest.fixture
def diffusion_content() -> dict[str, Any]:
    return {"step": 9, "model": _denoiser(1.0), "ema": _denoiser(0.5), "scaler": {}}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def save_one(content: Any) -> Path:
        path = tmp_path / "file.pt"
        torch.save(content, path)
        return path

    return save_one


def _save_pickle(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("any_name/data.pkl", pickled)
    return path


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.folder),)


class EvalPayload(Payload):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, (f"__import__('os').mkdir({str(self.folder)!r})",)


PAYLOADS = [Payload, EvalPayload]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payload_of_these_tests_would_run(tmp_path, payload):
    pickle.loads(pickle.dumps(payload(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_call_instead_of_a_checkpoint_is_not_run(tmp_path, save, payload):
    with pytest.raises(CheckpointError, match="must hold a dict"):
        read_checkpoint(save(payload(tmp_path / "made")))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("place", ["callbacks", "hyper_parameters", "state_dict"])
def test_a_call_within_a_checkpoint_is_not_run(tmp_path, save, autoencoder_content, payload, place):
    inner = autoencoder_content.setdefault(place, {})
    inner["cfg"] = {"deep": [payload(tmp_path / "made")]}
    path = save(autoencoder_content)
    checkpoint = read_checkpoint(path)
    assert isinstance(checkpoint[place]["cfg"]["deep"][0], InertRecord)
    assert autoencoder_tensors(checkpoint, path)["codebook.embeddings"].unique().tolist() == [2.0]
    assert not (tmp_path / "made").exists()


def test_a_call_instead_of_a_tensor_is_not_run(tmp_path, save, autoencoder_content):
    autoencoder_content["state_dict"]["pre_vq_conv.conv.bias"] = Payload(tmp_path / "made")
    path = save(autoencoder_content)
    with pytest.raises(CheckpointError, match=r"pre_vq_conv\.conv\.bias .* got InertRecord"):
        autoencoder_tensors(read_checkpoint(path), path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name", ["collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage", "os\nmkdir"]
)
def test_a_file_cannot_change_what_stands_for_a_name(tmp_path, save, name):
    # a pickle that sets an attribute of the stand-in: global, state (None, {"pickled_name": 1}), build
    pickled = f"c{name}\n(N(S'pickled_name'\nI1\ndtb.".encode()
    with pytest.raises(CheckpointError):
        read_checkpoint(_save_pickle(tmp_path / "changing.pt", pickled))
    path = save({"a": OrderedDict(b=torch.ones(2))})
    stored = read_checkpoint(path)["a"]["b"]
    assert isinstance(stored, StoredTensor)
    assert stored.storage.read().tolist() == [1.0, 1.0]
    assert InertRecord.pickled_name == ""


def test_objects_of_missing_packages_do_not_prevent_loading(monkeypatch, save, autoencoder_content):
    module = types.ModuleType("absent_config_package")
    for name, base in (("DictConfig", object), ("ListConfig", list), ("Flags", dict), ("Names", set)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = module.DictConfig()
    config.content = {"model": module.ListConfig([1, 2]), "flags": module.Flags(a=1), "names": module.Names("ab")}
    config.others = [Any, defaultdict(list, {"a": [1]}), Path("x"), torch.Size([1]), 1 + 2j, {3, 4}]
    autoencoder_content["hyper_parameters"] = {"cfg": config, "list": module.ListConfig([1])}
    autoencoder_content["state_dict"]["post_vq_conv.conv.bias"] = nn.Parameter(torch.full((64,), 3.0))
    path = save(autoencoder_content)
    monkeypatch.delitem(sys.modules, module.__name__)
    checkpoint = read_checkpoint(path)
    assert repr(checkpoint["hyper_parameters"]["cfg"]) == "<inert absent_config_package.DictConfig>"
    assert autoencoder_tensors(checkpoint, path)["post_vq_conv.conv.bias"].tolist() == [3.0] * 64


def test_both_official_fixtures_load_into_the_networks(official_format: Path):
    paths = official_format / "autoencoder.ckpt", official_format / "early.pt"
    PublishedAutoencoder().load_state_dict(autoencoder_tensors(read_checkpoint(paths[0]), paths[0]))
    weights, timesteps = denoiser_tensors(read_checkpoint(paths[1]), paths[1])
    PublishedDenoiser().load_state_dict(weights)
    assert timesteps == 4


@pytest.mark.parametrize(("file", "part"), [("autoencoder.ckpt", "state_dict"), ("early.pt", "ema")])
def test_the_official_fixtures_hold_no_more_than_numbers(official_format: Path, file, part):
    tensors = read_checkpoint(official_format / file)[part]
    assert all(isinstance(value, StoredTensor) for value in tensors.values())


def test_tensors_are_read_as_torch_wrote_them(save, autoencoder_content):
    rng = torch.Generator().manual_seed(0)
    whole = torch.randn(9, 64, generator=rng)
    expected = {
        "post_vq_conv.conv.bias": whole[4],
        "pre_vq_conv.conv.weight": whole[1:].reshape(8, 64, 1, 1, 1),
        "post_vq_conv.conv.weight": whole[:8].T.reshape(64, 8, 1, 1, 1),
        "encoder.final_block.0.bias": whole[0].half(),
        "encoder.final_block.0.weight": whole[0].double(),
    }
    autoencoder_content["state_dict"].update(expected)
    path = save(autoencoder_content)
    tensors = autoencoder_tensors(read_checkpoint(path), path)
    for name, value in expected.items():
        assert torch.equal(tensors[name], value.float()), name
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    PublishedAutoencoder().load_state_dict(tensors)


@pytest.mark.parametrize("timesteps", [4, 200])
def test_averaged_weights_and_number_of_steps_are_taken(save, diffusion_content, timesteps):
    diffusion_content["ema"] = _denoiser(0.5, timesteps)
    path = save(diffusion_content)
    weights, found = denoiser_tensors(read_checkpoint(path), path)
    assert found == timesteps
    assert weights["init_conv.weight"].unique().tolist() == [0.5]
    assert PublishedDenoiser().load_state_dict(weights).missing_keys == []


def test_swapped_files_are_named(save, autoencoder_content, diffusion_content):
    path = save(autoencoder_content)
    with pytest.raises(CheckpointError, match=r"file\.pt is an autoencoder checkpoint.*Swap"):
        denoiser_tensors(read_checkpoint(path), path)
    path = save(diffusion_content)
    with pytest.raises(CheckpointError, match=r"file\.pt is a diffusion checkpoint.*Swap"):
        autoencoder_tensors(read_checkpoint(path), path)


def test_missing_tensors_are_named(save, autoencoder_content, diffusion_content):
    del autoencoder_content["state_dict"]["codebook.embeddings"]
    path = save(autoencoder_content)
    with pytest.raises(CheckpointError, match=r"file\.pt lacks 1 of 69 tensors: codebook\.embeddings\."):
        autoencoder_tensors(read_checkpoint(path), path)
    for name in [name for name in diffusion_content["ema"] if "mid_block1" in name]:
        del diffusion_content["ema"][name]
    path = save(diffusion_content)
    with pytest.raises(CheckpointError, match=r"lacks 10 of .*: denoise_fn\.mid_block1.*, \.\.\.\."):
        denoiser_tensors(read_checkpoint(path), path)


@pytest.mark.parametrize("wrong", [torch.ones(9), torch.ones(8, dtype=torch.int64), [1.0] * 8, None])
def test_another_shape_or_kind_is_named(save, autoencoder_content, wrong):
    autoencoder_content["state_dict"]["pre_vq_conv.conv.bias"] = wrong
    path = save(autoencoder_content)
    with pytest.raises(CheckpointError, match=r"pre_vq_conv\.conv\.bias as floating point of shape \(8,\), got"):
        autoencoder_tensors(read_checkpoint(path), path)


def test_tensors_that_no_published_denoiser_has_are_named(save, diffusion_content):
    diffusion_content["ema"]["denoise_fn.text_embedding.weight"] = torch.ones(2)
    path = save(diffusion_content)
    with pytest.raises(CheckpointError, match=r"1 tensors below denoise_fn\. .*: text_embedding\.weight\."):
        denoiser_tensors(read_checkpoint(path), path)


@pytest.mark.parametrize("content", [{}, {"state_dict": [1]}, {"ema": Path("x")}])
def test_checkpoints_without_the_weights_are_refused(save, content):
    path = save(content)
    with pytest.raises(CheckpointError):
        autoencoder_tensors(read_checkpoint(path), path)
    with pytest.raises(CheckpointError):
        denoiser_tensors(read_checkpoint(path), path)


@pytest.mark.parametrize(
    ("betas", "message"),
    [(None, "lacks the noise schedule"), (torch.linspace(1e-4, 0.02, 200), "schedule of 200 steps that is not")],
)
def test_another_noise_schedule_is_refused(save, diffusion_content, betas, message):
    diffusion_content["ema"]["betas"] = betas
    path = save(diffusion_content)
    with pytest.raises(CheckpointError, match=message):
        denoiser_tensors(read_checkpoint(path), path)


def test_the_embedded_autoencoder_is_compared(save, diffusion_content, autoencoder_content):
    path = save(autoencoder_content)
    own = autoencoder_tensors(read_checkpoint(path), path)

    def embedded() -> dict[str, Tensor] | None:
        return embedded_autoencoder_tensors(read_checkpoint(save(diffusion_content)), path)

    assert embedded() is None
    diffusion_content["ema"].update(_weights(PublishedAutoencoder, 2.0, "vqgan."))
    copy = embedded()
    assert copy is not None
    assert are_equal(copy, own)
    diffusion_content["ema"]["vqgan.post_vq_conv.conv.bias"] = torch.full((64,), 2.5)
    other = embedded()
    assert other is not None
    assert not are_equal(other, own)


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_file_that_is_cut_off_is_named(save, autoencoder_content, kept):
    path = save(autoencoder_content)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"file\.pt cannot be read as a checkpoint: .* cut off.*Download"):
        read_checkpoint(path)


def test_damaged_numbers_are_named(save, autoencoder_content):
    marker = torch.full((64,), 12345.0)
    autoencoder_content["state_dict"]["post_vq_conv.conv.bias"] = marker
    path = save(autoencoder_content)
    bytes_of_marker = marker.numpy().tobytes()
    content = path.read_bytes()
    assert content.count(bytes_of_marker) == 1
    path.write_bytes(content.replace(bytes_of_marker, bytes(len(bytes_of_marker))))
    with pytest.raises(CheckpointError, match=r"post_vq_conv\.conv\.bias in .* cannot be read: .* damaged"):
        autoencoder_tensors(read_checkpoint(path), path)


def test_missing_numbers_are_named(tmp_path, save, autoencoder_content):
    path = save(autoencoder_content)
    without = tmp_path / "without.pt"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(without, "w") as part:
        part.writestr("x/data.pkl", whole.read("file/data.pkl"))
    with pytest.raises(CheckpointError, match="the entry x/data/0 is missing"):
        autoencoder_tensors(read_checkpoint(without), without)


@pytest.mark.parametrize("pickled", [b"", b"garbage", b"\x80\x02}q\x00", b"\x80\x02\x82\x01.", b"N(K\x01Q."])
def test_a_damaged_index_is_named(tmp_path, pickled):
    with pytest.raises(CheckpointError, match=r"its entry data\.pkl is damaged"):
        read_checkpoint(_save_pickle(tmp_path / "damaged.pt", pickled))


def test_files_of_other_formats_are_named(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old\.pt .* before 1\.6"):
        read_checkpoint(path)
    path.write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(CheckpointError, match="no zip archive"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weights.txt", "1")
    with pytest.raises(CheckpointError, match="0 entries"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "nowhere.pt")
