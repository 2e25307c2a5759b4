from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from autoencoder.engine.settings import TrainingPreset
from autoencoder.presets import AUTOENCODER_PRESETS
from diffusion.generator.info import EdgeStatistics
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.errors import DatasetError, MissingLabelError
from nnunet_difftumor.generator_training import batches, pasted_lesions
from nnunet_difftumor.generator_training.augment import (
    add_faint_blobs,
    cut_at_border,
    jitter_mask,
    narrow_window,
    shift_soft_tissue,
    shift_tumor,
    turn,
)
from nnunet_difftumor.generator_training.batches import (
    SPACING_RANGE_MM,
    AutoencoderCrops,
    TumorCrops,
    divide_by_size,
    heldout_image_crops,
    heldout_tumor_crops,
    usable_tumors,
)
from nnunet_difftumor.generator_training.crop_cache import CachedCase, build_crop_cache
from nnunet_difftumor.generator_training.crops import (
    Crop,
    centred_tumor_crop,
    draw_tumor_crop,
    rim_of,
    sample_tumor_crop,
)
from nnunet_difftumor.generator_training.pasted_lesions import draw_pasted_lesion
from nnunet_difftumor.generator_training.tumor_statistics import measure_training_tumors
from nnunet_difftumor.tumor.edge import Edge

Cases = tuple[CachedCase, ...]
SPACING_MM = (3.0, 1.0, 1.0)
SHAPE = (40, 110, 110)  # (D, H, W)
MUSCLE_HU, TUMOR_HU, FAT_HU = 60, 20, -100


def ball(centre_mm: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    axes = [
        np.arange(size) * spacing - centre for size, spacing, centre in zip(SHAPE, SPACING_MM, centre_mm, strict=True)
    ]
    d, h, w = np.ix_(*axes)
    return d**2 + h**2 + w**2 <= radius_mm**2


def preset_of(sides: tuple[int, ...], voxels: int, probabilities: tuple[float, ...] | None = None) -> TrainingPreset:
    probabilities = probabilities or (1 / len(sides),) * len(sides)
    nano = AUTOENCODER_PRESETS["nano"]
    return replace(nano, crop_sides=sides, crop_probabilities=probabilities, voxels_per_batch=voxels)


def save_case(folder: Path, name: str, image: np.ndarray, labels: np.ndarray) -> Case:
    affine = np.diag([*SPACING_MM[::-1], 1.0])
    for suffix, array in (("_0000", image.astype(np.int16)), ("", labels.astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(array.T, affine), folder / f"{name}{suffix}.nii.gz")
    return Case(name, folder / f"{name}_0000.nii.gz", folder / f"{name}.nii.gz")


def make_patient(folder: Path, name: str, radii_mm: tuple[float, ...], seed: int = 0) -> Case:
    """A cylinder of muscle in fat in air, with balls as tumours."""
    rng = np.random.default_rng(seed)
    h, w = np.ix_(np.arange(SHAPE[1]) - 55, np.arange(SHAPE[2]) - 55)
    slices = np.where(h**2 + w**2 < 45**2, MUSCLE_HU, np.where(h**2 + w**2 < 52**2, FAT_HU, -1000))
    image = np.repeat(slices[None], SHAPE[0], axis=0).astype(float)
    labels = np.zeros(SHAPE, np.uint8)
    for number, radius_mm in enumerate(radii_mm):
        tumor = ball((60.0, 40.0 + 25 * number, 55.0), radius_mm)
        image[tumor], labels[tumor] = TUMOR_HU, 2
    image[image > -200] += rng.normal(0, 3, size=(image > -200).sum())
    return save_case(folder, name, np.rint(image), labels)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    folder = tmp_path_factory.mktemp("data")
    cases = [
        make_patient(folder, "a", (18.0,)),
        make_patient(folder, "b", (7.0, 4.0), 1),
        make_patient(folder, "c", ()),
    ]
    return build_crop_cache(cases, folder / "cache", tumor_values=(2,))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """Cases with one tumour each."""
    folder = tmp_path_factory.mktemp("single")
    cases = [make_patient(folder, f"r{radius_mm:g}", (radius_mm,)) for radius_mm in (3.0, 8.0, 25.0)]
    return build_crop_cache(cases, folder / "cache", tumor_values=(2,))


class TestCrop:
    def test_a_linear_image_is_sampled_within_a_twentieth_of_a_voxel(self, tmp_path: Path) -> None:
        d, h, w = np.indices(SHAPE)
        image = 10 * d + 3 * h - 4 * w  # in HU per voxel: 10/3, 3 and -4 HU a mm
        case = save_case(tmp_path, "ramp", image, np.zeros(SHAPE))
        cached = build_crop_cache([case], tmp_path / "cache")[0]
        offsets = np.indices((8, 8, 8)) - 3.5
        for spacing_mm in (1.5, 2.7, 5.0):
            crop = Crop(cached, 8, spacing_mm, (60.0, 55.0, 50.0))
            d_mm, h_mm, w_mm = (
                centre + offset * spacing_mm for centre, offset in zip((60, 55, 50), offsets, strict=True)
            )
            error_hu = np.abs(crop.image_hu() - (10 / 3 * d_mm + 3 * h_mm - 4 * w_mm))
            assert error_hu.max() < 0.05 * spacing_mm * 4  # the steepest slope is 4 HU a mm

    def test_outside_the_volume_is_air(self, cache: Cases) -> None:
        crop = Crop(cache[0], 16, 2.0, (-100.0, 55.0, 55.0))
        assert (crop.image_hu() == -1000).all()
        assert not crop.tumor_mask().any()

    def test_a_crop_across_the_border_has_both(self, cache: Cases) -> None:
        image_hu = Crop(cache[0], 16, 2.0, (0.0, 55.0, 55.0)).image_hu()
        assert (image_hu[:6] == -1000).all()
        assert (image_hu[9:] > 0).all()

    @pytest.mark.parametrize("spacing_mm", [1.5, 2.0, 3.0])
    def test_the_mask_keeps_its_volume(self, cache: Cases, spacing_mm: float) -> None:
        case = cache[0]
        mask = Crop(case, 48, spacing_mm, (60.0, 40.0, 55.0)).tumor_mask()
        assert mask.sum() * spacing_mm**3 == pytest.approx(case.tumors[0].volume_mm3, rel=0.08)

    @pytest.mark.parametrize("side", [16, 32, 48, 64])
    def test_a_tumour_crop_holds_the_whole_tumour_with_surroundings(self, single: Cases, side: int) -> None:
        rng = np.random.default_rng(side)
        for case in single:
            for _ in range(12):
                crop = draw_tumor_crop(case, case.tumors[0], side, (1.5, 6.0), rng)
                crop, mask = sample_tumor_crop(crop, case.tumors[0])
                found = np.argwhere(mask)
                margin = min(5, side // 8)
                assert len(found) > 0
                assert found.min() >= margin
                assert found.max() < side - margin
                if case.tumors[0].radius_mm > 5:
                    assert mask.sum() * crop.spacing_mm**3 == pytest.approx(case.tumors[0].volume_mm3, rel=0.25)

    def test_a_mask_that_vanishes_is_drawn_again_at_a_finer_spacing(self, cache: Cases) -> None:
        case = cache[1]
        tumor = case.tumors[1]  # 4 mm radius
        centre_mm = tuple(tumor.centre_mm(case.spacing_mm) + 8.0)  # between the samples
        coarse = Crop(case, 16, 16.0, centre_mm)
        assert not coarse.tumor_mask().any()
        finer, mask = sample_tumor_crop(coarse, tumor)
        assert finer.spacing_mm < 16.0
        assert mask.any()

    def test_centred_crops_are_coarser_for_tumours_that_do_not_fit(self, cache: Cases) -> None:
        large, small = cache[0], cache[1]
        assert centred_tumor_crop(small, small.tumors[0], 48, 1.5).spacing_mm == 1.5
        assert centred_tumor_crop(large, large.tumors[0], 32, 1.5).spacing_mm == pytest.approx(19.5 / 4, rel=0.1)

    def test_the_rim_lies_2_to_4_voxels_outside(self) -> None:
        mask = np.zeros((20, 20, 20), dtype=bool)
        mask[9:11, 9:11, 9:11] = True
        around = np.abs(np.indices(mask.shape) - 9.5).max(axis=0)  # 0.5 in the mask
        np.testing.assert_array_equal(rim_of(mask), (around > 2) & (around < 5))


class TestBatches:
    def test_a_batch_depends_on_seed_and_index_only(self, cache: Cases) -> None:
        for make in (AutoencoderCrops, TumorCrops):
            first, again, other = (
                make(cache, preset_of((16, 32), 65536), 3),
                make(cache, preset_of((16, 32), 65536), 3),
                make(cache, preset_of((16, 32), 65536), 4),
            )
            _ = again[0]
            for key, value in first[5].items():
                assert torch.equal(value, again[5][key])
                assert value.shape != first[6][key].shape or not torch.equal(value, first[6][key])
                assert value.shape != other[5][key].shape or not torch.equal(value, other[5][key])

    def test_a_batch_has_one_side_and_never_one_crop(self, cache: Cases) -> None:
        crops = AutoencoderCrops(cache, preset_of((16, 32), 2 * 32**3), 0)
        shapes = {tuple(crops[i]["image_hu"].shape) for i in range(8)}
        assert shapes == {(16, 1, 16, 16, 16), (2, 1, 32, 32, 32)}
        assert len(AutoencoderCrops(cache, preset_of((32,), 100), 0)[0]["image_hu"]) == 2

    def test_sides_follow_their_probabilities(self, cache: Cases) -> None:
        crops = AutoencoderCrops(cache, preset_of((16, 32), 8192, (0.0, 1.0)), 0)
        assert {crops[i]["image_hu"].shape[-1] for i in range(5)} == {32}

    def test_the_global_random_streams_are_left_alone(self, cache: Cases) -> None:
        before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        _ = TumorCrops(cache, preset_of((16,), 8192), 0)[0], AutoencoderCrops(cache, preset_of((16,), 8192), 0)[0]
        assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
        assert torch.equal(torch_before, torch.get_rng_state())

    def test_masks_are_binary_and_never_empty(self, cache: Cases) -> None:
        crops = TumorCrops(cache, preset_of((16, 32), 2 * 32**3), 0)
        for index in range(12):
            batch = crops[index]
            mask = batch["tumor_mask"]
            assert mask.dtype == batch["image_hu"].dtype == torch.float32
            assert mask.shape == batch["image_hu"].shape
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
            assert (mask.flatten(1).sum(dim=1) > 0).all()
            assert torch.isfinite(batch["image_hu"]).all()

    def test_mask_and_image_are_turned_alike(self, cache: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batches, "SHARES", dict.fromkeys(batches.SHARES, 0.0))  # crops as they are
        crops = TumorCrops(cache[:1], preset_of((48,), 2 * 48**3), 0)
        for index in range(4):
            batch = crops[index]
            for image_hu, mask in zip(batch["image_hu"], batch["tumor_mask"], strict=True):
                inside = image_hu[mask > 0]
                assert inside.std() < 12  # one tissue: noise and a little of the rim
                muscle = image_hu[(mask == 0) & (image_hu > inside.mean() + 20)]
                assert muscle.mean() - inside.mean() == pytest.approx(MUSCLE_HU - TUMOR_HU, abs=10)

    @pytest.mark.parametrize("kind", ["plain", "jitter", "pasted"])
    def test_fat_under_a_label_is_no_tumour(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        """The outline reaches 5 mm beyond a tumour, into fat."""
        monkeypatch.setattr(batches, "SHARES", {name: float(name == kind) for name in batches.SHARES})
        image = np.full(SHAPE, MUSCLE_HU, dtype=float)
        image[:, 72:] = FAT_HU
        image[ball((60.0, 60.0, 55.0), 12.0)] = TUMOR_HU
        sloppy = save_case(tmp_path, "sloppy", image, np.where(ball((60.0, 65.0, 55.0), 12.0), 2, 0))
        host = save_case(tmp_path, "host", np.full(SHAPE, MUSCLE_HU), np.zeros(SHAPE))
        cases = build_crop_cache([sloppy, host], tmp_path / "cache", tumor_values=(2,))
        crops = TumorCrops(cases, preset_of((32,), 4 * 32**3), 0, spacing_range_mm=(1.5, 2.0))
        for batch in (crops[0], crops[1], *heldout_tumor_crops(cases, 32)):
            inside_hu = batch["image_hu"][batch["tumor_mask"] > 0]
            assert (inside_hu < -60.0).float().mean() < 0.03  # a jittered outline may touch it
            assert inside_hu.mean() > 0.0 or kind == "pasted"  # a pasted one has a contrast of its own

    def test_early_only_takes_small_tumours(self, cache: Cases) -> None:
        tumors = [t.radius_mm for _, found in usable_tumors(cache, early_only=True) for t in found]
        assert len(tumors) == 2
        assert max(tumors) < 10
        with pytest.raises(MissingLabelError, match="no early tumour"):
            TumorCrops(cache[:1], preset_of((16,), 8192), 0, early_only=True)

    def test_no_tumour_and_no_case_are_refused(self, cache: Cases) -> None:
        with pytest.raises(MissingLabelError, match="--tumor-label"):
            TumorCrops(cache[2:], preset_of((16,), 8192), 0)
        with pytest.raises(DatasetError, match="No case"):
            AutoencoderCrops((), preset_of((16,), 8192), 0)

    def test_heldout_crops_are_fixed(self, cache: Cases) -> None:
        for cut in (heldout_image_crops, heldout_tumor_crops):
            for first, again in zip(cut(cache, 32), cut(cache, 32), strict=True):
                assert all(torch.equal(first[key], again[key]) for key in first)
        assert len(heldout_image_crops(cache, 32)) == 3
        tumors = heldout_tumor_crops(cache, 32)
        assert [len(batch["image_hu"]) for batch in tumors] == [1, 2]
        assert tumors[0]["tumor_mask"][0, 0, 16, 16, 16] == 1  # centred


class TestAugmentation:
    def test_soft_tissue_shift_leaves_fat_and_air(self) -> None:
        image_hu = np.array([-1000.0, -100.0, -40.0, -20.0, 0.0, 60.0], np.float32)
        change_hu = shift_soft_tissue(image_hu, np.random.default_rng(0)) - image_hu
        assert -30 <= change_hu[-1] <= 100
        assert change_hu == pytest.approx(change_hu[-1] * np.array([0, 0, 0, 0.5, 1, 1]), abs=1e-3)

    def test_orientations_are_the_48_of_a_cube(self) -> None:
        rng = np.random.default_rng(0)
        cube = np.arange(27).reshape(3, 3, 3)
        turned = [turn((cube, cube + 1), rng) for _ in range(800)]
        assert all((other == one + 1).all() for one, other in turned)
        seen = {one.tobytes() for one, _ in turned}
        assert len(seen) == 48

    def test_blobs_are_faint_and_local(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(10):
            change = np.abs(add_faint_blobs(np.zeros((48, 48, 48), np.float32), rng))
            assert 0 < change.max() <= 4 * 60
            assert (change > 0).mean() < 0.2

    def test_narrow_windows_keep_soft_tissue(self) -> None:
        rng = np.random.default_rng(0)
        image_hu = np.linspace(-1000, 1000, 2001, dtype=np.float32)
        limited = [narrow_window(image_hu, rng) for _ in range(100)]
        windows = np.array([(each.min(), each.max()) for each in limited])
        assert windows[:, 0].min() >= -200
        assert windows[:, 0].max() <= 0
        assert windows[:, 1].min() >= 100
        assert windows[:, 1].max() <= 300

    def test_a_shifted_tumour_moves_as_a_whole(self) -> None:
        share = ball_share(radius_voxels=6.0)
        shifted = shift_tumor(np.full(share.shape, 50.0, np.float32), share, np.random.default_rng(3))
        step_hu = shifted[16, 16, 16] - 50.0
        assert -45 <= step_hu <= 35
        assert np.array_equal(shifted[share == 0], np.full((share == 0).sum(), 50.0))
        assert shifted == pytest.approx(50.0 + step_hu * share, abs=1e-3)

    def test_a_jittered_outline_is_near_the_given_one(self) -> None:
        share = ball_share(radius_voxels=6.0)
        mask = share >= 0.5
        rng = np.random.default_rng(0)
        changed = [jitter_mask(share, mask, rng) for _ in range(5)]
        inner, outer = ball_share(radius_voxels=4.5) >= 0.5, ball_share(radius_voxels=7.5) >= 0.5
        assert all((one[inner]).all() and not one[~outer].any() for one in changed)
        assert any((one != mask).any() for one in changed)

    def test_a_cut_never_takes_the_tumour(self) -> None:
        image_hu = np.full((32, 32, 32), 50.0, np.float32)
        mask = ball_share(radius_voxels=6.0) >= 0.5
        rng = np.random.default_rng(0)
        cut = [cut_at_border(image_hu, mask, rng) for _ in range(30)]
        assert all((one[mask] == 50.0).all() for one in cut)
        assert all(set(np.unique(one)) <= {-1000.0, 50.0} for one in cut)
        sides = {
            (axis, end) for one in cut for axis in range(3) for end in (0, -1) if np.take(one, end, axis).max() < 0
        }
        assert len(sides) >= 4


def ball_share(radius_voxels: float, side: int = 32) -> np.ndarray:
    """Share of each voxel inside a ball around voxel 16, to a tenth or so."""
    axis = np.arange(side) - 16.0
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    return np.clip(radius_voxels - distance + 0.5, 0.0, 1.0).astype(np.float32)


class TestSampling:
    def test_bins_of_size_are_divided_at_diameters_of_10_20_and_50_mm(self, cache: Cases) -> None:
        bins = divide_by_size(usable_tumors(cache))
        found = [sorted(tumor.radius_mm for _, tumors in cases for tumor in tumors) for cases in bins]
        assert sum(map(len, found)) == 3
        for radii in found:
            assert len({int(np.digitize(radius, (5.0, 10.0, 25.0))) for radius in radii}) == 1
        assert [min(radii) for radii in found] == sorted(min(radii) for radii in found)


class TestPastedLesions:
    def test_the_noise_is_the_hosts(self, tmp_path: Path, cache: Cases) -> None:
        rng = np.random.default_rng(0)
        noisy = MUSCLE_HU + ndimage.gaussian_filter(rng.normal(0.0, 60.0, SHAPE), 0.7)
        case = save_case(tmp_path, "noisy", noisy, np.zeros(SHAPE))
        host = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))[0]
        ratios = []
        for _ in range(12):
            pasted = draw_pasted_lesion(cache[0], cache[0].tumors[0], host, 32, SPACING_RANGE_MM, rng)
            if pasted is not None and pasted[1].sum() > 300:
                image_hu, mask = pasted
                fine_hu = image_hu - ndimage.gaussian_filter(image_hu, 1.0)
                inner = ndimage.binary_erosion(mask, iterations=2)
                around = ndimage.binary_dilation(mask, iterations=5) & ~ndimage.binary_dilation(mask, iterations=2)
                around &= ndimage.binary_erosion(image_hu > -400, iterations=4)  # away from the end of the scan
                ratios.append(fine_hu[inner].std() / fine_hu[around].std())
        assert len(ratios) >= 3
        assert 0.6 < np.median(ratios) < 1.2

    def test_a_large_tumour_becomes_a_small_lesion_in_muscle(self, cache: Cases) -> None:
        rng = np.random.default_rng(0)
        drawn = [
            draw_pasted_lesion(cache[0], cache[0].tumors[0], cache[2], 32, SPACING_RANGE_MM, rng) for _ in range(12)
        ]
        made = [pair for pair in drawn if pair is not None]
        assert len(made) >= 8
        for image_hu, mask in made:
            radius_voxels = (3 * mask.sum() / (4 * np.pi)) ** (1 / 3)
            assert 2.0 <= radius_voxels <= 10.5
            assert abs(image_hu[mask].mean() - MUSCLE_HU) < 75
            assert np.isfinite(image_hu).all()

    def test_nothing_is_pasted_where_no_soft_tissue_is(self, tmp_path: Path, cache: Cases) -> None:
        case = save_case(tmp_path, "fat", np.full(SHAPE, FAT_HU), np.zeros(SHAPE))
        host = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))[0]
        rng = np.random.default_rng(0)
        assert draw_pasted_lesion(cache[0], cache[0].tumors[0], host, 32, SPACING_RANGE_MM, rng) is None


class TestSpacing:
    @pytest.mark.parametrize(
        ("asked_mm", "expected_mm"),
        [((1.5, 6.0), (1.5, 3.2)), ((0.8, 0.8), (0.8, 0.8)), ((2.0, 2.5), (2.0, 2.5)), ((4.0, 5.0), (4.0, 4.0))],
    )
    def test_lesions_are_pasted_at_the_spacing_of_the_crops(
        self, cache: Cases, asked_mm: tuple[float, float], expected_mm: tuple[float, float]
    ) -> None:
        rng = np.random.default_rng(0)
        places = [pasted_lesions._draw_place(cache[2], 32, asked_mm, rng) for _ in range(60)]
        drawn_mm = [place.spacing_mm for place in places if place is not None]
        assert len(drawn_mm) > 30
        assert min(drawn_mm) == pytest.approx(expected_mm[0], rel=0.1)
        assert max(drawn_mm) == pytest.approx(expected_mm[1], rel=0.1)

    @pytest.mark.parametrize("finest_mm", [0.6, 1.5])
    def test_held_out_tumors_are_cut_at_the_finest_spacing(self, single: Cases, finest_mm: float) -> None:
        (batch,) = heldout_tumor_crops(single[:1], 48, finest_mm=finest_mm)
        volume_mm3 = single[0].tumors[0].volume_mm3
        assert float(batch["tumor_mask"].sum()) * finest_mm**3 == pytest.approx(volume_mm3, rel=0.3)

    def test_statistics_are_measured_at_the_finest_spacing(self, tmp_path: Path) -> None:
        """A checkered tumour is smooth where its squares cannot be seen."""
        image = np.full(SHAPE, MUSCLE_HU, dtype=float)
        image[..., :5] = -1000
        tumor = ball((60.0, 55.0, 55.0), 8.0)
        image[tumor] += np.where(np.indices(SHAPE)[2][tumor] // 4 % 2, 30, -30)
        case = save_case(tmp_path, "checkered", image, np.where(tumor, 2, 0))
        cases = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))
        (fine,), (coarse,) = (measure_training_tumors(cases, finest_mm=finest_mm) for finest_mm in (0.7, 3.0))
        assert fine.heterogeneity_hu > 2 * coarse.heterogeneity_hu
        assert measure_training_tumors(cases) == measure_training_tumors(cases, finest_mm=1.5)


class TestStatistics:
    def test_a_tumor_in_the_first_slices_is_measured_like_one_inside(self, tmp_path: Path) -> None:
        """Air must not enter at the end of the scan: it made a smooth tumour 40 HU darker and ten times as mottled."""
        image = np.full(SHAPE, MUSCLE_HU, dtype=float)
        image[..., :5] = -1000
        labels = np.zeros(SHAPE, np.uint8)
        for depth_mm, height_mm in ((60.0, 30.0), (0.0, 80.0)):
            tumor = ball((depth_mm, height_mm, 55.0), 9.0)
            image[tumor], labels[tumor] = TUMOR_HU, 2
        case = save_case(tmp_path, "ends", image, labels)
        cases = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))
        cut, inside = sorted(measure_training_tumors(cases), key=lambda tumor: tumor.radius_mm)
        assert cut.radius_mm == pytest.approx(0.8 * inside.radius_mm, rel=0.1)
        assert cut.contrast_hu == pytest.approx(inside.contrast_hu, abs=4)
        assert cut.heterogeneity_hu == pytest.approx(inside.heterogeneity_hu, abs=2)

    @pytest.mark.parametrize("outside_hu", [FAT_HU, -1000.0])
    def test_fat_and_air_under_the_edge_of_a_label_do_not_enter(self, tmp_path: Path, outside_hu: float) -> None:
        """The same tumour with a fitting outline, and with one that reaches 4 mm beyond the muscle."""
        measured = []
        for name, reach_mm in (("fitting", 0.0), ("sloppy", 4.0)):
            image = np.full(SHAPE, MUSCLE_HU, dtype=float)
            image[..., :5] = -1000
            image[:, 72:] = outside_hu  # the muscle ends beside the tumour
            tumor = ball((60.0, 60.0, 55.0), 12.0)
            image[tumor] = TUMOR_HU
            label = ball((60.0, 60.0 + reach_mm, 55.0), 12.0)
            case = save_case(tmp_path, name, image, np.where(label, 2, 0))
            cases = build_crop_cache([case], tmp_path / f"cache_{name}", tumor_values=(2,))
            measured += measure_training_tumors(cases)
        fitting, sloppy = measured
        assert sloppy.contrast_hu == pytest.approx(fitting.contrast_hu, abs=6)
        assert sloppy.heterogeneity_hu == pytest.approx(fitting.heterogeneity_hu, abs=4)

    def test_a_tumor_is_measured_apart_from_its_neighbours(self, tmp_path: Path) -> None:
        """A dark and a bright one in the same crop: neither the other's voxels nor the other as rim."""
        image = np.full(SHAPE, MUSCLE_HU, dtype=float)
        image[..., :5] = -1000
        labels = np.zeros(SHAPE, np.uint8)
        for height_mm, radius_mm, contrast_hu in ((40.0, 18.0, -60), (68.0, 8.0, 40)):
            tumor = ball((60.0, height_mm, 55.0), radius_mm)
            image[tumor], labels[tumor] = MUSCLE_HU + contrast_hu, 2
        case = save_case(tmp_path, "pair", image, labels)
        cases = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))
        bright, dark = sorted(measure_training_tumors(cases), key=lambda tumor: tumor.radius_mm)
        assert dark.contrast_hu == pytest.approx(-60, abs=8)
        assert bright.contrast_hu == pytest.approx(40, abs=12)  # the edge of a small one is half muscle
        assert max(dark.heterogeneity_hu, bright.heterogeneity_hu) < 4

    def test_a_tumor_inside_another_ones_box_is_told_apart(self, tmp_path: Path) -> None:
        labels = np.zeros(SHAPE, np.uint8)
        labels[ball((60.0, 55.0, 55.0), 30.0) & ~ball((60.0, 55.0, 55.0), 20.0)] = 2
        inner = ball((60.0, 55.0, 55.0), 9.0)
        labels[inner] = 2
        case = save_case(tmp_path, "shell", np.full(SHAPE, FAT_HU), labels)
        cached = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))[0]
        small, shell = sorted(cached.tumors, key=lambda tumor: tumor.radius_mm)
        crop = Crop(cached, 64, 1.0, (60.0, 55.0, 55.0))
        assert (crop.share_of(small) >= 0.5).sum() == pytest.approx(small.volume_mm3, rel=0.08)
        np.testing.assert_allclose(crop.share_of(small) + crop.share_of(shell), crop.tumor_share(), atol=1e-6)

    def test_the_depth_is_measured_where_the_edge_does_not_reach(self, tmp_path: Path) -> None:
        """A dome of 60 HU whose half lies 3 mm inside the outline, 4 mm wide: 37 HU as mean over the label."""
        d, h, w = (np.arange(n) * mm - c for n, mm, c in zip(SHAPE, SPACING_MM, (60.0, 55.0, 55.0), strict=True))
        distance_mm = np.sqrt(d[:, None, None] ** 2 + h[:, None] ** 2 + w**2) - 14.0
        edge = Edge(offset_mm=-3.0, width_mm=4.0)
        image = MUSCLE_HU - 60.0 * edge.share(distance_mm) + np.random.default_rng(0).normal(0, 3, SHAPE)
        image[..., :5] = -1000
        case = save_case(tmp_path, "dome", image, np.where(distance_mm <= 0, 2, 0))
        cases = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))
        law = EdgeStatistics(
            from_diameter_mm=0.0,
            tumors=9,
            offset_mm=edge.offset_mm,
            offset_sd_mm=0.0,
            offset_interval_mm=(-3.0, -3.0),
            width_mm=edge.width_mm,
            width_sd_mm=0.0,
            width_interval_mm=(4.0, 4.0),
        )
        (with_law,), (without,) = measure_training_tumors(cases, edges=(law,)), measure_training_tumors(cases)
        assert with_law.contrast_hu == pytest.approx(-60.0, abs=3)
        assert -60.0 < without.contrast_hu < -40.0
        assert with_law.heterogeneity_hu < 3.0  # 14 with the profile of the edge

    def test_contrast_and_radius_are_measured(self, cache: Cases) -> None:
        tumors = measure_training_tumors(cache[:2])
        assert len(tumors) == 3
        for tumor in tumors:
            assert tumor.contrast_hu == pytest.approx(TUMOR_HU - MUSCLE_HU, abs=8)
            assert tumor.heterogeneity_hu < 8
        assert tumors[0].radius_mm == pytest.approx(18.0, abs=0.5)
