"""HU are told from values that look like them by where body, fat and air lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nnunet_difftumor.ct.hounsfield import check_hounsfield, check_organ
from nnunet_difftumor.errors import GeometryMismatchError, NotHounsfieldError

Change = Callable[[np.ndarray], np.ndarray]


def make_scan(seed: int = 0, *, has_fat: bool = True) -> np.ndarray:
    """Air around fat, flesh of 50 HU, an organ of 110 HU and bone, with noise. Shape (24, 48, 48), HU."""
    rng = np.random.default_rng(seed)
    image_hu = np.full((24, 48, 48), -1000.0)
    image_hu[:, 6:-6, 4:-4] = -100 if has_fat else 50
    image_hu[:, 9:-9, 7:-7] = 50
    image_hu[4:20, 14:30, 12:36] = 110
    image_hu[:, 34:38, 20:28] = rng.uniform(200, 1300, (24, 4, 8))
    return np.clip(np.rint(image_hu + rng.normal(0, 15, image_hu.shape)), -1024, 3071)


def pad(image_hu: np.ndarray, value: float) -> np.ndarray:
    padded = image_hu.copy()
    padded[:, :3] = value
    return padded


def put_metal(image_hu: np.ndarray) -> np.ndarray:
    changed = image_hu.copy()
    changed[8:12, 20:24, 20:24] = 3071
    changed[8:12, 22] += np.where(np.arange(48) % 8 < 4, 300, -300)
    return changed


def in_bone(_: np.ndarray) -> np.ndarray:
    """A shaft of cortical bone in muscle, as a crop of 24 voxels a side in a thigh shows it. Shape (24, 24, 24)."""
    rng = np.random.default_rng(0)
    from_axis = np.hypot(*np.indices((24, 24, 24))[1:] - 12.0)
    edge_hu = np.interp(from_axis, [3.0, 5.0, 6.5, 8.5], [60.0, 1500.0, 1500.0, 60.0])
    return np.rint(edge_hu + rng.normal(0, 15, edge_hu.shape))


def in_window(low: float, high: float, top: float) -> Change:
    return lambda image_hu: (np.clip(image_hu, low, high) - low) / (high - low) * top


SOUND: dict[str, Change] = {
    "whole": lambda image_hu: image_hu,
    "without fat": lambda _: make_scan(has_fat=False),
    "in the organ": lambda image_hu: image_hu[6:18, 16:28, 14:34],
    "in the body": lambda image_hu: image_hu[:, 11:-11, 9:-9],
    "in fat and flesh": lambda image_hu: image_hu[:, 7:20, 9:-9],
    "padding -3024": lambda image_hu: pad(image_hu, -3024),
    "padding -2048": lambda image_hu: pad(image_hu, -2048),
    "padding -32768": lambda image_hu: pad(image_hu, -32768),
    "padding 0": lambda image_hu: pad(image_hu, 0),
    "organ with padding": lambda image_hu: pad(image_hu[6:18, 16:28, 14:34], -2000),
    "metal": put_metal,
    "metal in the organ": lambda image_hu: put_metal(image_hu)[6:18, 16:28, 14:34],
    "arterial phase": lambda image_hu: np.where((image_hu > 80) & (image_hu < 150), image_hu + 250, image_hu),
    "in bone": in_bone,
    "little body": lambda image_hu: np.pad(image_hu, ((0, 0), (90, 90), (90, 90)), mode="edge"),
    "air as one number": lambda image_hu: np.where(image_hu < -900, -1000, image_hu),
    "no noise": lambda image_hu: np.where(image_hu < -500, -1000, np.where(image_hu < 80, 40, 110)),
    "interpolated": lambda image_hu: (image_hu[1:] + image_hu[:-1]) / 2 + 0.01,
    "limited to -1000 and 1000": lambda image_hu: np.clip(image_hu, -1000, 1000),
}

FAULTY: dict[str, tuple[Change, str]] = {
    "intercept missing": (lambda image_hu: image_hu + 1024, "without the rescale intercept"),
    "missing, padding -2000": (lambda image_hu: pad(image_hu + 1024, -2000), "without the rescale intercept"),
    "missing, padding -1000": (lambda image_hu: pad(image_hu + 1024, -1000), "without the rescale intercept"),
    "missing, little body": (
        lambda image_hu: np.pad(image_hu + 1024, ((0, 0), (40, 40), (40, 40)), mode="edge"),
        "without the rescale intercept",
    ),
    "missing, in the organ": (lambda image_hu: image_hu[6:18, 16:28, 14:34] + 1024, "without the rescale intercept"),
    "intercept twice": (lambda image_hu: image_hu - 1024, "subtracted twice"),
    "twice, padding -3024": (lambda image_hu: pad(image_hu - 1024, -3024), "subtracted twice"),
    "twice, in the organ": (lambda image_hu: image_hu[6:18, 16:28, 14:34] - 1024, "subtracted twice"),
    "cut to -175 and 250": (lambda image_hu: np.clip(image_hu, -175, 250), "display window"),
    "cut, padding -1000": (lambda image_hu: pad(np.clip(image_hu, -175, 250), -1000), "display window"),
    "0 to 255": (in_window(-160, 240, 255), "grey values"),
    "0 to 255, whole numbers": (lambda image_hu: np.rint(in_window(-160, 240, 255)(image_hu)), "grey values"),
    "0 to 255 of all": (in_window(-1000, 1000, 255), "grey values"),
    "0 to 1000": (in_window(-1000, 1000, 1000), "grey values"),
    "0 to 65535": (in_window(-1024, 3071, 65535), "rescale intercept"),
    "0 to 1": (in_window(-160, 240, 1), "normalised"),
    "SUV": (lambda image_hu: np.random.default_rng(0).gamma(2, 0.5, image_hu.shape) * (image_hu > -300), "SUV"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_scans_pass(name: str) -> None:
    check_hounsfield(SOUND[name](make_scan()), Path("ct.nii.gz"))


@pytest.mark.parametrize("name", FAULTY)
def test_values_that_are_no_hu_are_named(name: str) -> None:
    change, reason = FAULTY[name]
    with pytest.raises(NotHounsfieldError, match=reason) as caught:
        check_hounsfield(change(make_scan()), Path("case_7.nii.gz"))
    assert "case_7.nii.gz" in str(caught.value)


def test_suv_with_a_hot_bladder_is_no_ct() -> None:
    uptake = np.random.default_rng(0).gamma(2, 0.5, (24, 48, 48))
    uptake[:2, :4, :4] = 55.0
    with pytest.raises(NotHounsfieldError, match="SUV"):
        check_hounsfield(uptake, Path("pet.nii.gz"))


def organ_of(image_hu: np.ndarray, start: int) -> np.ndarray:
    """Block of 16 x 16 x 16 voxels from a row on."""
    organ = np.zeros(image_hu.shape, dtype=bool)
    organ[4:20, start : start + 16, 14:30] = True
    return organ


def test_a_mask_on_its_organ_passes() -> None:
    assert check_organ(make_scan(), organ_of(make_scan(), 14), Path("organ.nii.gz")) is None


def test_a_mask_with_little_air_is_told_with_the_share_and_the_flip_that_would_mend_it() -> None:
    scan = make_scan()
    scan[:, :9] = -1000
    warning = check_organ(scan, organ_of(scan, 7), Path("organ.nii.gz"))
    assert warning is not None
    assert "12.5% of the organ in organ.nii.gz" in warning
    assert "flipped along axis 1" in warning


def test_a_mask_of_another_place_is_refused() -> None:
    with pytest.raises(GeometryMismatchError, match=r"37\.5% of the organ in organ\.nii\.gz is air"):
        check_organ(make_scan(), organ_of(make_scan(), 0), Path("organ.nii.gz"))


def test_a_lung_is_an_organ_of_air_and_what_is_outside_the_body_is_none() -> None:
    lung = np.random.default_rng(0).normal(-830, 40, (20, 20, 20))
    assert check_organ(lung, np.ones_like(lung, dtype=bool), Path("lung.nii.gz")) is None
    lung[:8] = -1000
    with pytest.raises(GeometryMismatchError, match=r"40.*below -980"):
        check_organ(lung, np.ones_like(lung, dtype=bool), Path("lung.nii.gz"))
