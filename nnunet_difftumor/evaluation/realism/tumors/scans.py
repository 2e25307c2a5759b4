"""Scans of the evaluation: CT, organ and tumours on one isotropic grid."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.ct.boxes import box_around
from nnunet_difftumor.ct.components import label_components
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.ct.hounsfield import check_organ
from nnunet_difftumor.ct.reading import read_ct, read_mask
from nnunet_difftumor.ct.resample import AIR_HU, resample
from nnunet_difftumor.errors import MissingLabelError
from nnunet_difftumor.evaluation.realism.settings import EVALUATION_SPACING_MM

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_SMALLEST_TUMOR_MM3 = 113.0  # a sphere of 3 mm radius
_AROUND_MM = 100.0  # beyond any generator's region of interest


@dataclass(frozen=True, eq=False)
class EvaluationScan:
    """A scan that the generator never saw. Masks have the image's shape.

    Attributes:
        identifier: Case identifier.
        spacing_mm: Spacing in mm, array order.
        image_hu: CT in HU. Shape (D, H, W).
        organ: True in the organ, tumours left out.
        tumors: True in any tumour.
        target: True in the tumours that are compared: those from 3 mm radius up, as many as are asked for.
        window_hu: Window to which values are limited where they are measured, in HU: the generator's.
        affine: Takes a voxel index to right-anterior-superior mm, up to a shift. Shape (4, 4).
        patient: Whose scan it is.
        left_out: How many tumours from 3 mm radius up are not compared.
    """

    identifier: str
    spacing_mm: tuple[float, float, float]
    image_hu: FloatArray
    organ: BoolArray
    tumors: BoolArray
    target: BoolArray
    window_hu: tuple[float, float]
    affine: NDArray[np.floating] = field(default_factory=lambda: np.eye(4)[[2, 1, 0, 3]])
    patient: str = ""
    left_out: int = 0

    @property
    def has_target(self) -> bool:
        """True if there is a tumour to replace."""
        return bool(self.target.any())

    def targets(self) -> Iterator[EvaluationScan]:
        """Yield the scan around each tumour that is compared, which is its only target there; largest first."""
        numbers, count = label_components(self.target)
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        for number in np.argsort(-sizes, kind="stable") + 1:
            target = numbers == number
            box = box_around(target, self.spacing_mm, _AROUND_MM)
            cut = {name: getattr(self, name)[box].copy() for name in ("image_hu", "organ", "tumors")}
            yield replace(self, target=target[box].copy(), **cut)

    @property
    def limited_hu(self) -> FloatArray:
        """CT limited to the window, in HU. Shape (D, H, W)."""
        return np.clip(self.image_hu, *self.window_hu)

    def distance_to_tumors_mm(self) -> FloatArray:
        """Distance to the nearest tumour voxel in mm, infinite without any. Shape (D, H, W)."""
        if not self.tumors.any():
            return np.full(self.image_hu.shape, np.inf, dtype=np.float32)
        return np.asarray(distance_transform_edt(~self.tumors, sampling=self.spacing_mm), dtype=np.float32)


def read_scan(
    case: Case,
    organ_label: int,
    tumor_label: int | None,
    window_hu: tuple[float, float],
    *,
    native: bool = False,
    most_tumors: int = 1,
    patient: str | None = None,
) -> EvaluationScan:
    """Read a scan onto the evaluation's grid.

    Args:
        tumor_label: Value of the tumour; None if the labels know no tumour.
        window_hu: The generator's window in HU.
        native: Keep the scan's own grid.
        most_tumors: Most tumours that are compared; where there are more, those are taken that spread over the sizes,
            the largest among them.
        patient: Whose scan it is; without it, the case is a patient of its own.

    Raises:
        GeometryMismatchError: If a quarter of the organ is air.
        MissingLabelError: If the case has no label map, or no voxel of the organ.
    """
    if case.label_path is None:
        raise MissingLabelError(f"Case {case.identifier} has no label map; evaluate on annotated cases.")
    ct = read_ct(case.image_path)
    labels = read_mask(case.label_path, ct)
    if organ_label in labels and (warning := check_organ(ct.image_hu, labels == organ_label, case.label_path)):
        logger.warning(warning)
    step_mm = EVALUATION_SPACING_MM
    spacing = ct.spacing_mm if native else (step_mm, step_mm, step_mm)
    shape = [
        max(1, int(np.floor((size - 1) * old / new)) + 1)
        for size, old, new in zip(labels.shape, ct.spacing_mm, spacing, strict=True)
    ]

    def on_grid(volume: NDArray, fill_value: float) -> NDArray:
        if native:
            return volume
        origin = (0.0, 0.0, 0.0)
        return resample(volume, ct.spacing_mm, shape, spacing, origin, fill_value=fill_value, whole_voxels=True)

    tumors = on_grid(labels == tumor_label, 0.0) >= 0.5
    organ = (on_grid(labels == organ_label, 0.0) >= 0.5) & ~tumors
    if not organ.any():
        raise MissingLabelError(f"{case.label_path} has no voxel of the organ (label {organ_label}).")
    target, left_out = _targets(tumors, spacing, most_tumors)
    return EvaluationScan(
        identifier=case.identifier,
        spacing_mm=spacing,
        image_hu=on_grid(ct.image_hu, AIR_HU),
        organ=organ,
        tumors=tumors,
        target=target,
        window_hu=window_hu,
        affine=ct.geometry.affine * np.append(np.divide(spacing, ct.spacing_mm), 1.0),
        patient=patient or case.identifier,
        left_out=left_out,
    )


def _targets(tumors: BoolArray, spacing_mm: tuple[float, float, float], most: int) -> tuple[BoolArray, int]:
    """Voxels of the tumours that are compared, spread over the sizes, and how many others reach 3 mm in radius."""
    numbers, _ = label_components(tumors)
    volumes_mm3 = np.bincount(numbers.ravel()) * float(np.prod(spacing_mm))
    volumes_mm3[0] = 0.0  # outside
    by_size = np.argsort(-volumes_mm3, kind="stable")[: int((volumes_mm3 >= _SMALLEST_TUMOR_MM3).sum())]
    ranks = np.unique(np.linspace(0, len(by_size) - 1, min(most, len(by_size))).round().astype(int))
    return np.isin(numbers, by_size[ranks]), len(by_size) - len(ranks)
