"""Large bright vessels are found where the phantom has them, and nowhere where there is only noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.phantom.acquisition import Scan, scan_patient
from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.styles import STANDARD, UNENHANCED, PhantomStyle
from nnunet_difftumor.synthesis.vessels import find_vessels


def vessel_distance_mm(anatomy: Anatomy, scan: Scan) -> np.ndarray:
    """Distance to the surface of the nearest vessel of the liver, negative inside. Shape (D, H, W)."""
    z_mm, y_mm, x_mm = (
        (start + np.arange(count) * step).astype(np.float32)
        for start, count, step in zip(scan.start_mm, scan.shape, scan.spacing_mm, strict=True)
    )
    columns, rows = np.meshgrid(x_mm, y_mm, indexing="xy")
    planes = []
    for z in z_mm:
        points = np.stack([columns, rows, np.full_like(columns, z)]) / np.float32(anatomy.scale)
        inner = points + np.float32(anatomy.warp_mm) * np.stack([field(points) for field in anatomy.warp])
        planes.append(np.min([tube.distance(inner) for tube in anatomy.liver_vessels], axis=0))
    return np.stack(planes) * anatomy.scale


def phantom(index: int, phase: str | None = None) -> tuple[np.ndarray, np.ndarray, Anatomy, Scan]:
    rng = np.random.default_rng(index)
    hospital = STANDARD.hospitals[0]
    anatomy = Anatomy(rng, phase or hospital.phase)
    scan = Scan(anatomy, STANDARD.size, hospital, rng)
    patient = scan_patient(anatomy, [], scan, rng, STANDARD.organs)
    return patient.image_hu.astype(np.float32), patient.label == 1, anatomy, scan


def test_vessels_of_the_phantom_are_found():
    recalls, precisions = [], []
    for index in range(3):
        image_hu, organ, anatomy, scan = phantom(index)
        found, distance_mm = find_vessels(image_hu, organ, scan.spacing_mm), vessel_distance_mm(anatomy, scan)
        thick = organ & (distance_mm < -2.0)  # the middle of vessels of 4 mm and more
        recalls.append(found[thick].mean())
        precisions.append((distance_mm[found] < 1.5).mean())
    print(recalls, precisions)
    assert min(recalls) > 0.9
    assert min(precisions) > 0.9
