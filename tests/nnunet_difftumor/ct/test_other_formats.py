"""NRRD and MetaImage files lie where nnU-Net's reader sees them, or are named; what is written of them lies there."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_difftumor.ct.reading import read_array, read_ct, read_labels
from nnunet_difftumor.ct.writing import write_ct_like, write_labels_like
from nnunet_difftumor.errors import CorruptImageError, DiffTumorError

SPACING_MM = (1.5, 1.25, 2.0)


def make_image(*, slant: float = 0.0, length: float = 1.0, degrees: float = 17.0) -> sitk.Image:
    """A CT of 12 x 10 x 8 voxels, turned about the third axis, which may be slanted; directions of some length."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 300, (8, 10, 12)).astype(np.int16))
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    directions = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    shear = np.eye(3)
    shear[0, 2] = slant
    image.SetDirection((length * directions @ shear).ravel().tolist())
    image.SetSpacing(SPACING_MM)
    image.SetOrigin((30.0, 20.0, -50.0))
    return image


def save(image: sitk.Image, path: Path) -> Path:
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("slant", [0.0, 0.001, 0.01, 0.3])
def test_ct_and_labels_lie_where_the_file_does_for_nibabel_and_simpleitk(tmp_path: Path, ending: str, slant: float):
    path = save(make_image(slant=slant), tmp_path / f"ct{ending}")
    ct = read_ct(path)
    support = np.zeros(ct.image_hu.shape, bool)
    support[2:4, 3:5, 3:6] = True
    out, label = tmp_path / "out.nii.gz", tmp_path / "label.nii.gz"
    write_ct_like(path, out, ct.image_hu + 50, support)
    write_labels_like(ct, label, support.astype(np.uint8))
    for written in (out, label):
        assert np.allclose(read_array(written)[1].affine, ct.geometry.affine, atol=1e-4)
        assert np.allclose(nibabel.load(written).affine[:, [2, 1, 0, 3]], ct.geometry.affine, atol=1e-4)
    assert np.array_equal(read_ct(out).image_hu, ct.image_hu + 50 * support)
    assert np.array_equal(read_labels(label)[0], support)
    if slant == 0.0:
        images = [sitk.ReadImage(str(written)) for written in (out, label)]
        assert images[0].GetDirection() == images[1].GetDirection()
        assert images[0].GetOrigin() == images[1].GetOrigin()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_sizes_are_those_of_nnunet(tmp_path: Path, ending: str) -> None:
    path = save(make_image(), tmp_path / f"ct{ending}")
    array, properties = SimpleITKIO().read_images([str(path)])
    ct = read_ct(path)
    assert np.array_equal(ct.image_hu, array[0])
    assert ct.spacing_mm == pytest.approx(properties["spacing"])


def test_directions_that_scale_are_named(tmp_path: Path) -> None:
    path = save(make_image(length=2.0), tmp_path / "ct.mha")
    assert SimpleITKIO().read_images([str(path)])[1]["spacing"] == pytest.approx(SPACING_MM[::-1])
    with pytest.raises(CorruptImageError, match=r"voxels are 3 x 2\.5 x 4 mm \(axes LPS\).*takes, 1\.5 x 1\.25 x 2 mm"):
        read_ct(path)


@pytest.mark.parametrize(
    ("name", "line"), [("ct.mha", b"ElementSpacing"), ("ct.nrrd", b"space directions"), ("ct.mhd", b"ElementSpacing")]
)
def test_a_file_without_voxel_sizes_is_named(tmp_path: Path, name: str, line: bytes) -> None:
    path = save(make_image(degrees=0.0), tmp_path / name)
    head, separator, rest = path.read_bytes().partition(line)
    rest = rest.partition(b"\n")[2]
    for more in (b"space: left-posterior-superior\n", b"space origin: (30,20,-50)\n", b"kinds: domain domain domain\n"):
        head, rest = head.replace(more, b""), rest.replace(more, b"", 1)
    assert separator
    path.write_bytes(head + rest)
    with pytest.raises(CorruptImageError, match="gives no voxel size"):
        read_ct(path)


def test_what_simpleitk_says_is_shown(tmp_path: Path) -> None:
    path = save(make_image(), tmp_path / "ct.mha")
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1.5 1.25 2", b"ElementSpacing = 1.5 1.25 0"))
    with pytest.raises(CorruptImageError, match="Zero-valued spacing"):
        read_ct(path)


def test_a_name_that_is_no_utf8_does_not_end_the_process(tmp_path: Path) -> None:
    for name in ("caf\udce9.mha", "caf\udce9.nrrd"):
        path = save(make_image(), tmp_path / f"ct{Path(name).suffix}").rename(tmp_path / name)
        with pytest.raises(DiffTumorError, match="its name is no UTF-8"):
            read_ct(path)


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.full((8, 10, 12), -40000, np.int32))
    with pytest.raises(CorruptImageError, match="labels from -40000 to -40000"):
        read_labels(save(image, tmp_path / "label.mha"))
