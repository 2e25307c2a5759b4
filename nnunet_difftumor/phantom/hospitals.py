"""Hospitals of the phantom: scanner, reconstruction and contrast phase, so that data sets differ as hospitals do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.phantom.organs import ARTERIAL, PORTAL_VENOUS, UNENHANCED

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """How one hospital scans; each value is drawn from its range for every patient.

    Attributes:
        about: What it stands for, in a few words.
        noise_hu: Standard deviation of the noise in HU.
        noise_grain: Width of the noise's grain in voxels.
        sharpness: Standard deviation of the in-plane blur in voxels: a sharp kernel blurs less.
        slice_mm: Slice thickness in mm; None takes that of the scan's size.
    """

    name: str
    about: str
    phase: str = PORTAL_VENOUS
    noise_hu: Range = (8.0, 13.0)
    noise_grain: Range = (0.55, 0.9)
    sharpness: Range = (0.35, 0.6)
    slice_mm: Range | None = None


_STYLES = (
    Hospital(name="standard", about="portal venous, mixed slice thickness, soft kernel"),
    Hospital(
        name="thin-sharp",
        about="portal venous, thin slices, sharp and noisy kernel",
        noise_hu=(16.0, 22.0),
        noise_grain=(0.45, 0.6),
        sharpness=(0.15, 0.25),
        slice_mm=(1.5, 2.5),
    ),
    Hospital(
        name="thick-smooth",
        about="portal venous, thick slices, smooth reconstruction with little noise",
        noise_hu=(4.0, 7.0),
        noise_grain=(0.9, 1.3),
        sharpness=(0.7, 1.0),
        slice_mm=(4.5, 6.0),
    ),
    Hospital(name="arterial", about="late arterial phase, otherwise standard", phase=ARTERIAL),
    Hospital(
        name="low-dose",
        about="unenhanced CT of a PET/CT: thick slices, much noise",
        phase=UNENHANCED,
        noise_hu=(18.0, 28.0),
        noise_grain=(0.7, 1.0),
        sharpness=(0.5, 0.8),
        slice_mm=(4.0, 5.0),
    ),
)
HOSPITALS: Mapping[str, Hospital] = MappingProxyType({style.name: style for style in _STYLES})


def choose_hospital(name: str) -> Hospital:
    """Look up a hospital's style.

    Args:
        name: A key of `HOSPITALS`.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    if name not in HOSPITALS:
        raise ConfigurationError(f"hospital must be one of {', '.join(HOSPITALS)}, got '{name}'.")
    return HOSPITALS[name]
