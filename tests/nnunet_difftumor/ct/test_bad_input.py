"""Malformed input, generated: every file that a user hands in gets a named error, and nothing is left half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion.generator_folder import load_generator
from nnunet_difftumor.cases.splits import read_holdout, read_splits
from nnunet_difftumor.cli import main
from nnunet_difftumor.ct.datasets import find_ct_files, load_raw_dataset
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.generator_training.case_selection import read_hold_out
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.sources import ConfigSource
from nnunet_difftumor.synthesis.scan import read_records

EXAMPLES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
FEW = settings(EXAMPLES, max_examples=25)
SHAPE = (20, 22, 24)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, width=32) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def is_helpful(message: str, *names: str) -> bool:
    """The message is a sentence or more and says what it is about."""
    return len(message) > 30 and any(name in message for name in names)


def refusal_of(call: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """What a call returns, and the message with which it refuses, if it does; any other error fails the test."""
    try:
        return call(*arguments), None
    except DiffTumorError as error:
        return None, str(error)


def affine_of(spacing: float = 2.0) -> np.ndarray:
    return np.diag([spacing, spacing, spacing, 1.0])


def good_ct() -> np.ndarray:
    rng = np.random.default_rng(0)
    image_hu = rng.normal(110, 12, SHAPE).astype(np.int16)
    image_hu[:3] = -1000
    return image_hu


def good_mask() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[4:18, 4:18, 4:20] = 1
    return mask


# Each of these spoils a pair of good files; the strategies' numbers choose how.
def truncate(ct: Path, mask: Path, number: int) -> None:
    victim = (ct, mask)[number % 2]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) * (number % 7) // 8])


def flip_bytes(ct: Path, mask: Path, number: int) -> None:
    victim = (ct, mask)[number % 2]
    content = bytearray(victim.read_bytes())
    for offset in range(60, min(len(content), 400)):
        content[offset] ^= 0xA5
    victim.write_bytes(bytes(content))


def normalise(ct: Path, mask: Path, number: int) -> None:
    low = (-1.0, 0.0, -3.0)[number % 3]
    nibabel.save(nibabel.Nifti1Image(np.linspace(low, 3, good_ct().size).reshape(SHAPE).astype("f4"), affine_of()), ct)


def forget_intercept(ct: Path, mask: Path, number: int) -> None:
    stored = np.where(np.arange(SHAPE[0])[:, None, None] < 3, 0, good_ct() + 1024 + number)
    nibabel.save(nibabel.Nifti1Image(stored.astype(np.int16), affine_of()), ct)


def put_nan(ct: Path, mask: Path, number: int) -> None:
    image_hu = good_ct().astype(np.float32)
    image_hu.flat[number * 7 % image_hu.size] = (np.nan, np.inf, -np.inf)[number % 3]
    nibabel.save(nibabel.Nifti1Image(image_hu, affine_of()), ct)


def add_axis(ct: Path, mask: Path, number: int) -> None:
    victim, values = ((ct, good_ct()), (mask, good_mask()))[number % 2]
    nibabel.save(nibabel.Nifti1Image(np.stack([values] * (2 + number % 3), axis=-1), affine_of()), victim)


def shift_grid(ct: Path, mask: Path, number: int) -> None:
    affine = affine_of()
    affine[number % 3, 3] += 1.0 + number
    nibabel.save(nibabel.Nifti1Image(good_mask(), affine), mask)


def swap_spacing(ct: Path, mask: Path, number: int) -> None:
    order = ((2.0, 2.0, 5.0), (5.0, 2.0, 2.0))
    for victim, values, steps in ((ct, good_ct(), order[0]), (mask, good_mask(), order[1])):
        nibabel.save(nibabel.Nifti1Image(values, np.diag([*steps, 1.0])), victim)


def other_shape(ct: Path, mask: Path, number: int) -> None:
    nibabel.save(nibabel.Nifti1Image(good_mask()[: -1 - number % 5], affine_of()), mask)


def empty_mask(ct: Path, mask: Path, number: int) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), affine_of()), mask)


def float_labels(ct: Path, mask: Path, number: int) -> None:
    nibabel.save(nibabel.Nifti1Image((good_mask() * (0.3 + number % 5 / 10)).astype("f4"), affine_of()), mask)


def several_labels(ct: Path, mask: Path, number: int) -> None:
    labels = good_mask()
    labels[5:8] = 2 + number % 4
    nibabel.save(nibabel.Nifti1Image(labels, affine_of()), mask)


def scan_a_lung(ct: Path, mask: Path, number: int) -> None:
    lung = np.random.default_rng(number).normal(-820, 40, SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(lung, affine_of()), ct)


def remove(ct: Path, mask: Path, number: int) -> None:
    (ct, mask)[number % 2].unlink()


def make_folder(ct: Path, mask: Path, number: int) -> None:
    victim = (ct, mask)[number % 2]
    victim.unlink()
    victim.mkdir()


SPOILERS: tuple[Callable[[Path, Path, int], None], ...] = (
    truncate,
    flip_bytes,
    normalise,
    forget_intercept,
    put_nan,
    add_axis,
    shift_grid,
    swap_spacing,
    other_shape,
    empty_mask,
    float_labels,
    several_labels,
    scan_a_lung,
    remove,
    make_folder,
)


@settings(EXAMPLES, max_examples=90)
@given(spoil=st.sampled_from(SPOILERS), number=st.integers(0, 60), name=st.sampled_from(["ct", "c t", "Bauch_Ü", "肝"]))
def test_synthesize_names_what_is_wrong_and_leaves_nothing(
    nano_generator_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, spoil: Any, number: int, name: str
) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    ct, mask = folder / f"{name}.nii.gz", folder / f"{name}-organ.nii.gz"
    nibabel.save(nibabel.Nifti1Image(good_ct(), affine_of()), ct)
    nibabel.save(nibabel.Nifti1Image(good_mask(), affine_of()), mask)
    spoil(ct, mask, number)
    output = folder / "out"
    words = ["--ct", str(ct), "--organ-mask", str(mask), "--generator", str(nano_generator_folder)]
    status = main(["synthesize", *words, "--output", str(output), "--count", "1"])
    printed = capsys.readouterr().err
    assert status == 1
    assert is_helpful(printed, ct.name, mask.name), printed
    assert "Traceback" not in printed
    assert sorted(path.name for path in folder.iterdir() if path not in (ct, mask)) == []


@EXAMPLES
@given(
    key=st.sampled_from(["channel_names", "labels", "file_ending", "dataset"]),
    value=json_values.filter(lambda value: value not in ({"0": "CT"}, ".nii.gz")),
    is_removed=st.booleans(),
)
def test_a_wrong_dataset_json_is_named(tmp_path: Path, key: str, value: Any, is_removed: bool) -> None:
    folder = tmp_path / "Dataset001_X"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "imagesTr" / "a_0000.nii.gz").touch()
    (folder / "labelsTr" / "a.nii.gz").touch()
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumor": 2}, "file_ending": ".nii.gz"}
    spoilt = {name: old for name, old in content.items() if name != key} if is_removed else {**content, key: value}
    if spoilt == content:
        return
    (folder / "dataset.json").write_text(json.dumps(spoilt))
    dataset, message = refusal_of(load_raw_dataset, folder)
    if message is not None:
        assert is_helpful(message, "dataset.json", "imagesTr", "labelsTr", folder.name)
        return
    assert key == "labels"  # other names and numbers may be right
    assert all(isinstance(number, int) for values in dataset.labels.values() for number in values)


SETTINGS = (
    "generator organ_label tumor_label injection_probability size_classes exophytic steps target contrast_hu "
    "heterogeneity_hu seed healthy_holdout healthy_cases confirmed_healthy num_epochs num_iterations_per_epoch "
    "num_val_iterations_per_epoch acknowledge_identifier_matches acknowledge_autoencoder_overlap recorded_samples"
).split()


@settings(EXAMPLES, max_examples=150)
@given(key=st.sampled_from(SETTINGS) | st.text(min_size=1, max_size=12), value=json_values)
def test_a_wrong_setting_is_named_or_right(key: str, value: Any) -> None:
    source = ConfigSource("difftumor.json", {key: value}, Path("/data"))
    resolved, message = refusal_of(resolve_config, {"background": 0, "liver": 1, "tumor": 2}, [source])
    if message is not None:
        assert is_helpful(message, key, repr(key))
        return
    assert key in SETTINGS
    assert json.loads(json.dumps(resolved.config.to_json())) == resolved.config.to_json()


@FEW
@given(content=json_values | st.text(max_size=30))
def test_files_of_lists_are_read_or_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for read in (read_splits, read_holdout, read_records, lambda file: read_hold_out(None, None, file)):
        _, message = refusal_of(read, path)
        assert message is None or is_helpful(message, path.name)


@FEW
@given(
    key=st.sampled_from(["radius_mm", "centre_mm", "axis_ratios", "rotation", "seed", "contrast_hu"]), value=json_values
)
def test_a_spoilt_record_is_named(tmp_path: Path, key: str, value: Any) -> None:
    from nnunet_difftumor.tumor.spec import TumorSpec

    tumor = TumorSpec(
        centre_mm=(1.0, 2.0, 3.0),
        radius_mm=5.0,
        axis_ratios=(1.0, 1.0, 1.0),
        rotation=(1.0, 0.0, 0.0, 0.0),
        roughness=0.1,
        size_class="small",
        contrast_hu=-20.0,
        seed=3,
    )
    spec = json.loads(json.dumps(asdict(tumor)))
    path = tmp_path / "tumors.json"
    path.write_text(json.dumps({"tumors": [{"spec": {**spec, key: value}}]}))
    read, message = refusal_of(read_records, path)
    if message is not None:
        assert is_helpful(message, key)
        return
    assert json.loads(json.dumps([asdict(record) for record in read])) == [{**spec, key: value}]


def synthesize(folder: Path, generator: Path, output: Path) -> int:
    ct, mask = folder / "ct.nii.gz", folder / "organ.nii.gz"
    nibabel.save(nibabel.Nifti1Image(good_ct(), affine_of()), ct)
    nibabel.save(nibabel.Nifti1Image(good_mask(), affine_of()), mask)
    words = ["--ct", str(ct), "--organ-mask", str(mask), "--generator", str(generator), "--radius-mm", "6", "9"]
    return main(["synthesize", *words, "--output", str(output), "--count", "1", "--contrast-hu", "-60", "-60"])


def test_a_full_disk_leaves_nothing_and_is_named(
    nano_generator_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(source: Path, target: Path, *rest: Any) -> None:
        target.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr("nnunet_difftumor.synthesis.scan.write_ct_like", fill)
    assert synthesize(tmp_path, nano_generator_folder, tmp_path / "out") == 1
    printed = capsys.readouterr().err
    assert "No space left on device" in printed
    assert "Traceback" not in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct.nii.gz", "organ.nii.gz"]


def test_what_the_user_has_is_not_replaced_unasked(nano_generator_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "ct.nii.gz").write_bytes(b"mine")
    assert synthesize(tmp_path, nano_generator_folder, output) == 1
    assert (output / "ct.nii.gz").read_bytes() == b"mine"
    as_file = tmp_path / "file"
    as_file.write_text("mine")
    assert synthesize(tmp_path, nano_generator_folder, as_file) == 1
    assert as_file.read_text() == "mine"


def test_links_and_odd_names_are_followed(nano_generator_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "Ablage für CTs"
    store.mkdir()
    linked = tmp_path / "generator link"
    linked.symlink_to(nano_generator_folder, target_is_directory=True)
    output = tmp_path / "Ergebnis 1"
    (tmp_path / "real output").mkdir()
    output.symlink_to(tmp_path / "real output", target_is_directory=True)
    assert synthesize(store, linked, output) == 0
    assert sorted(path.name for path in (tmp_path / "real output").iterdir()) == [
        "ct.nii.gz",
        "label.nii.gz",
        "montage.png",
        "tumors.json",
    ]


def test_identical_identifiers_are_named(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(good_ct(), affine_of()), tmp_path / folder / "thorax.nii.gz")
    _, message = refusal_of(find_ct_files, tmp_path)
    assert message is not None
    assert is_helpful(message, "'thorax'")
    (tmp_path / "empty").mkdir()
    _, message = refusal_of(find_ct_files, tmp_path / "empty")
    assert message is not None
    assert is_helpful(message, "empty")


@FEW
@given(number=st.integers(0, 10**6), how=st.sampled_from(["cut", "flip", "remove", "json"]))
def test_a_damaged_generator_is_named(
    nano_generator_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, number: int, how: str
) -> None:
    folder = tmp_path / "generator"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(nano_generator_folder, folder)
    ending = ".json" if how == "json" else ".safetensors"
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(ending) and path.name != "provenance.json")
    victim = files[number % len(files)]
    content = victim.read_bytes()
    if how == "remove":
        victim.unlink()
    elif how == "flip":
        victim.write_bytes(bytes(byte ^ 0x5A for byte in content[:64]) + content[64:])
    else:
        victim.write_bytes(content[: number % len(content)])
    with pytest.raises((DiffTumorError, ValueError, OSError)) as caught:
        load_generator(folder)
    message = str(caught.value)
    assert is_helpful(message, victim.name, victim.parent.name), message
