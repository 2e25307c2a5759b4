"""HU are told from values that look like them by where body, fat and air lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from nnunet_difftumor.ct.hounsfield import check_hounsfield, check_organ
from nnunet_difftumor.ct.reading import read_ct
from nnunet_difftumor.errors import GeometryMismatchError, NotHounsfieldError

REAL = Path(os.environ.get("DIFFTUMOR_REAL_CT", Path(__file__).parents[4] / "shared" / "data"))

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


def in_marrow(image_hu: np.ndarray) -> np.ndarray:
    """The shaft of `in_bone` with fat inside it and none outside."""
    shaft_hu = in_bone(image_hu)
    from_axis = np.hypot(*np.indices(shaft_hu.shape)[1:] - 12.0)
    return np.where(from_axis < 3, shaft_hu - 150, shaft_hu)


def make_foot(seed: int = 0) -> np.ndarray:
    """A foot in a wide field of view: a fiftieth is no air. Shape (16, 160, 160), HU."""
    rng = np.random.default_rng(seed)
    from_axis = np.hypot(*np.indices((16, 160, 160))[1:] - 79.5)
    foot_hu = np.interp(from_axis, [4, 5, 7, 8, 11, 12, 13, 14], [-60, 1200, 1200, 50, 50, -90, -90, -1000])
    return np.rint(foot_hu + rng.normal(0, 15, foot_hu.shape))


def make_lung(seed: int = 0) -> np.ndarray:
    """Inside a lung, with a few vessels. Shape (32, 32, 32), HU."""
    rng = np.random.default_rng(seed)
    return np.rint(np.where(rng.random((32, 32, 32)) < 0.05, 40, -860) + rng.normal(0, 45, (32, 32, 32)))


def make_limb(seed: int = 0) -> np.ndarray:
    """Muscle around a thick bone, without air and fat. Shape (16, 48, 48), HU."""
    rng = np.random.default_rng(seed)
    from_axis = np.hypot(*np.indices((16, 48, 48))[1:] - 23.5)
    limb_hu = np.interp(from_axis, [3, 4, 8, 9], [50, 1500, 1500, 55])
    return np.rint(limb_hu + rng.normal(0, 12, limb_hu.shape))


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
    "fat as one number around": lambda image_hu: np.where(image_hu < 0, -100, image_hu)[:, 12:-12, 10:-10],
    "interpolated": lambda image_hu: (image_hu[1:] + image_hu[:-1]) / 2 + 0.01,
    "in marrow": in_marrow,
    "foot": lambda _: make_foot(),
    "foot, noise": lambda _: make_foot() + np.random.default_rng(1).normal(0, 40, (16, 160, 160)),
    "limb": lambda _: make_limb(),
    "in the lung": lambda _: make_lung(),
    "padding 3071": lambda image_hu: pad(image_hu, 3071),
    "padding 65535": lambda image_hu: pad(image_hu, 65535),
    "in fat as one number": lambda image_hu: np.where(image_hu < -20, -100, image_hu),
    "masked with 0": lambda image_hu: np.where(image_hu < -500, 0, image_hu),
    "low dose": lambda image_hu: image_hu + np.random.default_rng(1).normal(0, 80, image_hu.shape),
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
    "missing, padding 0": (lambda image_hu: pad(image_hu + 1024, 0), "without the rescale intercept"),
    "missing, padding 4095": (lambda image_hu: pad(image_hu + 1024, 4095), "without the rescale intercept"),
    "missing, padding 65535": (lambda image_hu: pad(image_hu + 1024, 65535), "without the rescale intercept"),
    "missing, limb": (lambda _: make_limb() + 1024, "without the rescale intercept"),
    "missing, foot": (lambda _: make_foot() + 1024, "without the rescale intercept"),
    "missing, noise": (
        lambda image_hu: image_hu + 1024 + np.random.default_rng(1).normal(0, 50, image_hu.shape),
        "without the rescale intercept",
    ),
    "twice, limb": (lambda _: make_limb() - 1024, "subtracted twice"),
    "twice, foot": (lambda _: make_foot() - 1024, "subtracted twice"),
    "twice, lung": (lambda _: make_lung() - 1024, "subtracted twice"),
    "twice, padding 0": (lambda image_hu: pad(image_hu - 1024, 0), "subtracted twice"),
    "twice, in the body": (lambda image_hu: image_hu[:, 11:-11, 9:-9] - 1024, "subtracted twice"),
    "twice, noise": (
        lambda image_hu: image_hu - 1024 + np.random.default_rng(1).normal(0, 50, image_hu.shape),
        "subtracted twice",
    ),
    "cut to -200 and 300": (lambda image_hu: np.clip(image_hu, -200, 300), "display window"),
    "cut to -350 and 350": (lambda image_hu: np.clip(image_hu, -350, 350), "display window"),
    "cut, without fat": (lambda _: np.clip(make_scan(has_fat=False), -175, 250), "display window"),
    "0 to 255, without fat": (lambda _: in_window(-160, 240, 255)(make_scan(has_fat=False)), "grey values"),
    "cut below -200": (lambda image_hu: np.maximum(image_hu, -200), "display window"),
    "a mask": (lambda image_hu: (image_hu > -300).astype(float), "a mask"),
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


def test_a_mask_in_fat_is_told_although_no_air_is_there() -> None:
    scan = make_scan()
    scan[:, 22:] = -90
    warning = check_organ(scan, organ_of(scan, 14), Path("kidney.nii.gz"))
    assert warning is not None
    assert "0.0% of the organ in kidney.nii.gz is air in the CT (below -300 HU), 50.0% fat" in warning


def test_a_mask_of_another_place_is_refused() -> None:
    with pytest.raises(GeometryMismatchError, match=r"37\.5% of the organ in organ\.nii\.gz is air"):
        check_organ(make_scan(), organ_of(make_scan(), 0), Path("organ.nii.gz"))


def test_a_lung_is_an_organ_of_air_and_what_is_outside_the_body_is_none() -> None:
    lung = np.random.default_rng(0).normal(-830, 40, (20, 20, 20))
    assert check_organ(lung, np.ones_like(lung, dtype=bool), Path("lung.nii.gz")) is None
    lung[:8] = -1000
    with pytest.raises(GeometryMismatchError, match=r"40.*below -980"):
        check_organ(lung, np.ones_like(lung, dtype=bool), Path("lung.nii.gz"))


@pytest.mark.skipif(not REAL.is_dir(), reason="DIFFTUMOR_REAL_CT names no folder of CTs")
@pytest.mark.parametrize("side_mm", [64, 100])
def test_boxes_of_real_ct_are_hu_and_the_same_boxes_with_a_wrong_intercept_are_not(side_mm: int) -> None:
    rng = np.random.default_rng(side_mm)
    seen, found = 0, 0
    for path in sorted(REAL.glob("*/*_ct.nii.gz")):
        ct = read_ct(path)
        for change in (1024, -1024):
            with pytest.raises(NotHounsfieldError):
                check_hounsfield(ct.image_hu + change, path)
        sides = np.minimum(np.ceil(side_mm / np.array(ct.spacing_mm)).astype(int), ct.image_hu.shape)
        for _ in range(3):
            start = rng.integers(0, np.array(ct.image_hu.shape) - sides + 1)
            box_hu = ct.image_hu[tuple(map(slice, start, start + sides))]
            if (box_hu > -700).mean() < 0.01:  # nothing but air
                continue
            check_hounsfield(box_hu, path)
            with pytest.raises(NotHounsfieldError, match="without the rescale intercept"):
                check_hounsfield(box_hu + 1024, path)
            seen += 1
            with suppress(NotHounsfieldError):
                check_hounsfield(box_hu - 1024, path)
                found -= 1
            found += 1
    assert found >= 0.9 * seen > 0
