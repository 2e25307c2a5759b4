"""Files that are made to harm, or are damaged in ways that a download does not explain."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoencoder.published.network import PublishedAutoencoder
from diffusion.published.checkpoint import CheckpointError, autoencoder_tensors, denoiser_tensors, read_checkpoint
from diffusion.published.network import PublishedDenoiser


def save(path: Path, **changes: torch.Tensor) -> Path:
    torch.save({"state_dict": {**PublishedAutoencoder().state_dict(), **changes}}, path)
    return path


def rewrite(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))
    return path


def not_finite(path):
    return save(path, **{"post_vq_conv.conv.bias": torch.full((64,), torch.nan)})


def beyond_float32(path):
    return save(path, **{"post_vq_conv.conv.bias": torch.full((64,), 1e300, dtype=torch.float64)})


def big_endian(path):
    return rewrite(save(path), lambda name, content: b"big" if name.endswith("byteorder") else content)


def compressed(path):
    return rewrite(save(path), lambda name, content: content, zipfile.ZIP_DEFLATED)


def wide_memo(path):
    pickled = b"\x80\x02}r" + struct.pack("<I", 50_000_000) + b"."
    return rewrite(save(path), lambda name, content: pickled if name.endswith("data.pkl") else content)


def damaged_directory(path):
    content = bytearray(save(path).read_bytes())
    where = content.rfind(b"PK\x01\x02")
    content[where + 6 : where + 8] = b"\xff\xff"  # the version that is needed to read an entry
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (not_finite, "post_vq_conv.conv.bias.*not finite"),
        (beyond_float32, "post_vq_conv.conv.bias.*not finite"),
        (big_endian, "big-endian"),
        (compressed, "is compressed"),
        (wide_memo, "a table of 50000000 places"),
        (damaged_directory, "its zip directory is damaged"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_harmful_file_is_named_in_one_line(tmp_path, harm, says):
    path = harm(tmp_path / "file.ckpt")
    with pytest.raises(CheckpointError, match=says) as caught:
        autoencoder_tensors(read_checkpoint(path), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schedule_of_endless_steps_is_not_read(tmp_path):
    path = tmp_path / "early.pt"
    weights = {f"denoise_fn.{name}": value for name, value in PublishedDenoiser().state_dict().items()}
    torch.save({"ema": {**weights, "betas": torch.zeros(1).expand(40_000_000)}}, path)
    with pytest.raises(CheckpointError, match="noise schedule of 40000000 steps"):
        denoiser_tensors(read_checkpoint(path), path)
