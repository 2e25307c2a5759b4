"""Scans of the evaluation: CT, organ and tumours on one isotropic grid."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

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


@dataclass(frozen=True, eq=False)
class EvaluationScan:
    """A scan that the generator never saw. Masks have the image's shape.

    Attributes:
        identifier: Case identifier; a patient.
        spacing_mm: Spacing in mm, array order.
        image_hu: CT in HU. Shape (D, H, W).
        organ: True in the organ, tumours left out.
        tumors: True in any tumour.
        target: True in the largest tumour, empty if no tumour reaches 3 mm radius.
        window_hu: Window to which values are limited where they are measured, in HU: the generator's.
        affine: Takes a voxel index to right-anterior-superior mm, up to a shift. Shape (4, 4).
    """

    identifier: str
    spacing_mm: tuple[float, float, float]
    image_hu: FloatArray
    organ: BoolArray
    tumors: BoolArray
    target: BoolArray
    window_hu: tuple[float, float]
    affine: NDArray[np.floating] = field(default_factory=lambda: np.eye(4)[[2, 1, 0, 3]])

    @property
    def has_target(self) -> bool:
        """True if there is a tumour to replace."""
        return bool(self.target.any())

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
    case: Case, organ_label: int, tumor_label: int | None, window_hu: tuple[float, float], *, native: bool = False
) -> EvaluationScan:
    """Read a scan onto the evaluation's grid.

    Args:
        tumor_label: Value of the tumour; None if the labels know no tumour.
        window_hu: The generator's window in HU.
        native: Keep the scan's own grid.

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
    image_hu, target = on_grid(ct.image_hu, AIR_HU), _largest(tumors, spacing)
    affine = ct.geometry.affine * np.append(np.divide(spacing, ct.spacing_mm), 1.0)
    return EvaluationScan(case.identifier, spacing, image_hu, organ, tumors, target, window_hu, affine)


def _largest(tumors: BoolArray, spacing_mm: tuple[float, float, float]) -> BoolArray:
    """The largest connected tumour, or nothing if it is under 3 mm in radius."""
    components, _ = label_components(tumors)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # outside
    is_enough = sizes.max() * float(np.prod(spacing_mm)) >= _SMALLEST_TUMOR_MM3
    return components == sizes.argmax() if is_enough else np.zeros_like(tumors)
