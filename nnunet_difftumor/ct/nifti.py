"""NIfTI files opened with nibabel, and where their voxels lie: as SimpleITK says, nnU-Net's default reader.

nibabel and SimpleITK differ in units, in which form of the header they take, and in where they take the voxel size
from: nibabel from the sform, SimpleITK from pixdim.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from nnunet_difftumor.ct.grid import LPS_TO_RAS, require_bounded, voxel_sizes
from nnunet_difftumor.errors import CorruptImageError, DiffTumorError

_MM_OF_UNIT = {1: 1000.0, 3: 0.001}
"""By the spatial bits of xyzt_units: metre, micrometre. Everything else is mm."""

_LARGEST_DISAGREEMENT = 0.02  # 1% of a size, or about one degree of shear
_SAME_BUT_FOR_ROUNDING = (1e-5, 1e-5, 1e-5, 1e-3)  # of a step along each axis, and of the first voxel, in voxels

Affine: TypeAlias = NDArray[np.float64]


class UnsupportedImageError(DiffTumorError):
    """An image file is whole, but of a kind that is not a single 3D scalar volume."""


class _ForgivingQuaternion:
    def get_qform_quaternion(self) -> NDArray[Any]:
        """Take a quaternion that rounding made longer than 1 for one of length 1, as ITK does; nibabel refuses it."""
        header: Any = super()
        try:
            return header.get_qform_quaternion()
        except ValueError:
            stored: Any = self
            return np.array([0.0, *(float(stored[f"quatern_{letter}"]) for letter in "bcd")])


def _forgiving(kind: Any) -> Any:
    return type(kind.__name__, (kind,), {"header_class": type("Header", (_ForgivingQuaternion, kind.header_class), {})})


_KINDS = {348: _forgiving(nibabel.Nifti1Image), 540: _forgiving(nibabel.Nifti2Image)}
"""Image class by the first number of a file, the size of its header."""


def load_nifti(path: Path) -> Any:
    """Open a NIfTI file with nibabel, without decoding its voxels; one named .gz need not be compressed."""
    with decoding(path):
        packed, is_named_gz = _is_packed(path), path.name.lower().endswith(".gz")
    if packed and not is_named_gz:
        raise CorruptImageError(
            f"{path} is compressed with gzip, but its name does not end in .gz. Rename it to {path.name}.gz."
        )
    with decoding(path):
        kind = _kind(path)
        image: Any = kind.from_filename(path) if packed == is_named_gz else kind.from_bytes(path.read_bytes())
    check_3d(image.shape, path)
    require_bounded(image.shape, path)
    if image.get_data_dtype().kind not in "iuf":
        raise UnsupportedImageError(
            f"{path} stores {image.get_data_dtype()} voxels; one plain number a voxel is needed. "
            "Export the CT in HU as int16."
        )
    return image


def image_like(path: Path, values: NDArray[Any]) -> Any:
    """Return a NIfTI image of values (I, J, K) with the forms, codes, sizes and units that a NIfTI file stores."""
    stored = _stored_header(path)
    header = stored.copy()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = header["vox_offset"] = 0
    header.extensions.clear()
    image = _kind(path)(values, None, header)
    for field in ("pixdim", "qform_code", "sform_code"):  # nibabel corrects odd ones, and ITK then reads another place
        image.header[field] = stored[field]
    return image


def resolve_affine(image: Any, path: Path) -> Affine:
    """Return the affine of an opened NIfTI file, from voxel (i, j, k, 1) to right-anterior-superior mm, shape (4, 4).

    It is SimpleITK's. Where nibabel's is the same but for rounding, it is nibabel's to the bit; so it is where
    SimpleITK refuses a grid with slightly slanted axes, which nnU-Net then reads with nibabel.

    Raises:
        CorruptImageError: If the file gives no voxel size, or sizes or sides depend on who reads it.
    """
    header = _stored_header(path)
    unset = [axis for axis in (1, 2, 3) if not header["pixdim"][axis] > 0]
    if unset:
        what = "distance between slices" if unset == [3] else "voxel size"
        raise CorruptImageError(
            f"{path} gives no {what}: pixdim[{unset[0]}] of its header is {header['pixdim'][unset[0]]:g}, which "
            "each program reads its own way. Export it again, or write the voxel sizes of the scan into its header "
            "(nibabel: image.header.set_zooms)."
        )
    factor = _MM_OF_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    own = np.diag([factor, factor, factor, 1.0]) @ np.asarray(image.affine, dtype=np.float64)
    reader = sitk.ImageFileReader()
    try:
        reader.SetFileName(os.fsencode(path).decode())  # a name that is not UTF-8 would end the process
        reader.ReadImageInformation()
    except (RuntimeError, UnicodeDecodeError):
        # nnU-Net reads such a file with nibabel, which knows no units and takes the sizes of pixdim
        _check_pixdim(own, header["pixdim"][1:4], path)
        return own
    if reader.GetSize() != image.shape[:3]:
        raise CorruptImageError(f"{path} has the shape {image.shape}, but SimpleITK reads {reader.GetSize()}.")
    itk = affine_of(reader)
    _check_agreement(own, itk, path, have_sides=min(header["qform_code"], header["sform_code"]) > 0)
    difference = np.abs(np.linalg.solve(itk, own) - np.eye(4))[:3]
    return own if (difference <= _SAME_BUT_FOR_ROUNDING).all() else itk


def affine_of(image: sitk.Image | sitk.ImageFileReader) -> Affine:
    """Return the affine of a 3D image of SimpleITK, from voxel (i, j, k, 1) to right-anterior-superior mm (4, 4)."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def check_3d(shape: tuple[int, ...], path: Path) -> None:
    """Raise UnsupportedImageError for what is not one volume; axes of size 1 after the third are none."""
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise UnsupportedImageError(
            f"{path} should hold one 3D volume, but has {len(shape)} axes with sizes {shape}. "
            "Write each time point or channel to a file of its own."
        )


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Name the file that nibabel or SimpleITK (RuntimeError) cannot read."""
    errors = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, WrapStructError, ValueError, RuntimeError)
    try:
        yield
    except errors as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptImageError(
            f"{path} cannot be read; it looks truncated or damaged, or is of another kind than its name says "
            f"({reason}). Copy it again."
        ) from error


def _stored_header(path: Path) -> Any:
    """Read the header of a NIfTI file as it is stored; nibabel.load puts 1 for a pixdim of 0, for example."""
    with decoding(path), _opened(path) as stream:
        return _kind(path).header_class.from_fileobj(stream, check=False)


def _kind(path: Path) -> Any:
    with _opened(path) as stream:
        size = stream.read(4)
    return _KINDS[540 if 540 in (int.from_bytes(size, "little"), int.from_bytes(size, "big")) else 348]


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _opened(path: Path) -> Any:
    return gzip.open(path) if _is_packed(path) else path.open("rb")


def _check_pixdim(own: Affine, pixdim: NDArray[np.floating], path: Path) -> None:
    """Compare sizes: on slanted axes, pixdim may be the step along an axis or the distance across the others."""
    sizes = voxel_sizes(own)
    slant, ratio = abs(np.linalg.det(own[:3, :3])) / np.prod(sizes), pixdim / sizes
    if not ((ratio >= 0.99 * slant) & (ratio <= 1.01)).all():
        _refuse(own, own * np.append(ratio, 1.0), path)


def _check_agreement(own: Affine, other: Affine, path: Path, *, have_sides: bool) -> None:
    """Compare distances in two grids, the file's forms as nibabel and as nnU-Net read them, wherever they lie."""
    steps, others = own[:3, :3], other[:3, :3]
    scale = np.outer(voxel_sizes(other), voxel_sizes(other))
    disagreement = np.abs(steps.T @ steps - others.T @ others) / scale
    is_equal = bool((disagreement <= _LARGEST_DISAGREEMENT).all())
    if not is_equal or (have_sides and np.linalg.det(own) * np.linalg.det(other) < 0):
        _refuse(own, other, path)


def _refuse(own: Affine, other: Affine, path: Path) -> None:
    sizes = [" x ".join(f"{size:.4g}" for size in voxel_sizes(affine)) for affine in (own, other)]
    axes = ["".join(map(str, nibabel.aff2axcodes(np.nan_to_num(affine)))) for affine in (own, other)]
    raise CorruptImageError(
        f"The header of {path} contradicts itself: by its sform, voxels are {sizes[0]} mm (axes {axes[0]}), by its "
        f"pixdim and qform, which nnU-Net takes, {sizes[1]} mm (axes {axes[1]}). Find out which is right, and write "
        "it to both (nibabel: image.set_sform(image.get_qform(), code=1), or the other way round)."
    )
