from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from diffusion.generator.provenance import (
    CaseFingerprint,
    Provenance,
    ProvenanceError,
    hash_array,
    hash_content,
    hash_file,
    hash_identifier,
    hash_tumor_mask,
    load_provenance,
    save_provenance,
)


def fingerprint(name: str, *, has_tumor: bool = True) -> CaseFingerprint:
    image = np.random.default_rng(len(name)).integers(-1000, 1000, (4, 5, 6), dtype=np.int16)
    return CaseFingerprint(
        identifier_hash=hash_identifier(name),
        image_hash=hash_array(image),
        tumor_mask_hash=hash_tumor_mask(image > 500) if has_tumor else None,
        tumor_prints=() if has_tumor else None,
    )


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(
        diffusion=(fingerprint("liver_1"), fingerprint("liver_12")),
        autoencoder=(fingerprint("healthy_123", has_tumor=False),),
        fold=2,
        splits_hash="0" * 64,
    )


def test_record_survives_json_and_file(provenance, tmp_path):
    save_provenance(tmp_path / "provenance.json", provenance)
    assert load_provenance(tmp_path / "provenance.json") == provenance
    assert json.loads((tmp_path / "provenance.json").read_text())["format_version"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["provenance.json"]


def test_record_names_no_case(provenance):
    assert "liver" not in json.dumps(asdict(provenance))


def remove(content: dict, name: str) -> dict:
    return {key: value for key, value in content.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: remove(c, "diffusion"), r"missing: \['diffusion'\]"),
        (lambda c: {**c, "extra": 1}, r"unknown: \['extra'\]"),
        (lambda c: {**c, "diffusion": {}}, "diffusion must be a JSON list"),
        (lambda c: {**c, "autoencoder": [3]}, r"autoencoder\[0\] must be a JSON object"),
        (lambda c: {**c, "diffusion": [remove(c["diffusion"][0], "image_hash")]}, r"diffusion\[0\].*image_hash"),
        (lambda c: {**c, "diffusion": [{**c["diffusion"][0], "image_hash": "abc"}]}, r"diffusion\[0\].*64 lower-case"),
        (lambda c: {**c, "diffusion": [{**c["diffusion"][0], "image_hash": 12}]}, r"diffusion\[0\].*64 lower-case"),
        (lambda c: {**c, "fold": "2"}, "fold must be an integer"),
        (lambda c: {**c, "fold": True}, "fold must be an integer"),
        (lambda c: {**c, "fold": -1}, "0 or more"),
        (lambda c: {**c, "splits_hash": None}, "belong together"),
        (lambda c: {"format_version": 99}, "format_version 99, this release reads 2"),
        (lambda c: {**c, "format_version": True}, "format_version True"),
        (lambda c: {**c, "diffusion": [{**c["diffusion"][0], "tumor_prints": None}]}, r"diffusion\[0\].*tumor_prints"),
        (lambda c: [c], "must be a JSON object"),
    ],
)
def test_malformed_records_name_file_and_entry(provenance, change, message, tmp_path):
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps(change(json.loads(json.dumps(asdict(provenance))))))
    with pytest.raises(ProvenanceError, match=message) as caught:
        load_provenance(path)
    assert str(caught.value).startswith(str(path))


def test_cut_off_and_missing_files_are_named(provenance, tmp_path):
    path = tmp_path / "provenance.json"
    with pytest.raises(ProvenanceError, match="cannot be read"):
        load_provenance(path)
    path.write_text(json.dumps(asdict(provenance))[:100], encoding="utf-8")
    with pytest.raises(ProvenanceError, match=r"cannot be read .*copy the whole folder"):
        load_provenance(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProvenanceError, match="cannot be read"):
        load_provenance(path)


def test_scans_that_show_next_to_nothing_have_no_content_hash():
    air = np.full((20, 30, 40), -1000.0, np.float32)
    metal = air.copy()
    metal[3, 4, 5] = metal[4, 5, 6] = 3000.0
    for image in (air, metal, np.zeros_like(air), np.full_like(air, 700.0), metal[:, :, :1]):
        assert hash_content(image) is None


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f8"])
def test_a_content_hash_is_the_same_for_every_stored_type(dtype):
    image = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 7), dtype=np.int16)
    known = hash_content(image.astype(np.float32))
    assert hash_content(image.astype(dtype)) == known is not None
    image[4, 4, 4] = 100 if image[4, 4, 4] < 0 else -100
    assert hash_content(image.astype(dtype)) != known


def test_image_hash_is_the_same_for_every_stored_type():
    image = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5), dtype=np.int16)
    copies = [image.astype(kind) for kind in ("<i2", ">i2", "i4", "f4", ">f4", "f8")]
    copies.append(np.asfortranarray(image))
    copies.append(np.where(image == 0, -0.0, image.astype(np.float64)))
    assert {hash_array(copy) for copy in copies} == {hash_array(image)}


def test_image_hash_tells_values_and_shapes_apart():
    image = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    changed = image.copy()
    changed[1, 2, 3] += 1
    hashes = {hash_array(a) for a in (image, changed, image.reshape(2, 4, 3), image.reshape(24), image[:1])}
    assert len(hashes) == 5


def test_arrays_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match="non-empty array of numbers"):
        hash_array(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="non-empty array of numbers"):
        hash_array(np.array(["a"]))


def test_mask_hash_tells_masks_apart_and_empty_masks_have_none():
    mask = np.zeros((2, 8, 8), dtype=bool)
    assert hash_tumor_mask(mask) is None
    mask[0, 0, 0] = True
    shifted = np.roll(mask, 1, axis=2)
    assert hash_tumor_mask(mask) == hash_tumor_mask(np.asfortranarray(mask))
    assert len({hash_tumor_mask(mask), hash_tumor_mask(shifted), hash_tumor_mask(mask.reshape(8, 2, 8))}) == 3
    with pytest.raises(ValueError, match="must be boolean"):
        hash_tumor_mask(mask.astype(np.uint8))  # pyright: ignore[reportArgumentType]


def test_identifiers_and_files(tmp_path):
    assert hash_identifier("liver_1") == hash_identifier("liver_1") != hash_identifier("liver_2")
    with pytest.raises(ValueError, match="must not be empty"):
        hash_identifier("")
    (tmp_path / "splits_final.json").write_text("[]")
    assert len(hash_file(tmp_path / "splits_final.json")) == 64


def test_reading_provenance_imports_neither_torch_nor_diffusers():
    code = "import sys, diffusion.generator.provenance; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
