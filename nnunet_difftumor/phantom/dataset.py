"""Writing phantom patients as an nnU-Net raw data set."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.phantom.acquisition import Scan, ScannedPatient, scan_patient
from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.lesions import Lesion, draw_lesions
from nnunet_difftumor.phantom.styles import STANDARD, OrganRule, PhantomStyle
from nnunet_difftumor.support.files.atomic_files import folder_written_whole, write_json
from nnunet_difftumor.tumor.spec import Triple

_FILE_ENDING = ".nii.gz"
_SECOND_ORGAN_SHARE = 0.5


def make_patient(seed: int, index: int, *, is_healthy: bool, style: PhantomStyle = STANDARD) -> ScannedPatient:
    """Make one phantom patient; the same arguments give the same voxels.

    Raises:
        ConfigurationError: If a number is negative.
    """
    if seed < 0 or index < 0:
        raise ConfigurationError(f"seed and index must be 0 or more, got {seed} and {index}.")
    rng = np.random.default_rng([seed, int(is_healthy), index])
    hospital = style.hospitals[index % len(style.hospitals)]
    anatomy = Anatomy(rng, hospital.phase)
    scan = Scan(anatomy, style.size, hospital, rng)
    lesions: list[Lesion] = []
    for organ in () if is_healthy else _affected(style.organs, rng):
        count = int(rng.integers(1, style.tumors.most_per_organ + 1))
        lesions += draw_lesions(anatomy, organ, style.tumors, count, scan.z_range_mm, rng)
    return scan_patient(anatomy, lesions, scan, rng, style.organs)


def _affected(organs: Sequence[OrganRule], rng: np.random.Generator) -> Sequence[OrganRule]:
    """One organ with tumours, and each further one with probability one half; a single organ draws nothing."""
    if len(organs) == 1:
        return organs
    first = int(rng.integers(len(organs)))
    others = rng.random(len(organs)) < _SECOND_ORGAN_SHARE
    return [organ for index, organ in enumerate(organs) if index == first or others[index]]


def write_phantom_dataset(
    output_folder: Path, *, cases: int, healthy: int, seed: int = 0, style: PhantomStyle = STANDARD
) -> Generator[tuple[str, ScannedPatient], None, None]:
    """Write a data set case by case; it appears under its name when the last case is written.

    Args:
        output_folder: Folder to make, for nnU-Net named as in `DatasetXXX_Name`.
        cases: Number of patients with tumours.
        healthy: Number of patients without.

    Yields:
        Identifier and patient of each case after it was written.

    Raises:
        ConfigurationError: If a number is negative, or there would be no case.
        OutputExistsError: If the folder exists and is not empty.
    """
    if cases < 0 or healthy < 0 or cases + healthy == 0:
        raise ConfigurationError(
            f"a data set needs cases >= 0, healthy >= 0 and at least one of them, got cases={cases} and "
            f"healthy={healthy}."
        )
    with folder_written_whole(output_folder) as unfinished:
        for name in ("imagesTr", "labelsTr"):
            (unfinished / name).mkdir()
        for kind, count in (("tumor", cases), ("healthy", healthy)):
            for index in range(count):
                identifier = f"phantom_{kind}_{index:03d}"
                patient = make_patient(seed, index, is_healthy=kind == "healthy", style=style)
                image, label = f"imagesTr/{identifier}_0000{_FILE_ENDING}", f"labelsTr/{identifier}{_FILE_ENDING}"
                _write_nifti(unfinished / image, patient.image_hu, patient.spacing_mm)
                _write_nifti(unfinished / label, patient.label, patient.spacing_mm)
                yield identifier, patient
        write_json(unfinished / "dataset.json", _describe(cases, healthy, seed, style))


def _write_nifti(path: Path, values: NDArray[np.generic], spacing_mm: Triple) -> None:
    """Write an array whose axes are (head, back, left); the middle of the volume lies at 0 mm in plane."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([float(value) for value in reversed(spacing_mm)])
    depth, height, width = values.shape
    origin_mm = (-0.5 * (width - 1) * spacing_mm[2], -0.5 * (height - 1) * spacing_mm[1], -depth * spacing_mm[0] - 80.0)
    image.SetOrigin(origin_mm)
    sitk.WriteImage(image, str(path), useCompression=True)


def _describe(cases: int, healthy: int, seed: int, style: PhantomStyle) -> dict[str, object]:
    """Content of dataset.json."""
    organs = ", ".join(organ.name for organ in style.organs)
    hospitals = "; ".join(f"hospital '{each.name}' ({each.about})" for each in style.hospitals)
    offset_mm = style.tumors.edge_offset_mm
    side = "inside" if offset_mm < 0 else "outside"
    reader = f"tumours visible to {abs(offset_mm):g} mm {side} their labels, " if offset_mm else ""
    return {
        "name": "CT phantom of the upper abdomen",
        "description": (
            f"Computer-made phantom, not patient data: {cases} patients with {style.tumors.name} tumours ({organs}; "
            f"1 to {style.tumors.most_per_organ} in an affected organ) and {healthy} without, "
            f"{hospitals}, {reader}seed {seed}. Made by nnunet-difftumor."
        ),
        "licence": "CC0-1.0",
        "channel_names": {"0": "CT"},
        "labels": style.labels,
        "numTraining": cases + healthy,
        "file_ending": _FILE_ENDING,
    }
