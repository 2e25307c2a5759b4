"""The scanner of the phantom: slice thickness, sharpness, noise and storage as int16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.lesions import Lesion
from nnunet_difftumor.phantom.painting import paint_anatomy
from nnunet_difftumor.phantom.styles import Hospital, OrganRule, ScanSize
from nnunet_difftumor.tumor.spec import Triple

_SUB_SLICE_MM = 1.4
_LOWEST_STORED_HU = -1024.0
_SCAN_HEIGHT_MM = (135.0, 160.0)


class Scan:
    """Grid (D, H, W) and image quality of one scan that covers the patient's width and the height of the liver."""

    def __init__(self, anatomy: Anatomy, size: ScanSize, hospital: Hospital, rng: np.random.Generator) -> None:
        """Draw a scan; the order of the lines is that of the random stream."""
        in_plane_mm = round(float(rng.uniform(*size.in_plane_mm)), 3)
        slice_mm = round(float(rng.uniform(*(hospital.slice_mm or size.slice_mm))), 1)
        half_axes_mm = (anatomy.half_depth_mm, anatomy.half_width_mm)
        rows, columns = (
            math.ceil(2.0 * (axis * anatomy.scale + size.margin_mm) / in_plane_mm) for axis in half_axes_mm
        )
        self.shape = (math.ceil(float(rng.uniform(*_SCAN_HEIGHT_MM)) / slice_mm), rows, columns)
        self.spacing_mm: Triple = (slice_mm, in_plane_mm, in_plane_mm)
        middle_mm = (float(rng.uniform(-6.0, 6.0)), 0.0, 0.0)
        # voxel (0, 0, 0), and the lowest and highest plane, in the patient's frame
        self.start_mm = tuple(middle_mm[i] - 0.5 * (self.shape[i] - 1) * self.spacing_mm[i] for i in range(3))
        self.z_range_mm = (self.start_mm[0], self.start_mm[0] + (self.shape[0] - 1) * slice_mm)
        self.noise_hu = float(rng.uniform(*hospital.noise_hu))
        self.noise_grain = float(rng.uniform(*hospital.noise_grain))
        self.sharpness = float(rng.uniform(*hospital.sharpness))


@dataclass(frozen=True)
class ScannedPatient:
    """Image and annotation of one phantom patient, of shape (D, H, W); the voxel size is ordered alike."""

    image_hu: NDArray[np.int16]
    label: NDArray[np.uint8]  # 0 background; of each organ in turn its own and its tumours' value
    spacing_mm: Triple
    tumor_count: int  # 0 in a healthy patient


def scan_patient(
    anatomy: Anatomy, lesions: Sequence[Lesion], scan: Scan, rng: np.random.Generator, organs: Sequence[OrganRule]
) -> ScannedPatient:
    """Scan a patient: average over the slice thickness, blur, add noise, store; the organs are labelled."""
    image_hu = np.empty(scan.shape, dtype=np.float32)
    label = np.zeros(scan.shape, dtype=np.uint8)
    for index in range(scan.shape[0]):
        image_hu[index], label[index] = _scan_slice(anatomy, lesions, scan, index, organs)
    image_hu = gaussian_filter(image_hu, (0.0, scan.sharpness, scan.sharpness))
    image_hu += _noise(scan, rng)
    stored = np.clip(np.rint(image_hu), _LOWEST_STORED_HU, 3071.0).astype(np.int16)
    return ScannedPatient(stored, label, scan.spacing_mm, len(lesions))


def _scan_slice(
    anatomy: Anatomy, lesions: Sequence[Lesion], scan: Scan, index: int, organs: Sequence[OrganRule]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Mean of several thin planes through one slice, and the label that holds at least half of a voxel."""
    parts = max(1, math.ceil(scan.spacing_mm[0] / _SUB_SLICE_MM))
    edge_mm = scan.spacing_mm[1]
    y_mm, x_mm = (scan.start_mm[axis] + np.arange(scan.shape[axis]) * scan.spacing_mm[axis] for axis in (1, 2))
    columns, rows = np.meshgrid(x_mm.astype(np.float32), y_mm.astype(np.float32), indexing="xy")
    total_hu = np.zeros(scan.shape[1:], dtype=np.float32)
    organ_shares = {organ.name: np.zeros_like(total_hu) for organ in organs}
    tumor_shares = {organ.name: np.zeros_like(total_hu) for organ in organs}
    for part in range(parts):
        z_mm = scan.start_mm[0] + (index + (part + 0.5) / parts - 0.5) * scan.spacing_mm[0]
        points = np.stack([columns, rows, np.full_like(columns, z_mm)])
        hu, distances_mm = paint_anatomy(anatomy, points, edge_mm)
        for name, share in organ_shares.items():
            share += np.clip(0.5 - distances_mm[name] / edge_mm, 0.0, 1.0) / parts
        for lesion in lesions:
            name = lesion.organ.name
            organ_hu = getattr(anatomy.tissue, name)
            tumor_shares[name] += lesion.paint_(hu, points, distances_mm, organ_hu, edge_mm) / parts
        total_hu += hu / parts
    label = np.zeros(total_hu.shape, dtype=np.uint8)
    for number, organ in enumerate(organs):
        label[organ_shares[organ.name] >= 0.5] = 2 * number + 1
    for number, organ in enumerate(organs):
        may_hold = np.isin(label, [0, 2 * number + 1] if organ.exophytic_share else [2 * number + 1])
        is_tumor = tumor_shares[organ.name] >= 0.5
        for lesion in lesions:  # a tight reader marks at least one voxel
            if lesion.edge_offset_mm > 0 and lesion.organ.name == organ.name:
                where = [round((lesion.spec.centre_mm[i] - scan.start_mm[i]) / scan.spacing_mm[i]) for i in range(3)]
                is_tumor[where[1], where[2]] |= where[0] == index
        label[is_tumor & may_hold] = 2 * number + 2
    return total_hu, label


def _noise(scan: Scan, rng: np.random.Generator) -> NDArray[np.float32]:
    """Grainy noise without its lowest frequencies, as filtered back projection gives; strongest inside the body."""
    white = rng.standard_normal(scan.shape).astype(np.float32)
    fine = gaussian_filter(white, (0.25, scan.noise_grain, scan.noise_grain), mode="wrap")
    coarse = gaussian_filter(white, (0.25, 3.0 * scan.noise_grain, 3.0 * scan.noise_grain), mode="wrap")
    noise = fine - 0.7 * coarse
    y = np.linspace(-1.0, 1.0, scan.shape[1], dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, scan.shape[2], dtype=np.float32)[None, :]
    strength = 1.1 - 0.35 * (x * x + y * y)
    return noise * (strength * np.float32(scan.noise_hu) / noise.std())
