"""What is recorded of a tumour's shape and surroundings, so that another resampling of it is recognised.

The numbers are rounded: they say about how large and how elongated a tumour is, and nothing of its picture.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.generator.records import is_finite_number, read_value


@dataclass(frozen=True, kw_only=True)
class SurroundingsPrint:
    """The CT around a tumour's centroid, weighted by (1 - (distance / radius)^2)^2.

    Attributes:
        radius_mm: Distance in mm at which the weight is 0.
        mean_hu: Weighted mean in HU.
        slope_hu: Length of the weighted mean of (value - mean) * offset / radius, in HU: brighter on one side.
        quadrupole_hu: Norm of the weighted mean of (value - mean) times the traceless tensor
            offset offset^T / radius^2, in HU: brighter along one axis.
    """

    radius_mm: float
    mean_hu: float
    slope_hu: float
    quadrupole_hu: float

    def __post_init__(self) -> None:
        _require_numbers(**vars(self))


@dataclass(frozen=True, kw_only=True)
class TumorPrint:
    """A tumour mask, or a part of it, in numbers that do not depend on position, direction and voxel size.

    Attributes:
        voxel_mm: Root mean square of the grid's spacing in mm, which says how exact the other numbers are.
        volume_mm3: Volume in mm3.
        axes_mm: Standard deviation along the three principal axes in mm, largest first.
        skewness: Length of the vector of third moments, in units of the mean axis cubed.
        asymmetry: Norm of the tensor of third moments, in units of the mean axis cubed.
        surroundings: The CT around the centroid, for each radius that lies within the scan.
    """

    voxel_mm: float
    volume_mm3: float
    axes_mm: tuple[float, float, float]
    skewness: float
    asymmetry: float
    surroundings: tuple[SurroundingsPrint, ...] = ()

    def __post_init__(self) -> None:
        if len(self.axes_mm) != 3:
            raise ValueError(f"axes_mm must be three numbers in mm, got {list(self.axes_mm)}.")
        largest, middle, smallest = self.axes_mm
        _require_numbers(voxel_mm=self.voxel_mm, volume_mm3=self.volume_mm3, skewness=self.skewness)
        _require_numbers(asymmetry=self.asymmetry, largest=largest, middle=middle, smallest=smallest)
        if min(self.voxel_mm, self.volume_mm3, smallest) <= 0:
            raise ValueError(
                f"voxel_mm, volume_mm3 and axes_mm must be above 0, got {self.voxel_mm}, {self.volume_mm3} and "
                f"{list(self.axes_mm)}."
            )


def parse_tumor_prints(entries: object, source: str, error_type: type[ValueError]) -> tuple[TumorPrint, ...] | None:
    """Read prints strictly from parsed JSON; None, for a case whose labels were not looked at, stays None.

    Raises:
        error_type: If an entry is unknown, missing or malformed; the message begins with `source`.
    """
    return read_value(tuple[TumorPrint, ...] | None, entries, source, error_type)


def _require_numbers(**values: object) -> None:
    for name, value in values.items():
        if not is_finite_number(value):
            raise ValueError(f"{name} must be a number, got {value!r}.")
