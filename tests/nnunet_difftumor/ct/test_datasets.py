from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_difftumor.ct.datasets import find_ct_files, find_label_maps, load_raw_dataset
from nnunet_difftumor.ct.label_roles import find_tumor_label
from nnunet_difftumor.ct.reading import CTVolume, UnsupportedImageError, read_ct, read_labels, read_mask
from nnunet_difftumor.ct.resample import resample
from nnunet_difftumor.ct.writing import write_ct_like, write_labels_like
from nnunet_difftumor.errors import (
    CorruptImageError,
    DatasetError,
    DiffTumorError,
    GeometryMismatchError,
    MissingLabelError,
    NotHounsfieldError,
    OutputExistsError,
)
from nnunet_difftumor.tumor.drawing import draw_on_grid
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

AFFINE = np.array([[-0.8, 0, 0, 30.0], [0, -0.9, 0, 20.0], [0, 0, 3.0, -50.0], [0, 0, 0, 1]])


def make_hu(shape: tuple[int, ...] = (9, 8, 7), seed: int = 0) -> np.ndarray:
    """An (X, Y, Z) array with air, fat and soft tissue."""
    return np.random.default_rng(seed).integers(-1000, 300, size=shape).astype(np.int16)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def ct_path(tmp_path: Path) -> Path:
    return save_nifti(tmp_path / "case_0000.nii.gz", make_hu())


@pytest.fixture
def ct(ct_path: Path) -> CTVolume:
    return read_ct(ct_path)


class TestReading:
    def test_array_is_depth_height_width(self, ct: CTVolume) -> None:
        assert np.array_equal(ct.image_hu, make_hu().T)
        assert ct.image_hu.dtype == np.float32
        assert ct.spacing_mm == pytest.approx((3.0, 0.9, 0.8))

    def test_array_and_spacing_are_those_of_nnunet(self, ct_path: Path, ct: CTVolume) -> None:
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        array, properties = SimpleITKIO().read_images([str(ct_path)])
        assert np.array_equal(array[0], ct.image_hu)
        assert ct.spacing_mm == pytest.approx(properties["spacing"], abs=1e-5)

    def test_spacing_follows_the_array_when_axes_are_permuted_in_the_file(self, tmp_path: Path) -> None:
        affine = np.array([[0, 0, 2.0, 0], [0.5, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]])
        assert read_ct(save_nifti(tmp_path / "ct.nii", make_hu(), affine)).spacing_mm == (2.0, 4.0, 0.5)

    @pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii"])
    def test_other_endings_give_the_same_volume_and_place(self, ct_path: Path, ct: CTVolume, ending: str) -> None:
        other = ct_path.with_name(f"other{ending}")
        sitk.WriteImage(sitk.ReadImage(str(ct_path)), str(other))
        read = read_ct(other)
        assert np.array_equal(read.image_hu, ct.image_hu)
        assert np.allclose(read.geometry.affine, ct.geometry.affine, atol=1e-4)

    def test_slope_and_intercept_are_applied(self, tmp_path: Path) -> None:
        stored = make_hu((12, 11, 10)).T * 2.0
        assert np.array_equal(read_ct(scaled_nifti(tmp_path / "ct.nii.gz")).image_hu, stored * 0.5 - 24.0)


def truncated(path: Path) -> Path:
    content = save_nifti(path, make_hu((30, 30, 30))).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def with_nan(path: Path) -> Path:
    array = make_hu().astype(np.float32)
    array[2, 3, 4] = np.nan
    return save_nifti(path, array)


def text_file(path: Path) -> Path:
    path.write_text("this is not an image")
    return path


def vector_image(path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True), str(path))
    return path


BAD_CTS: list[tuple[Any, str, type[DiffTumorError], str]] = [
    (truncated, "ct.nii.gz", CorruptImageError, "truncated"),
    (truncated, "ct.nii", CorruptImageError, "truncated"),
    (text_file, "ct.nii.gz", CorruptImageError, "truncated"),
    (text_file, "ct.mha", CorruptImageError, "truncated"),
    (lambda path: path, "absent.nii.gz", CorruptImageError, "does not exist"),
    (text_file, "ct.png", UnsupportedImageError, "nii.gz"),
    (with_nan, "ct.nii.gz", CorruptImageError, "1 NaN"),
    (lambda path: save_nifti(path, make_hu((4, 4, 4, 2))), "ct.nii.gz", UnsupportedImageError, "4 axes"),
    (vector_image, "ct.mha", UnsupportedImageError, "values a voxel"),
    (lambda p: save_nifti(p, make_hu() / np.float32(2000) + np.float32(0.5)), "ct.nii.gz", NotHounsfieldError, "norm"),
    (lambda p: save_nifti(p, (make_hu() % 256).astype(np.uint8)), "ct.nii.gz", NotHounsfieldError, "8-bit"),
    (lambda p: save_nifti(p, make_hu() + np.int16(1024)), "ct.nii.gz", NotHounsfieldError, "subtract 1024"),
]


@pytest.mark.parametrize(("make", "name", "error", "says"), BAD_CTS)
def test_bad_ct_is_refused_by_name(tmp_path: Path, make: Any, name: str, error: type, says: str) -> None:
    path = make(tmp_path / name)
    with pytest.raises(error, match=says) as caught:
        read_ct(path)
    assert str(path) in str(caught.value)


def test_a_grid_that_no_memory_holds_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    header = nibabel.Nifti1Image(make_hu(), AFFINE).header.copy()
    header["dim"][1:4], header["vox_offset"] = 30000, 352
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(100)))
    meta = ("ObjectType = Image", "NDims = 3", "DimSize = 30000 30000 30000", "ElementType = MET_SHORT")
    (tmp_path / "ct.mha").write_text("\n".join([*meta, "ElementDataFile = LOCAL", ""]))
    for name in ("ct.nii.gz", "ct.mha"):
        with pytest.raises(DiffTumorError, match=rf"{name} would take a grid of 30000 x 30000 x 30000 voxels"):
            read_ct(tmp_path / name)
    with pytest.raises(DiffTumorError, match="resampled, would take a grid of 90000 x"):
        resample(np.zeros((9, 9, 9), np.float32), (9e3, 9e3, 9e3), (90000, 90000, 90000), (1.0, 1.0, 1.0), (0, 0, 0))
    spec = TumorSpec(centre_mm=(0.0, 0.0, 0.0), radius_mm=1e6, seed=0, size_class="user")
    with pytest.raises(DiffTumorError, match=r"A tumour of 1e\+06 mm radius"):
        draw_on_grid(TumorSurface(spec), (1.0, 1.0, 1.0))


class TestMasks:
    @pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
    @pytest.mark.parametrize("flipped", [(), (0,), (1, 2), (0, 1, 2)])
    def test_flips_and_permutations_of_the_same_grid_are_undone(
        self, ct_path: Path, ct: CTVolume, axes: tuple[int, ...], flipped: tuple[int, ...]
    ) -> None:
        labels = (make_hu(seed=1) > 200).astype(np.uint8)
        turn = np.eye(4)
        turn[:3, :3] = np.eye(3)[:, axes]
        turned = labels.transpose(axes)
        for axis in flipped:
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, turned.shape[axis] - 1
            turn = turn @ flip
        path = save_nifti(ct_path.with_name("mask.nii.gz"), np.flip(turned, flipped), AFFINE @ turn)
        assert np.array_equal(read_mask(path, ct), labels.T)

    def test_another_place_is_refused_with_both_geometries(self, ct_path: Path, ct: CTVolume) -> None:
        affine = AFFINE.copy()
        affine[2, 3] += 1.5  # half a slice
        path = save_nifti(ct_path.with_name("mask.nii.gz"), np.ones((9, 8, 7), np.uint8), affine)
        with pytest.raises(GeometryMismatchError) as caught:
            read_mask(path, ct)
        message = str(caught.value)
        assert "-50.00" in message
        assert "-48.50" in message
        assert "(7, 8, 9)" in message

    def test_another_shape_is_refused(self, ct_path: Path, ct: CTVolume) -> None:
        path = save_nifti(ct_path.with_name("mask.nii.gz"), np.ones((9, 8, 6), np.uint8))
        with pytest.raises(GeometryMismatchError, match=r"\(6, 8, 9\)"):
            read_mask(path, ct)

    def test_rounding_of_the_header_is_tolerated(self, ct_path: Path, ct: CTVolume) -> None:
        path = save_nifti(ct_path.with_name("mask.nii.gz"), np.ones((9, 8, 7), np.uint8), AFFINE + 1e-4)
        assert read_mask(path, ct).all()

    def test_float_labels_are_whole_numbers_or_refused(self, tmp_path: Path) -> None:
        labels = np.zeros((4, 4, 4), np.float32)
        labels[1] = 2.0
        assert set(np.unique(read_labels(save_nifti(tmp_path / "good.nii.gz", labels))[0])) == {0, 2}
        labels[2] = 0.4
        with pytest.raises(CorruptImageError, match="nearest neighbour"):
            read_labels(save_nifti(tmp_path / "bad.nii.gz", labels))

    def test_written_labels_lie_on_the_ct(self, tmp_path: Path, ct: CTVolume) -> None:
        labels = (ct.image_hu > 100).astype(np.uint8)
        write_labels_like(ct, tmp_path / "label.nii.gz", labels)
        assert np.array_equal(read_mask(tmp_path / "label.nii.gz", ct), labels)


def scaled_nifti(path: Path, dtype: type = np.int16) -> Path:
    """Stored numbers with slope 0.5 and intercept -24, an extension and a description."""
    stored = (make_hu((12, 11, 10)).astype(np.int32) * 2).astype(dtype)
    image = nibabel.Nifti1Image(stored, AFFINE)
    image.header["descrip"] = b"kept"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept as well"))
    nibabel.save(image, path)
    raw = path.read_bytes()
    content = bytearray(gzip.decompress(raw) if path.name.endswith(".gz") else raw)
    content[112:120] = np.array([0.5, -24.0], "<f4").tobytes()  # scl_slope and scl_inter
    path.write_bytes(gzip.compress(bytes(content)) if path.name.endswith(".gz") else bytes(content))
    return path


def decompressed(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()


class TestWriting:
    @pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii"])
    def test_every_byte_outside_the_support_is_kept(self, tmp_path: Path, name: str) -> None:
        template = scaled_nifti(tmp_path / name)
        ct = read_ct(template)
        support = np.zeros(ct.image_hu.shape, bool)
        support[3:5, 4:6, 2:7] = True
        write_ct_like(template, tmp_path / f"out_{name}", ct.image_hu + 11.3, support)
        before, after = decompressed(template), decompressed(tmp_path / f"out_{name}")
        offset = len(before) - 2 * support.size
        assert before[:offset] == after[:offset]
        stored_before = np.frombuffer(before, "<i2", offset=offset).reshape(support.shape)
        stored_after = np.frombuffer(after, "<i2", offset=offset).reshape(support.shape)
        assert np.array_equal(stored_before[~support], stored_after[~support])
        assert np.array_equal(stored_after[support], np.rint(stored_before[support] + 11.3 / 0.5))

    def test_read_back_equals_the_change_to_half_a_stored_step(self, tmp_path: Path) -> None:
        template = scaled_nifti(tmp_path / "ct.nii.gz")
        ct = read_ct(template)
        support = np.ones(ct.image_hu.shape, bool)
        write_ct_like(template, tmp_path / "out.nii.gz", ct.image_hu * 0.9, support)
        assert np.abs(read_ct(tmp_path / "out.nii.gz").image_hu - ct.image_hu * 0.9).max() <= 0.25 + 1e-4

    def test_a_ct_is_packed_at_a_quick_level_and_its_file_says_nothing_of_when(self, tmp_path: Path) -> None:
        template = save_nifti(tmp_path / "ct.nii.gz", make_hu((30, 30, 30)) // 16)
        support = np.zeros((30, 30, 30), bool)
        write_ct_like(template, tmp_path / "out.nii.gz", np.zeros(support.shape), support)
        packed = gzip.compress(decompressed(template), compresslevel=3, mtime=0)
        assert (tmp_path / "out.nii.gz").read_bytes()[10:] == packed[10:]  # behind the head, which names the system

    def test_values_beyond_the_stored_type_saturate(self, tmp_path: Path) -> None:
        template = scaled_nifti(tmp_path / "ct.nii.gz")
        ct = read_ct(template)
        support = np.zeros(ct.image_hu.shape, bool)
        support[0] = True
        write_ct_like(template, tmp_path / "out.nii.gz", np.full(support.shape, 1e6), support)
        assert read_ct(tmp_path / "out.nii.gz").image_hu[0].max() == pytest.approx(32767 * 0.5 - 24)

    def test_metaimage_keeps_stored_values_outside(self, ct_path: Path, ct: CTVolume) -> None:
        template = ct_path.with_name("ct.mha")
        sitk.WriteImage(sitk.ReadImage(str(ct_path)), str(template))
        support = ct.image_hu > 250
        for name in ("out.mha", "out.nii.gz"):
            write_ct_like(template, ct_path.with_name(name), ct.image_hu - 100.4, support)
            written = read_ct(ct_path.with_name(name))
            assert np.array_equal(written.image_hu, np.where(support, np.rint(ct.image_hu - 100.4), ct.image_hu))
            assert np.allclose(written.geometry.affine, ct.geometry.affine, atol=1e-4)

    def test_an_existing_file_is_not_overwritten(self, ct_path: Path, ct: CTVolume) -> None:
        out = ct_path.with_name("out.nii.gz")
        out.write_text("precious")
        support = np.ones(ct.image_hu.shape, bool)
        with pytest.raises(OutputExistsError):
            write_ct_like(ct_path, out, ct.image_hu, support)
        with pytest.raises(OutputExistsError):
            write_labels_like(ct, out, support.astype(np.uint8))
        assert out.read_text() == "precious"

    def test_a_failure_leaves_nothing_behind(self, ct_path: Path, ct: CTVolume) -> None:
        out = ct_path.with_name("sub") / "out.nii.gz"
        with pytest.raises(GeometryMismatchError):
            write_ct_like(ct_path, out, ct.image_hu[1:], np.ones(ct.image_hu[1:].shape, bool))
        with pytest.raises(CorruptImageError):
            write_ct_like(ct_path, out, np.full(ct.image_hu.shape, np.nan), np.ones(ct.image_hu.shape, bool))
        assert not out.parent.exists() or not list(out.parent.iterdir())


def write_dataset(folder: Path, cases: int = 3, **changes: Any) -> Path:
    for number in range(cases):
        save_nifti(folder / "imagesTr" / f"case_{number}_0000.nii.gz", make_hu(seed=number))
        save_nifti(folder / "labelsTr" / f"case_{number}.nii.gz", np.zeros((9, 8, 7), np.uint8))
    options = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in options.items() if v is not None}))
    return folder


class TestDatasets:
    def test_cases_are_found_with_their_labels(self, tmp_path: Path) -> None:
        cases = load_raw_dataset(write_dataset(tmp_path)).cases
        assert [case.identifier for case in cases] == ["case_0", "case_1", "case_2"]
        assert cases[1].image_path == tmp_path / "imagesTr" / "case_1_0000.nii.gz"
        assert cases[1].label_path == tmp_path / "labelsTr" / "case_1.nii.gz"

    def test_cases_may_be_listed_in_dataset_json(self, tmp_path: Path) -> None:
        listed = {"b": {"images": ["imagesTr/case_2_0000.nii.gz"], "label": "labelsTr/case_2.nii.gz"}}
        cases = load_raw_dataset(write_dataset(tmp_path, dataset=listed)).cases
        assert [(case.identifier, case.image_path.name) for case in cases] == [("b", "case_2_0000.nii.gz")]

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"channel_names": {"0": "CT", "1": "PET"}}, "one channel"),
            ({"channel_names": {"0": "T1"}}, "CT"),
            ({"labels": None}, "lacks labels"),
            ({"labels": {"0": "background"}}, "label names to whole numbers"),
            ({"file_ending": ".nrrd"}, "file_ending"),
        ],
    )
    def test_wrong_dataset_json_is_refused(self, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(DatasetError, match=says):
            load_raw_dataset(write_dataset(tmp_path, **changes))

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        (write_dataset(tmp_path) / "labelsTr" / "case_1.nii.gz").unlink()
        with pytest.raises(DatasetError, match="case_1"):
            load_raw_dataset(tmp_path)
        with pytest.raises(DatasetError, match="does not exist"):
            load_raw_dataset(tmp_path / "nowhere")

    def test_tumor_label_is_found_by_name_or_refused(self) -> None:
        assert find_tumor_label({"liver": (1,), "tumor": (2,)}) == (2,)
        assert find_tumor_label({"pancreas": (1,), "Cancer": (2,)}) == (2,)
        assert find_tumor_label({"a": (1,), "b": (2,)}, "b") == (2,)
        with pytest.raises(MissingLabelError, match="--tumor-label"):
            find_tumor_label({"liver tumor": (1,), "kidney tumor": (2,)})
        with pytest.raises(MissingLabelError, match="none looks like a tumour"):
            find_tumor_label({"liver": (1,)})
        with pytest.raises(MissingLabelError, match="no label 'cyst'"):
            find_tumor_label({"liver": (1,)}, "cyst")

    def test_plain_folder_takes_cts_and_leaves_labels_out(self, tmp_path: Path) -> None:
        for name in ("a_ct.nii.gz", "a_label.nii.gz", "sub/b_0000.nii.gz", "sub/c.mha", "notes.txt", ".hidden.nii.gz"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert [case.identifier for case in find_ct_files(tmp_path)] == ["a", "b", "c"]
        (tmp_path / "sub" / "a.nii").touch()
        with pytest.raises(DatasetError, match="both have the identifier 'a'"):
            find_ct_files(tmp_path)

    def test_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="neither dataset"):
            find_ct_files(tmp_path)

    def test_layouts_of_public_sets_are_understood_and_masks_are_never_taken_for_ct(self, tmp_path: Path) -> None:
        layouts = {
            "totalseg": ("s0001/ct.nii.gz", "s0001/segmentations/liver.nii.gz", "s0002/ct.nii.gz"),
            "kits": ("case_00000/imaging.nii.gz", "case_00000/segmentation.nii.gz"),
            "kits21": ("case_1/imaging.nii.gz", "case_1/aggregated_MAND_seg.nii.gz", "case_1/instances/k_0.nii.gz"),
            "lits": ("volume-0.nii", "segmentation-0.nii", "volume-1.nii", "labels-1.nii.gz"),
            "pants": ("ImageTr/P_1/ct.nii.gz", "LabelTr/P_1/combined_labels.nii.gz", "LabelTr/P_1/pancreas.nii.gz"),
            "flare": ("imagesTr2200/FLARE23_1_0000.nii.gz", "labelsTr2200/FLARE23_1.nii.gz"),
            "luna": ("subset0/1.3.6.1.mhd", "seg-lungs-LUNA16/1.3.6.1.mhd"),
            "structseg": ("1/data.nii.gz", "1/label.nii.gz", "2/data.nii.gz"),
            "pelvic": ("dataset6_CLINIC_0001_data.nii.gz", "dataset6_CLINIC_0001_mask_4label.nii.gz"),
            "hecktor": ("CHUM-1/CHUM-1__CT.nii.gz", "CHUM-1/CHUM-1__PT.nii.gz", "PT_001.NII.GZ"),
            "btcv": ("img/img0001.nii.gz", "label/label0001.nii.gz"),
            "segthor": ("Patient_01/Patient_01.nii.gz", "Patient_01/GT.nii.gz"),
            "autopet": ("p1/CT.nii.gz", "p1/SUV.nii.gz", "p1/PET.nii.gz", "p1/SEG.nii.gz"),
            "bids": ("sub-1/s-1_ct.nii.gz", "derivatives/sub-1/s-1_seg-vert_msk.nii.gz"),
            "plain": (
                "a_ct.nii.gz",
                "a_label.nii.gz",
                "b_label_2.nii.gz",
                "segthor_1.nii.gz",
                "p_low-dose.nii",
                ".git/x.nii.gz",
            ),
        }
        for layout, names in layouts.items():
            for name in names:
                (tmp_path / layout / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / layout / name).touch()
        found = {layout: [case.identifier for case in find_ct_files(tmp_path / layout)] for layout in layouts}
        assert found == {
            "totalseg": ["s0001", "s0002"],
            "kits": ["case_00000"],
            "kits21": ["case_1"],
            "lits": ["volume-0", "volume-1"],
            "pants": ["P_1"],
            "flare": ["FLARE23_1"],
            "luna": ["1.3.6.1"],
            "structseg": ["1", "2"],
            "pelvic": ["dataset6_CLINIC_0001_data"],
            "hecktor": ["CHUM-1_", "PT_001"],
            "btcv": ["img0001"],
            "segthor": ["Patient_01"],
            "autopet": ["p1"],
            "bids": ["s-1"],
            "plain": ["a", "p_low-dose", "segthor_1"],
        }
        for name, says in (("labelsOnly/p_seg.nii.gz", "masks or no CT"), ("dicom/1.dcm", "dcm2niix")):
            (tmp_path / "other" / name).parent.mkdir(parents=True)
            (tmp_path / "other" / name).touch()
            with pytest.raises(DatasetError, match=says):
                find_ct_files((tmp_path / "other" / name).parent)
        (tmp_path / "export").mkdir()
        (tmp_path / "export" / "IM000001").write_bytes(bytes(128) + b"DICM")
        with pytest.raises(DatasetError, match="dcm2niix"):
            find_ct_files(tmp_path / "export")

    def test_links_are_followed_once_and_broken_ones_are_named(self, tmp_path: Path) -> None:
        site = tmp_path / "data" / "site"
        site.mkdir(parents=True)
        (tmp_path / "disk").mkdir()
        for path in (tmp_path / "disk" / "p2.nii.gz", site / "p0.nii.gz"):
            path.touch()
        (site / "further").symlink_to(tmp_path / "disk")
        (site / "round").symlink_to(tmp_path / "data")
        (site / "same.nii.gz").symlink_to("p0.nii.gz")
        (site / "notes.txt").symlink_to("nowhere")
        (site / "p9_seg.nii.gz").symlink_to("nowhere")  # a mask, which is not needed
        assert [case.identifier for case in find_ct_files(tmp_path / "data")] == ["p2", "p0"]
        (site / "p3.nii.gz").symlink_to("../.git/annex/objects/MD5E-3.nii.gz")
        (site / "more").symlink_to("/nowhere/more")
        (site / "patient.001").symlink_to("/nowhere/001")
        with pytest.raises(DatasetError, match=r"3 links .*site/more, .*site/p3.nii.gz, .*patient.001.*datalad get"):
            find_ct_files(tmp_path / "data")

    @pytest.mark.parametrize("name", ["imagesTr/case_1_0000.nii.gz", "labelsTr/case_1.nii.gz"])
    def test_broken_links_of_a_data_set_are_named_and_no_case_loses_its_labels(self, tmp_path: Path, name: str) -> None:
        folder = write_dataset(tmp_path, 2)
        (folder / name).unlink()
        (folder / name).symlink_to("nowhere")
        with pytest.raises(DatasetError, match=name):
            load_raw_dataset(folder, needs_labels=False)
        with pytest.raises(DatasetError, match="case_1"):
            find_label_maps(folder / Path(name).parent)

    def test_environment_variables_are_expanded_as_by_nnunet(self, tmp_path: Path, monkeypatch: Any) -> None:
        from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

        listed = {"b": {"images": ["$CT_DISK/case_0_0000.nii.gz"], "label": "${LABELS}/case_0.nii.gz"}}
        folder = write_dataset(tmp_path, 1, dataset=listed)
        with pytest.raises(DatasetError, match="environment variable"):
            load_raw_dataset(folder)
        monkeypatch.setenv("CT_DISK", str(folder / "imagesTr"))
        monkeypatch.setenv("LABELS", "labelsTr")
        (case,) = load_raw_dataset(folder).cases
        theirs = get_filenames_of_train_images_and_targets(str(folder))["b"]
        assert [str(case.image_path)] == theirs["images"]
        assert str(case.label_path) == theirs["label"]
