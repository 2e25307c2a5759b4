"""Where the voxels of a NIfTI file lie: where nnU-Net's default reader sees them, or a named error."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.spatial.transform import Rotation

from nnunet_difftumor.ct.reading import CTVolume, read_array, read_ct, read_labels, read_shape
from nnunet_difftumor.ct.writing import write_ct_like, write_labels_like
from nnunet_difftumor.errors import CorruptImageError, DiffTumorError

SHAPE = (12, 10, 8)
STEPS_MM = (1.5, 1.25, 2.0)
AFFINE = np.diag([-1.5, -1.25, 2.0, 1.0])
AFFINE[:3, 3] = 30, 20, -50


def make_hu() -> np.ndarray:
    """An (X, Y, Z) array with air, fat and soft tissue."""
    return np.random.default_rng(0).integers(-1000, 300, size=SHAPE).astype(np.int16)


def save_raw(path: Path, *, srow: np.ndarray = AFFINE, gzipped: bool = True, order: str = "<", **fields: Any) -> Path:
    """Write a NIfTI file with any fields in its header; both forms agree unless they say otherwise."""
    header = nibabel.Nifti2Header(endianness=order) if fields.pop("two", False) else nibabel.Nifti1Header(None, order)
    header.set_data_dtype(np.int16)
    header["dim"] = fields.pop("dim", [3, *SHAPE, 1, 1, 1, 1])
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    values = {"pixdim": [1, *STEPS_MM, 0, 0, 0, 0], "qform_code": 1, "sform_code": 1, "quatern_d": 1, "scl_slope": 1}
    places = {f"qoffset_{letter}": value for letter, value in zip("xyz", AFFINE[:3, 3], strict=True)}
    for key, value in {**values, **places, "xyzt_units": 2, **fields}.items():
        header[key] = value
    header["srow_x"], header["srow_y"], header["srow_z"] = srow[:3]
    content = header.binaryblock + bytes(4) + make_hu().astype(f"{order}i2").tobytes(order="F")
    path.write_bytes(gzip.compress(content) if gzipped else content)
    return path


def in_unit(factor: float, unit: int) -> dict[str, Any]:
    places = {f"qoffset_{letter}": value * factor for letter, value in zip("xyz", AFFINE[:3, 3], strict=True)}
    srow, pixdim = AFFINE * factor, [1, *(step * factor for step in STEPS_MM), 0, 0, 0, 0]
    return {"srow": srow, "pixdim": pixdim, "xyzt_units": unit, **places}


def turned(degrees: float, shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    turn[:3, 3] = shift_mm
    return turn @ AFFINE


def sheared(amount: float) -> np.ndarray:
    shear = np.eye(4)
    shear[0, 2] = amount
    return AFFINE @ shear


MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0]) @ AFFINE


def place_of(path: Path) -> tuple[Any, ...]:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def read_by_nnunet(path: Path) -> tuple[np.ndarray, Any, np.ndarray]:
    """Read values, spacing and affine with nnU-Net's default reader of a file.

    Of .nii that is NibabelIO, which makes no use of positions: they are those of SimpleITK if it reads the file.
    """
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    reader = determine_reader_writer_from_file_ending(ending, str(path), verbose=False)()
    array, properties = reader.read_images([str(path)])
    spacing = properties["spacing"]
    with suppress(RuntimeError):
        properties = SimpleITKIO().read_images([str(path)])[1]
    if "nibabel_stuff" in properties:
        return array[0], spacing, properties["nibabel_stuff"]["original_affine"]
    known = properties["sitk_stuff"]
    affine = np.eye(4)
    affine[:3, :3] = np.array(known["direction"]).reshape(3, 3) * np.array(known["spacing"])
    affine[:3, 3] = known["origin"]
    return array[0], spacing, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def check_as_nnunet_reads(path: Path) -> None:
    """Values, voxel volume, position and orientation are those of nnU-Net's default reader."""
    array, spacing, affine = read_by_nnunet(path)
    values, geometry = read_array(path)
    assert np.allclose(values, array, atol=1e-3)
    assert read_shape(path) == array.shape
    for index in np.zeros(3), np.array(SHAPE) - 1.0:
        found_mm = geometry.affine @ np.append(index[::-1], 1.0)
        assert np.allclose(found_mm, affine @ np.append(index, 1.0), atol=0.01)
    voxel_mm3 = abs(np.linalg.det(geometry.affine[:3, :3]))
    assert voxel_mm3 == pytest.approx(abs(np.linalg.det(affine)), rel=1e-4)
    assert voxel_mm3 == pytest.approx(np.prod(spacing), rel=0.03)  # of files with two sizes, at most 1% apart
    if abs(np.linalg.det(affine)) == pytest.approx(np.prod(np.linalg.norm(affine[:3, :3], axis=0)), rel=1e-4):
        assert geometry.spacing_mm == pytest.approx(spacing, rel=0.01)


SAME_AS_NNUNET: dict[str, dict[str, Any]] = {
    "plain": {},
    "micrometre": in_unit(1000.0, 3),
    "metre": in_unit(0.001, 1),
    "no unit": {"xyzt_units": 0},
    "with seconds": {"xyzt_units": 2 + 8},
    "sform turned": {"srow": turned(17.0), "sform_code": 2},
    "sform shifted": {"srow": turned(0.0, (5.0, 3.0, 0.0)), "sform_code": 2},
    "no form": {"qform_code": 0, "sform_code": 0},
    "qform alone": {"sform_code": 0},
    "sform alone": {"qform_code": 0},
    "four axes": {"dim": [4, *SHAPE, 1, 1, 1, 1]},
    "seven axes": {"dim": [7, *SHAPE, 1, 1, 1, 1]},
    "uncompressed": {"gzipped": False},
    "slope and intercept": {"scl_slope": 0.5, "scl_inter": -10},
    "big-endian": {"order": ">"},
    "quaternion too long": {"quatern_d": 1.00001, "sform_code": 0},
    "qfac of 0": {"pixdim": [0, *STEPS_MM, 0, 0, 0, 0], "sform_code": 0},
    "an unknown code": {"qform_code": 9, "sform_code": 0},
}


@pytest.mark.parametrize("name", SAME_AS_NNUNET)
def test_a_file_lies_where_nnunet_sees_it_and_so_does_what_is_written(tmp_path: Path, name: str) -> None:
    path = save_raw(tmp_path / "ct.nii.gz", **SAME_AS_NNUNET[name])
    check_as_nnunet_reads(path)
    ct = read_ct(path)
    out, label = tmp_path / "out.nii.gz", tmp_path / "label.nii.gz"
    support = np.zeros(ct.image_hu.shape, bool)
    support[2:4, 3:5, 3:6] = True
    write_ct_like(path, out, ct.image_hu + 50, support)
    write_labels_like(ct, label, support.astype(np.uint8))
    assert place_of(out) == place_of(label) == place_of(path)
    if "quaternion" not in name:  # which nibabel refuses
        images = [nibabel.load(written) for written in (out, label)]
        assert np.array_equal(images[0].affine, images[1].affine)
        headers = [image.header for image in images]
        assert all(headers[0][key] == headers[1][key] for key in ("qform_code", "sform_code", "xyzt_units"))
    assert np.array_equal(read_labels(label)[0], support)
    assert np.array_equal(read_ct(out).image_hu, ct.image_hu + 50 * support)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no slice distance": ({"pixdim": [1, 1.5, 1.25, 0, 0, 0, 0, 0], "sform_code": 0}, r"no distance between slices"),
    "no slice distance but in the sform": ({"pixdim": [1, 1.5, 1.25, 0, 0, 0, 0, 0]}, r"pixdim\[3\]"),
    "no size": ({"pixdim": [1, 0, 0, 0, 0, 0, 0, 0], "qform_code": 0}, r"no voxel size"),
    "negative size": (
        {"pixdim": [1, -1.5, 1.25, 2, 0, 0, 0, 0], "sform_code": 0},
        r"pixdim\[1\] of its header is -1.5",
    ),
    "identity as sform": ({"srow": np.eye(4), "sform_code": 2}, r"voxels are 1 x 1 x 1 mm.*1.5 x 1.25 x 2 mm"),
    "identity as the only form": ({"srow": np.eye(4), "qform_code": 0}, r"contradicts itself"),
    "mirrored sform": ({"srow": MIRRORED, "sform_code": 2}, r"axes RPS.*axes LPS"),
    "sform of zeros": ({"srow": np.zeros((4, 4)), "sform_code": 2}, r"contradicts itself"),
    "sform not a number": ({"srow": np.full((4, 4), np.nan), "sform_code": 2}, r"contradicts itself"),
    "slanted sform, straight qform": ({"srow": sheared(0.2), "sform_code": 2}, r"contradicts itself"),
    "slanted, in micrometre": ({**in_unit(1000.0, 3), "srow": sheared(0.002) * 1e3, "qform_code": 0}, r"contradicts"),
    "four volumes": ({"dim": [4, 12, 10, 4, 2, 1, 1, 1]}, r"4 axes"),
    "one slice without a third axis": ({"dim": [2, 12, 80, 1, 1, 1, 1, 1]}, r"needs a third axis of size 1"),
    "a negative number of voxels": ({"dim": [3, -12, 10, 8, 1, 1, 1, 1]}, r"sizes \(-12, 10, 8\)"),
    "10^13 voxels": ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, r"more than 2\^30"),
    "voxels in the header": ({"vox_offset": 0}, r"begin within its header"),
    "intercept without a slope": ({"scl_slope": 0, "scl_inter": -24}, r"intercept -24, but the slope 0: nnU-Net adds"),
    "intercept and no slope": ({"scl_slope": np.nan, "scl_inter": 10}, r"intercept 10, but the slope nan"),
    "micrometre without the unit": ({**in_unit(1000.0, 0)}, r"2000\. 1250\. 1500\.\] mm .*unit in its header"),
    "metre without the unit": ({**in_unit(0.001, 2)}, r"unit in its header may be missing or wrong"),
    "mm as metre": ({"xyzt_units": 1}, r"unit in its header may be missing or wrong"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_programs_read_differently_is_named(tmp_path: Path, name: str) -> None:
    fields, says = REFUSED[name]
    for ending in (".nii.gz", ".nii"):
        path = save_raw(tmp_path / f"ct{ending}", **{"gzipped": ending == ".nii.gz", **fields})
        with pytest.raises(DiffTumorError, match="unit" if "unit" in says else says) as caught:
            read_ct(path)
        assert str(path) in str(caught.value)
        path.unlink()


@pytest.mark.parametrize(("factor", "unit"), [(1000.0, 3), (0.001, 1)])
@pytest.mark.parametrize("fields", [{"gzipped": False}, {"two": True}])
def test_a_unit_that_nnunet_does_not_read_is_named(
    tmp_path: Path, factor: float, unit: int, fields: dict[str, Any]
) -> None:
    path = save_raw(tmp_path / ("ct.nii.gz" if "two" in fields else "ct.nii"), **in_unit(factor, unit), **fields)
    assert read_by_nnunet(path)[1] == pytest.approx(np.array(STEPS_MM[::-1]) * factor)
    with pytest.raises(CorruptImageError, match=r"unit, voxels are 1\.5 x 1\.25 x 2 mm"):
        read_ct(path)


@pytest.mark.parametrize("name", ["CT.Nii", "CT.NII", "CT.NII.GZ", "ct.Nii.gz"])
def test_an_ending_may_have_large_letters(tmp_path: Path, name: str) -> None:
    path = save_raw(tmp_path / name, gzipped=name.lower().endswith(".gz"))
    assert np.array_equal(read_ct(path).image_hu, make_hu().T)


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.mha"])
def test_a_file_that_may_not_be_read_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    path = save_raw(tmp_path / name, gzipped=name.endswith(".gz"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorruptImageError, match="cannot be read: Permission denied") as caught:
        read_ct(path)
    assert "damaged" not in str(caught.value)


def test_slightly_slanted_axes_are_read_as_nnunet_reads_them_with_nibabel(tmp_path: Path) -> None:
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

    path = save_raw(tmp_path / "ct.nii.gz", srow=sheared(0.002), qform_code=0)
    assert read_ct(path).spacing_mm == pytest.approx(NibabelIO().read_images([str(path)])[1]["spacing"], rel=1e-3)
    assert read_shape(path) == SHAPE[::-1]


def test_a_tilted_gantry_keeps_its_slant_whichever_size_pixdim_gives(tmp_path: Path) -> None:
    across = sheared(0.4)  # the third axis is slanted by 0.4 times the first one's step
    along_mm = float(np.linalg.norm(across[:3, 2]))
    for size_mm in (2.0, along_mm):
        path = save_raw(tmp_path / "ct.nii.gz", srow=across, qform_code=0, pixdim=[1, 1.5, 1.25, size_mm, 0, 0, 0, 0])
        assert read_ct(path).spacing_mm == pytest.approx((along_mm, 1.25, 1.5))


@pytest.mark.parametrize("fields", [{}, {"gzipped": False}, {"quatern_d": 1.000001, "sform_code": 0}, {"order": ">"}])
def test_nifti_2_is_read_with_nibabel_as_by_nnunet(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = save_raw(tmp_path / "ct.nii.gz", two=True, **fields)
    ct = read_ct(path)
    assert np.array_equal(ct.image_hu, make_hu().T)
    assert np.allclose(ct.geometry.affine, AFFINE[:, [2, 1, 0, 3]], atol=1e-4)
    write_labels_like(ct, tmp_path / "label.nii.gz", np.ones(ct.image_hu.shape, np.uint8))
    assert np.array_equal(read_labels(tmp_path / "label.nii.gz")[1].affine, ct.geometry.affine)


def test_a_compressed_file_without_gz_in_its_name_is_to_be_renamed(tmp_path: Path) -> None:
    with pytest.raises(CorruptImageError, match=r"Rename it to ct\.nii\.gz"):
        read_ct(save_raw(tmp_path / "ct.nii"))


def test_a_metaimage_with_a_fourth_axis_of_size_1_is_one_volume(tmp_path: Path) -> None:
    image = sitk.ReadImage(str(save_raw(tmp_path / "ct.nii.gz", srow=turned(17.0), qform_code=0)))
    sitk.WriteImage(sitk.JoinSeries([image]), str(tmp_path / "ct.mha"))
    array, geometry = read_array(tmp_path / "ct.mha")
    expected, expected_geometry = read_array(tmp_path / "ct.nii.gz")
    assert np.array_equal(array, expected)
    assert np.allclose(geometry.affine, expected_geometry.affine, atol=1e-4)
    assert read_shape(tmp_path / "ct.mha") == expected.shape


def test_a_sound_affine_is_that_of_nibabel_to_the_bit(tmp_path: Path) -> None:
    for degrees in (0.0, 17.0):
        path = save_raw(tmp_path / "ct.nii.gz", srow=turned(degrees), qform_code=0)
        assert np.array_equal(read_ct(path).geometry.affine, nibabel.load(path).affine[:, [2, 1, 0, 3]])


angles = st.sampled_from([0.0, 90.0, 180.0]) | st.floats(-180, 180, width=32)
sizes = st.sampled_from([0.7, 1.0, 5.0, 0.0, -1.5]) | st.floats(0.25, 8, width=32)

SCALINGS = [
    *[{}] * 4,
    {"scl_slope": 0.5, "scl_inter": -10.0},
    {"scl_slope": -1.0},
    {"scl_slope": 0.0},
    {"scl_slope": np.nan},
    {"scl_slope": 0.0, "scl_inter": -10.0},
    {"scl_slope": np.inf, "scl_inter": 10.0},
]


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """Any header: forms that agree or not, units, codes, odd sizes, axes, slopes, quaternions off by rounding."""
    rotation = Rotation.from_euler("xyz", [draw(angles) for _ in range(3)], degrees=True)
    quaternion = rotation.as_quat(canonical=True) * draw(st.sampled_from([1.0, 1.0, 1.0 + 1e-6, 1.001]))
    unit, factor = draw(st.sampled_from([(2, 1.0), (2, 1.0), (0, 1.0), (1, 0.001), (3, 1000.0), (5, 1.0), (10, 1.0)]))
    usual = (0.8, 0.8, 3.0)
    steps = [size * factor for size in (usual if draw(st.booleans()) else [draw(sizes) for _ in usual])]
    qfac = draw(st.sampled_from([1.0, 1.0, -1.0, 0.0]))
    offset = np.array([draw(st.floats(-500, 500, width=32)) for _ in range(3)]) * factor
    srow = np.eye(4)
    srow[:3, :3] = rotation.as_matrix() * np.abs(steps) * (1, 1, -1 if qfac < 0 else 1)
    srow[:3, 3] = offset
    other = draw(st.sampled_from(["same", "same", "turned", "shifted", "identity", "sheared", "mirrored", "scaled"]))
    change = np.eye(4)
    change[:3, :3] = Rotation.from_euler("z", 12.0, degrees=True).as_matrix() if other == "turned" else np.eye(3)
    change[:3, 3] = 7.0 * factor if other == "shifted" else 0.0
    change[0, 2] = draw(st.sampled_from([1e-5, 0.002, 0.01, 0.2])) if other == "sheared" else 0.0
    change[0, 0] *= {"mirrored": -1.0, "scaled": draw(st.sampled_from([1.001, 1.5]))}.get(other, 1.0)
    return {
        "srow": np.eye(4) if other == "identity" else srow @ change if other == "sheared" else change @ srow,
        "pixdim": [qfac, *steps, draw(st.sampled_from([0, 1])), 0, 0, 0],
        "qform_code": draw(st.sampled_from([1, 1, 0, 2, 4, 9])),
        "sform_code": draw(st.sampled_from([1, 1, 0, 2, 4, -1])),
        "xyzt_units": unit,
        "dim": draw(st.sampled_from([[3, *SHAPE, 1, 1, 1, 1], [4, *SHAPE, 1, 1, 1, 1], [3, 12, 80, 1, 1, 1, 1, 1]])),
        **draw(st.sampled_from(SCALINGS)),
        "gzipped": draw(st.booleans()),
        "order": draw(st.sampled_from("<<>")),
        "two": draw(st.booleans()),
        **dict(zip(("quatern_b", "quatern_c", "quatern_d"), quaternion[:3], strict=True)),
        **dict(zip(("qoffset_x", "qoffset_y", "qoffset_z"), offset, strict=True)),
    }


def check_any_header(folder: Path, fields: dict[str, Any], ending: str) -> None:
    """The file is named, or as nnU-Net reads it; what no reader of nnU-Net reads has the sizes of its pixdim."""
    for path in folder.iterdir():  # SimpleITK takes the voxels of ct.nii for those of a ct.nii.gz beside it
        path.unlink()
    path = save_raw(folder / f"ct{ending}", **{**fields, "gzipped": ending == ".nii.gz" and fields["gzipped"]})
    try:
        _, geometry = read_array(path)
    except DiffTumorError as error:
        event("named")
        assert str(path) in str(error)  # noqa: PT017
        return
    try:
        read_by_nnunet(path)
    except RuntimeError:
        event("accepted, refused by nnU-Net")
        factor = {1: 1000.0, 3: 0.001}.get(fields["xyzt_units"] & 7, 1.0)
        voxel_mm3 = abs(np.prod(fields["pixdim"][1:4])) * factor**3
        assert abs(np.linalg.det(geometry.affine)) == pytest.approx(voxel_mm3, rel=0.03)
    else:
        event("accepted, as nnU-Net")
        check_as_nnunet_reads(path)
    label = folder / f"label{ending}"
    ct = CTVolume(np.zeros(geometry.shape, np.float32), geometry, path)
    write_labels_like(ct, label, np.ones(geometry.shape, np.uint8))
    assert np.array_equal(read_array(label)[1].affine, geometry.affine)
    with suppress(RuntimeError):
        assert place_of(label) == place_of(path)


DRAWS = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


endings = st.sampled_from([".nii.gz", ".nii.gz", ".nii"])


@settings(DRAWS, max_examples=50)
@given(fields=headers(), ending=endings)
def test_any_header_is_read_as_nnunet_reads_it_or_named(tmp_path: Path, fields: dict[str, Any], ending: str) -> None:
    check_any_header(tmp_path, fields, ending)


@pytest.mark.slow
@settings(DRAWS, max_examples=500, derandomize=False)
@given(fields=headers(), ending=endings)
def test_any_of_500_headers_is_read_as_nnunet_reads_it_or_named(
    tmp_path: Path, fields: dict[str, Any], ending: str
) -> None:
    check_any_header(tmp_path, fields, ending)
