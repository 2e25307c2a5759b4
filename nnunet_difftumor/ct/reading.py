"""CT images and masks read from files onto one (D, H, W) grid with a known position in the patient.

A file is a NIfTI, NRRD or MetaImage file with one 3D volume. What reads one raises CorruptImageError if it is missing
or truncated or has no usable grid, and UnsupportedImageError if it is not one 3D scalar volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_difftumor.ct.grid import REVERSED_AXES, GridGeometry, require_bounded, turn_onto_grid
from nnunet_difftumor.ct.hounsfield import check_hounsfield, check_organ
from nnunet_difftumor.ct.nifti import UnsupportedImageError, affine_of, check_3d, decoding, load_nifti, resolve_affine
from nnunet_difftumor.errors import CorruptImageError

NIFTI_ENDINGS = (".nii.gz", ".nii")
SITK_ENDINGS = (".nrrd", ".mha", ".mhd")
IMAGE_ENDINGS = NIFTI_ENDINGS + SITK_ENDINGS


@dataclass(frozen=True, eq=False)
class CTVolume:
    """A CT on its file's own grid (D, H, W): the file's slowest axis first, as nnU-Net reads it."""

    image_hu: NDArray[np.float32]
    geometry: GridGeometry
    path: Path

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels in mm, (D, H, W)."""
        return self.geometry.spacing_mm


def file_ending(path: Path) -> str | None:
    """Return the image ending of a file name (`.nii.gz`, `.mha`, ...), or None if it is no image we read."""
    name = path.name.lower()
    return next((ending for ending in IMAGE_ENDINGS if name.endswith(ending)), None)


def images_among(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the images we read, sorted by path, each after its name without the ending; hidden files are left out."""
    for path in sorted(paths):
        ending = file_ending(path)
        if ending is not None and not path.name.startswith(".") and path.is_file():
            yield path.name[: -len(ending)], path


def read_ct(path: Path) -> CTVolume:
    """Read a CT in HU.

    Raises:
        CorruptImageError: If the file holds NaN or infinite values.
        NotHounsfieldError: If the values cannot be HU (see `check_hounsfield`).
    """
    array, geometry = read_array(Path(path))
    image_hu = np.ascontiguousarray(array, dtype=np.float32)
    _check_finite(image_hu, path)
    check_hounsfield(image_hu, path)
    return CTVolume(image_hu, geometry, Path(path))


def read_labels(path: Path) -> tuple[NDArray[np.int16], GridGeometry]:
    """Read a label map on its file's own grid: labels (D, H, W) as the file orders them, and where they lie.

    Raises:
        CorruptImageError: If the file holds anything but whole numbers.
    """
    array, geometry = read_array(Path(path))
    if array.dtype.kind == "f":
        _check_finite(array, path)
        rounded = np.rint(array)
        distance = np.abs(array - rounded)
        if distance.max() > 1e-3:
            raise CorruptImageError(
                f"{path} should hold whole label numbers, but holds values such as "
                f"{array.flat[distance.argmax()]:.4g}. It is an image, or a label map that was resampled with "
                "interpolation; resample labels with nearest neighbour."
            )
        array = rounded
    if array.min() < -32768 or array.max() > 32767:
        raise CorruptImageError(f"{path} holds labels up to {array.max()}; label numbers must be below 32768.")
    return np.ascontiguousarray(array, dtype=np.int16), geometry


def read_mask(path: Path, like: CTVolume) -> NDArray[np.int16]:
    """Read a label map onto the grid of the CT that it belongs to (see `read_labels` and `place_labels`)."""
    return place_labels(*read_labels(path), path, like)


def check_organ_files(image_path: Path, label_path: Path, organs: Iterable[int]) -> str:
    """Return the warnings of `check_organ` for organs of a case, voxel by voxel as nnU-Net pairs both files, or ""."""
    image_hu, labels = read_ct(image_path).image_hu, read_labels(label_path)[0]
    masks = (labels == organ for organ in organs if image_hu.shape == labels.shape)
    return " ".join(check_organ(image_hu, mask, label_path) or "" for mask in masks if mask.any()).strip()


def place_labels(labels: NDArray[np.int16], geometry: GridGeometry, path: Path, like: CTVolume) -> NDArray[np.int16]:
    """Turn labels that were read from a file onto the grid of the CT that they belong to.

    Axes that are flipped or permuted in the file are turned back. Nothing is resampled.

    Args:
        labels: Labels as `read_labels` gives them. Shape (D, H, W).
        path: The label file, for messages.

    Raises:
        GeometryMismatchError: If the two physical grids differ.
    """
    mismatch = (
        f"The mask and the CT must lie on the same grid.\n  mask {path}: {geometry.describe()}\n"
        f"  CT   {like.path}: {like.geometry.describe()}\n"
        "Resample the mask onto the CT with nearest neighbour. If the voxels do correspond and only the header is "
        "wrong, copy the CT's header (SimpleITK: mask.CopyInformation(ct))."
    )
    return turn_onto_grid(labels, geometry, like.geometry, mismatch)


def read_array(path: Path) -> tuple[NDArray[Any], GridGeometry]:
    """Read the values (D, H, W) of a volume, as the file orders and scales them, and where they lie."""
    if path.is_dir():
        raise UnsupportedImageError(
            f"{path} is a folder. Name one file; a DICOM series must be converted first, for example with dcm2niix."
        )
    if not path.is_file():
        raise CorruptImageError(
            f"{path} does not exist. Check the path, and in a data set the file_ending of dataset.json."
        )
    ending = file_ending(path)
    if ending is None:
        raise UnsupportedImageError(
            f"{path} has none of the endings {', '.join(IMAGE_ENDINGS)}. Convert the image to .nii.gz."
        )
    array, geometry = _read_nifti(path) if ending in NIFTI_ENDINGS else _read_sitk(path)
    spacing = np.array(geometry.spacing_mm)
    if array.size == 0 or not np.isfinite(geometry.affine).all() or (spacing <= 0).any():
        raise CorruptImageError(f"{path} has no usable grid: {geometry.shape}, spacing {spacing} mm. Export it again.")
    return array, geometry


def read_shape(path: Path) -> tuple[int, ...]:
    """Read the shape that `read_array` gives, (D, H, W), from the header alone."""
    if file_ending(path) in NIFTI_ENDINGS:
        return tuple(reversed(load_nifti(path).shape[:3]))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with decoding(path):
        reader.ReadImageInformation()
    check_3d(reader.GetSize(), path)
    return tuple(reversed(reader.GetSize()[:3]))


def load_sitk(path: Path) -> sitk.Image:
    """Read an image with SimpleITK; a fourth axis of size 1 is dropped."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with decoding(path):
        reader.ReadImageInformation()
    require_bounded(reader.GetSize(), path)
    with decoding(path):
        image = reader.Execute()
    check_3d(image.GetSize(), path)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UnsupportedImageError(
            f"{path} has {image.GetNumberOfComponentsPerPixel()} values a voxel; a CT has one. Export it in HU."
        )
    if image.GetDimension() == 3:
        return image
    size = [*image.GetSize()[:3], *[0] * (image.GetDimension() - 3)]
    return sitk.Extract(image, size, [0] * len(size), sitk.ExtractImageFilter.DIRECTIONCOLLAPSETOSUBMATRIX)


def _read_nifti(path: Path) -> tuple[NDArray[Any], GridGeometry]:
    image = load_nifti(path)
    affine = resolve_affine(image, path)
    with decoding(path):
        array = np.asanyarray(image.dataobj).reshape(image.shape[:3], order="F")
    return array.T, GridGeometry(array.T.shape, affine @ REVERSED_AXES)


def _read_sitk(path: Path) -> tuple[NDArray[Any], GridGeometry]:
    image = load_sitk(path)
    array = sitk.GetArrayFromImage(image)
    return array, GridGeometry(array.shape, affine_of(image) @ REVERSED_AXES)


def _check_finite(array: NDArray[Any], path: Path) -> None:
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise CorruptImageError(
            f"{path} holds {bad} NaN or infinite voxels of {array.size}. Replace them (outside the scan: -1000 HU)."
        )
