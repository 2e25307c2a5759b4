"""Writing an edited CT so that nothing outside the edit changes, not even a stored bit.

An output that exists is refused (OutputExistsError), and so is an array of another shape than the CT's
(GeometryMismatchError).
"""

from __future__ import annotations

import gzip
import io
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_difftumor.ct.grid import LPS_TO_RAS, REVERSED_AXES, voxel_sizes
from nnunet_difftumor.ct.nifti import affine_of, decoding, image_like, load_nifti, opened, sitk_name
from nnunet_difftumor.ct.reading import NIFTI_ENDINGS, CTVolume, file_ending, load_sitk
from nnunet_difftumor.errors import CorruptImageError, GeometryMismatchError, UnsupportedImageError
from nnunet_difftumor.support.files.atomic_files import written_whole

_LARGEST_SHEAR = 1e-4
_COMPRESSION = 3
"""Level of gzip: level 6 takes four times as long for a CT and makes it no smaller."""


def write_ct_like(
    template_path: Path, out_path: Path, changed_hu: NDArray[np.floating[Any]], support: NDArray[np.bool_]
) -> None:
    """Write a CT file that equals another one outside a support.

    The stored numbers outside the support, the header with its slope and intercept, and (NIfTI to NIfTI)
    every other byte of the file are those of the template. Inside, HU are turned into stored numbers and
    rounded where the file stores whole numbers.

    Args:
        changed_hu: Only the values inside the support are used. Shape (D, H, W) as `read_ct` gives.
        support: True where the CT changes. Shape (D, H, W).

    Raises:
        CorruptImageError: If the template cannot be read, or a changed value is NaN or infinite.
        UnsupportedImageError: If a file ending is not one that can be written.
    """
    if not np.isfinite(changed_hu[support]).all():
        raise CorruptImageError("changed_hu holds NaN or infinite values inside the support; nothing was written.")
    template_ending, out_ending = file_ending(template_path), file_ending(out_path)
    if template_ending is None or out_ending is None:
        raise UnsupportedImageError(
            f"Cannot write {out_path.name} like {template_path.name}: an ending is not one of an image."
        )
    write = _write_nifti_bytes if {template_ending, out_ending} <= {*NIFTI_ENDINGS} else _write_sitk
    with written_whole(out_path) as temporary:
        write(template_path, temporary, changed_hu, support)


def write_labels_like(ct: CTVolume, out_path: Path, labels: NDArray[np.integer[Any]]) -> None:
    """Write a label map on a CT's grid; as NIfTI beside a NIfTI with the CT's own forms, codes and units.

    Args:
        labels: Whole numbers; stored in one byte if they are from 0 to 255, in two otherwise. Shape (D, H, W).

    Raises:
        UnsupportedImageError: If a label does not fit into two bytes.
    """
    _check_shapes(ct.geometry.shape, out_path, labels)
    low, high = int(labels.min()), int(labels.max())
    if not -32768 <= low <= high <= 32767:
        raise UnsupportedImageError(
            f"{out_path} cannot hold the labels {low} to {high}; they must be from -32768 to 32767. Renumber the mask."
        )
    stored = np.ascontiguousarray(labels, dtype=np.uint8 if 0 <= low <= high <= 255 else np.int16)
    with written_whole(out_path) as temporary:
        if {file_ending(ct.path), file_ending(out_path)} <= {*NIFTI_ENDINGS}:
            nibabel.save(image_like(ct.path, stored.T), temporary)
            return
        to_lps = LPS_TO_RAS @ ct.geometry.affine @ REVERSED_AXES
        spacing = voxel_sizes(to_lps)
        image = sitk.GetImageFromArray(stored)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(to_lps[:3, 3].tolist())
        image.SetDirection((to_lps[:3, :3] / spacing).ravel().tolist())
        _save(image, temporary)


def _write_nifti_bytes(
    template_path: Path, temporary: Path, changed_hu: NDArray[np.floating[Any]], support: NDArray[np.bool_]
) -> None:
    image = load_nifti(template_path)
    buffer = io.BytesIO()  # filled in parts: a CT of 512 x 512 x 600 takes 300 MB each time that it is there as a whole
    with decoding(template_path):
        with opened(template_path) as file:
            shutil.copyfileobj(file, buffer, 2**20)
        content = buffer.getbuffer()
        stored = np.frombuffer(
            content, image.dataobj.dtype, count=int(np.prod(image.shape)), offset=int(image.dataobj.offset)
        ).reshape(image.shape[2::-1])  # NIfTI stores i fastest, so C order is (D, H, W)
    _check_shapes(stored.shape, template_path, changed_hu, support)
    in_stored_units = (changed_hu[support].astype(np.float64) - image.dataobj.inter) / image.dataobj.slope
    stored[support] = _fit_into(in_stored_units, stored.dtype)
    with temporary.open("wb") as file:
        if file_ending(temporary) != ".nii.gz":
            file.write(content)
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=_COMPRESSION, mtime=0) as packed:
            for start in range(0, len(content), 2**20):
                packed.write(content[start : start + 2**20])


def _write_sitk(
    template_path: Path, temporary: Path, changed_hu: NDArray[np.floating[Any]], support: NDArray[np.bool_]
) -> None:
    image = load_sitk(template_path)
    values = sitk.GetArrayFromImage(image)
    _check_shapes(values.shape, template_path, changed_hu, support)
    values[support] = _fit_into(changed_hu[support].astype(np.float64), values.dtype)
    edited = sitk.GetImageFromArray(values)
    edited.CopyInformation(image)
    for key in image.GetMetaDataKeys():
        edited.SetMetaData(key, image.GetMetaData(key))
    _save(edited, temporary)


def _save(image: sitk.Image, path: Path) -> None:
    """Write an image; with nibabel if it is slanted, as of a tilted gantry, which SimpleITK straightens in NIfTI."""
    directions = np.reshape(image.GetDirection(), (3, 3))
    is_slanted = not np.allclose(directions.T @ directions, np.eye(3), atol=_LARGEST_SHEAR)
    if is_slanted and file_ending(path) in NIFTI_ENDINGS:
        values = sitk.GetArrayFromImage(image).T
        nibabel.save(nibabel.Nifti1Image(values, affine_of(image, path), dtype=values.dtype), path)
    else:
        sitk.WriteImage(image, sitk_name(path), useCompression=True, compressionLevel=_COMPRESSION)


def _fit_into(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def _check_shapes(expected: tuple[int, ...], path: Path, *arrays: NDArray[Any]) -> None:
    for array in arrays:
        if tuple(expected) != array.shape:
            raise GeometryMismatchError(
                f"{path} has the shape {tuple(expected)} (D, H, W), but the array to write has {array.shape}. "
                "Give both arrays on the grid that read_ct returns."
            )
