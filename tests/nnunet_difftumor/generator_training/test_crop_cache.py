from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from diffusion.generator.provenance import CaseFingerprint
from nnunet_difftumor.ct.components import find_tumors
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.ct.reading import CTVolume, read_ct
from nnunet_difftumor.errors import CorruptImageError, GeometryMismatchError
from nnunet_difftumor.generator_training.crop_cache import _store, build_crop_cache, is_cached

AFFINE = np.diag([0.8, 0.8, 2.5, 1.0])
SHAPE = (90, 80, 40)  # (X, Y, Z)


def make_case(folder: Path, name: str = "a", seed: int = 0, ending: str = ".nii.gz") -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = np.full(SHAPE, -1000, np.int16)
    image[10:80, 10:70] = rng.integers(-120, 200, size=(70, 60, 40))
    labels = np.zeros(SHAPE, np.uint8)
    labels[20:70, 20:60, 5:35] = 1
    labels[30:40, 30:42, 10:14] = 2
    labels[60:63, 50:53, 20:21] = 2
    paths = folder / f"{name}_0000{ending}", folder / f"{name}{ending}"
    for path, array in zip(paths, (image, labels), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path.with_suffix("").with_suffix(".nii.gz"))
        if ending != ".nii.gz":
            sitk.WriteImage(sitk.ReadImage(str(path.with_suffix("").with_suffix(".nii.gz"))), str(path))
    return Case(name, *paths)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path / "data")


def test_random_boxes_equal_the_decoded_volume_with_air_around(tmp_path: Path, case: Case) -> None:
    cached = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))[0]
    image = np.asanyarray(nibabel.load(case.image_path).dataobj).T
    labels = np.asanyarray(nibabel.load(case.label_path).dataobj).T
    rng = np.random.default_rng(1)
    padding = 60
    padded_image = np.pad(image, padding, constant_values=-1000)
    padded_labels = np.pad(labels, padding)
    for _ in range(25):
        start = rng.integers(-50, np.array(image.shape) + 20)
        stop = start + rng.integers(1, 40, size=3)
        box = tuple(slice(a + padding, b + padding) for a, b in zip(start, stop, strict=True))
        assert np.array_equal(cached.read_box(start, stop), padded_image[box])
        assert np.array_equal(cached.read_label_box(start, stop), padded_labels[box])


def test_padding_of_the_scanner_becomes_air(tmp_path: Path) -> None:
    image = np.full((20, 20, 20), -3024, np.int16)
    image[5:15, 5:15, 5:15] = 40
    nibabel.save(nibabel.Nifti1Image(image, AFFINE), tmp_path / "a.nii.gz")
    cached = build_crop_cache([Case("a", tmp_path / "a.nii.gz")], tmp_path / "cache")[0]
    assert cached.read_box((0, 0, 0), (1, 1, 1)).item() == -1024


def test_body_voxels_lie_in_the_body(tmp_path: Path, case: Case) -> None:
    cached = build_crop_cache([case], tmp_path / "cache")[0]
    rng = np.random.default_rng(0)
    voxels = np.array([cached.draw_body_voxel(rng) for _ in range(50)])
    values = [cached.read_box(voxel, voxel + 1).item() for voxel in voxels]
    assert min(values) > -300
    assert len(np.unique(voxels, axis=0)) > 40


def test_volume_of_air_still_gives_voxels(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((9, 9, 9), -1000, np.int16), AFFINE), tmp_path / "a.nii.gz")
    cached = build_crop_cache([Case("a", tmp_path / "a.nii.gz")], tmp_path / "cache")[0]
    voxel = cached.draw_body_voxel(np.random.default_rng(0))
    assert ((voxel >= 0) & (voxel < 9)).all()


def test_a_cached_case_is_not_decoded_again(tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))
    monkeypatch.setattr(
        "nnunet_difftumor.generator_training.crop_cache.read_ct", lambda path: pytest.fail("decoded again")
    )
    assert build_crop_cache([case], tmp_path / "cache", tumor_values=(2,)) == first


@pytest.mark.parametrize("which", ["image_path", "label_path"])
def test_a_changed_file_is_decoded_again(tmp_path: Path, case: Case, which: str) -> None:
    before = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))[0]
    path: Path = getattr(case, which)
    array = np.asanyarray(nibabel.load(path).dataobj).copy()
    array[30, 30, 10] += 1
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    assert not is_cached([case], tmp_path / "cache", tumor_values=(2,))
    after = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))[0]
    assert before.fingerprint != after.fingerprint
    box = (10, 30, 30), (11, 31, 31)
    changed = after.read_box(*box) if which == "image_path" else after.read_label_box(*box)
    assert changed.item() == array[30, 30, 10]


def test_a_bad_file_leaves_no_entry_and_every_bad_file_is_named(tmp_path: Path, case: Case) -> None:
    bad = [make_case(tmp_path / "data", name, seed) for seed, name in enumerate(("b", "c"), start=1)]
    for broken in bad:
        broken.image_path.write_bytes(broken.image_path.read_bytes()[:2000])
    with pytest.raises(CorruptImageError) as caught:
        build_crop_cache([bad[0], case, bad[1]], tmp_path / "cache")
    assert "b_0000" in str(caught.value)
    assert "c_0000" in str(caught.value)
    assert [path.name[0] for path in (tmp_path / "cache").iterdir()] == ["a"]
    assert is_cached([case], tmp_path / "cache")


def test_labels_of_another_grid_are_refused(tmp_path: Path, case: Case) -> None:
    labels = np.asanyarray(nibabel.load(case.label_path).dataobj)
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([0.8, 0.8, 3.0, 1.0])), case.label_path)
    with pytest.raises(GeometryMismatchError):
        build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))


def test_several_processes_build_the_same_cache(tmp_path: Path, case: Case) -> None:
    cases = [case, make_case(tmp_path / "data", "b", 1)]
    alone = build_crop_cache(cases, tmp_path / "one", tumor_values=(2,))
    together = build_crop_cache(cases, tmp_path / "two", tumor_values=(2,), workers=2)
    assert [x.fingerprint for x in alone] == [x.fingerprint for x in together]
    assert [x.tumors for x in alone] == [x.tumors for x in together]


def test_the_cache_in_memory_holds_no_voxels(tmp_path: Path, case: Case) -> None:
    cache = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))
    assert len(pickle.dumps(cache)) < 3000


def test_tumours_are_measured_in_mm(tmp_path: Path, case: Case) -> None:
    cached = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))[0]
    large, small = cached.tumors
    assert (large.start, large.stop) == ((10, 30, 30), (14, 42, 40))
    assert large.volume_mm3 == pytest.approx(4 * 12 * 10 * 0.8 * 0.8 * 2.5)
    assert large.radius_mm == pytest.approx((3 * large.volume_mm3 / (4 * np.pi)) ** (1 / 3))
    assert large.centre_mm(cached.spacing_mm) == pytest.approx([11.5 * 2.5, 35.5 * 0.8, 34.5 * 0.8])
    assert large.half_extent_mm(cached.spacing_mm) == pytest.approx([5.0, 4.8, 4.0])
    assert small.start == (20, 50, 60)


def test_specks_under_eight_voxels_are_no_tumours() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[1, 1, 1:8] = True
    mask[5, 5:7, 1:5] = True
    mask[6, 7, 5] = True  # touches by a corner
    (only,) = find_tumors(mask, (1.0, 1.0, 1.0))
    assert only.volume_mm3 == 9
    assert find_tumors(np.zeros((3, 3, 3), bool), (1.0, 1.0, 1.0)) == ()


class TestFingerprints:
    def test_cache_and_files_agree(
        self, tmp_path: Path, case: Case, fingerprint_case: Callable[..., CaseFingerprint]
    ) -> None:
        cached = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))[0]
        assert cached.fingerprint == fingerprint_case(case, (2,))
        assert cached.fingerprint.tumor_mask_hash is not None

    def test_the_file_format_does_not_matter(
        self, tmp_path: Path, case: Case, fingerprint_case: Callable[..., CaseFingerprint]
    ) -> None:
        assert fingerprint_case(make_case(tmp_path / "mha", ending=".mha"), (2,)) == fingerprint_case(case, (2,))

    def test_another_scan_and_another_name_matter(
        self, tmp_path: Path, case: Case, fingerprint_case: Callable[..., CaseFingerprint]
    ) -> None:
        other, renamed = make_case(tmp_path / "other", seed=5), make_case(tmp_path / "renamed", "b")
        assert fingerprint_case(other).image_hash != fingerprint_case(case).image_hash
        assert fingerprint_case(renamed).image_hash == fingerprint_case(case).image_hash
        assert fingerprint_case(renamed).identifier_hash != fingerprint_case(case).identifier_hash

    def test_no_tumour_has_no_mask_hash(self, case: Case, fingerprint_case: Callable[..., CaseFingerprint]) -> None:
        assert fingerprint_case(case, (7,)).tumor_mask_hash is None


@pytest.mark.parametrize("was_changed", [False, True])
def test_two_containers_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_changed: bool) -> None:
    """Both have the same process numbers, and decode the same case at the same time."""
    case, folder = make_case(tmp_path / "data"), tmp_path / "cache"
    if was_changed:
        build_crop_cache([case], folder)
        os.utime(case.image_path, ns=(0, 10**18))
    first_stored, second_began, results = threading.Event(), threading.Event(), []

    def store_and_wait(array: np.ndarray, path: Path) -> None:
        _store(array, path)
        if not first_stored.is_set():
            first_stored.set()
            second_began.wait(60)

    def read_and_tell(path: Path) -> CTVolume:
        if first_stored.is_set():
            second_began.set()
        return read_ct(path)

    monkeypatch.setattr("nnunet_difftumor.generator_training.crop_cache._store", store_and_wait)
    monkeypatch.setattr("nnunet_difftumor.generator_training.crop_cache.read_ct", read_and_tell)

    def use() -> None:
        results.append(build_crop_cache([case], folder)[0].read_box((0, 0, 0), (9, 9, 9)))

    threads = [threading.Thread(target=use) for _ in range(2)]
    threads[0].start()
    first_stored.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(120)
    assert len(results) == 2
    assert np.array_equal(*results)
    assert len(list(folder.iterdir())) == 1
