"""What is drawn for a tumour: place, size, shape and look; a record of it makes the same tumour again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnunet_difftumor.ct.resample import Vector
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.edge import Edge
from nnunet_difftumor.tumor.sizes import SizeClass

Triple = tuple[float, float, float]

WAVES = 8


@dataclass(frozen=True, kw_only=True)
class TumorSpec:
    """Everything that was drawn for one tumour; the same spec on the same scan gives the same tumour.

    Attributes:
        centre_mm: Centre relative to the centre of voxel (0, 0, 0) of the grid, in mm, array order.
        radius_mm: Radius of the sphere of equal volume, in mm.
        axis_ratios: Relative lengths of the three principal semi-axes, largest first.
        rotation: Unit quaternion (w, x, y, z) that turns the principal axes.
        roughness: Standard deviation of the logarithm of the radius over the surface.
        seed: Seed of the surface and of the generator's noise.
        contrast_hu: Requested depth in HU: tissue in the middle minus the organ around it; None leaves it to the
            generator.
        heterogeneity_hu: Requested standard deviation inside after smoothing away the noise, in HU; None: likewise.
        size_class: Name of the size class that the radius was drawn from.
        edge_offset_mm, edge_width_mm: Where the visible edge lies (see `Edge`), before it is limited by the radius.
        scan_seed: Seed of what the tumours of one scan share in their looks.
    """

    centre_mm: Triple
    radius_mm: float
    axis_ratios: Triple = (1.0, 1.0, 1.0)
    rotation: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    roughness: float = 0.0
    seed: int = 0
    contrast_hu: float | None = None
    heterogeneity_hu: float | None = None
    size_class: str = "user"
    edge_offset_mm: float = 0.0
    edge_width_mm: float = 1.0
    scan_seed: int = 0

    def __post_init__(self) -> None:
        if not self.radius_mm > 0 or min(self.axis_ratios) <= 0:
            raise DiffTumorError(
                f"TumorSpec needs radius_mm > 0 and axis_ratios > 0, got {self.radius_mm} and {self.axis_ratios}."
            )

    @property
    def appearance(self) -> Appearance:
        """What is asked of the generator."""
        return Appearance(contrast_hu=self.contrast_hu, heterogeneity_hu=self.heterogeneity_hu)

    @property
    def edge(self) -> Edge:
        """Where the visible edge lies, as far as the tumour has room for it."""
        return Edge(offset_mm=self.edge_offset_mm, width_mm=self.edge_width_mm).limited_to(self.radius_mm)

    def moved_to(self, centre_mm: Vector) -> TumorSpec:
        """Return the same tumour at another centre (mm, array order)."""
        return replace(self, centre_mm=_triple(centre_mm))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TumorSpec:
        """Read the `dataclasses.asdict` of a spec, as JSON holds it, without loss.

        Raises:
            DiffTumorError: If a key is missing or unknown, or a value is of another kind.
        """
        expected = set(cls.__dataclass_fields__)
        if set(values) != expected:
            raise DiffTumorError(
                f"A tumour record needs exactly the keys {sorted(expected)}; missing "
                f"{sorted(expected - set(values))}, unknown {sorted(set(values) - expected)}."
            )
        for key, (is_right, description) in _RECORD_VALUES.items():
            if not is_right(values[key]):
                raise DiffTumorError(f"A tumour record needs {key} to be {description}, got {values[key]!r}.")
        tuples = {key: tuple(values[key]) for key in ("centre_mm", "axis_ratios", "rotation")}
        return cls(**{**values, **tuples})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_numbers(count: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) == count and all(map(_is_number, value))


_RECORD_VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "centre_mm": (_are_numbers(3), "three numbers in mm"),
    "radius_mm": (_is_number, "a number of mm"),
    "axis_ratios": (_are_numbers(3), "three numbers"),
    "rotation": (_are_numbers(4), "a quaternion, four numbers"),
    "roughness": (_is_number, "a number"),
    "seed": (_is_seed, "a whole number of 0 or more"),
    "scan_seed": (_is_seed, "a whole number of 0 or more"),
    "edge_offset_mm": (_is_number, "a number of mm"),
    "edge_width_mm": (_is_number, "a number of mm"),
    "contrast_hu": (lambda value: value is None or _is_number(value), "a number in HU, or null"),
    "heterogeneity_hu": (lambda value: value is None or _is_number(value), "a number in HU, or null"),
    "size_class": (lambda value: isinstance(value, str), "a name"),
}


def draw_tumor_spec(
    size_class: SizeClass, centre_mm: Vector, appearance: Appearance, rng: np.random.Generator
) -> TumorSpec:
    """Draw size and shape of one tumour.

    Axis ratios and roughness follow the shapes of 72 real kidney tumours: elongation about 0.85,
    flatness about 0.5 to 0.8, sphericity 0.95 below 2 cm, 0.90 to 5 cm and 0.83 above.
    """
    radius_mm = float(rng.uniform(*size_class.radius_mm))
    elongation = float(np.clip(rng.normal(0.85, 0.07), 0.65, 0.97))
    flatness = float(np.clip(rng.normal(0.72, 0.10), 0.5, 0.95)) * elongation
    quaternion = rng.normal(size=4)
    quaternion /= np.linalg.norm(quaternion)
    return TumorSpec(
        centre_mm=_triple(centre_mm),
        radius_mm=radius_mm,
        axis_ratios=(1.0, elongation, flatness),
        rotation=tuple(float(value) for value in quaternion),  # type: ignore[arg-type]
        roughness=_roughness(radius_mm) * float(rng.uniform(0.7, 1.3)),
        seed=int(rng.integers(2**62)),
        contrast_hu=appearance.contrast_hu,
        heterogeneity_hu=appearance.heterogeneity_hu,
        size_class=size_class.name,
    )


def _triple(values: Vector) -> Triple:
    depth, height, width = map(float, values)
    return depth, height, width


def _roughness(radius_mm: float) -> float:
    """Surface variation that grows with size, as the sphericity of real tumours falls."""
    return float(np.interp(radius_mm, [5.0, 10.0, 17.0, 36.0], [0.10, 0.13, 0.21, 0.31]))
