"""Size classes of synthetic tumours, in mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_difftumor.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class SizeClass:
    """A range of tumour radii and how often it is drawn.

    "Radius" is the radius of the sphere of equal volume.

    Attributes:
        name: Name in records and logs.
        radius_mm: Smallest and largest radius in mm; drawn uniformly between them.
        probability: Relative frequency of the class.
        max_count: Most tumours of this class in one sample; drawn uniformly from 1 to this number.
    """

    name: str
    radius_mm: tuple[float, float]
    probability: float
    max_count: int = 1

    def __post_init__(self) -> None:
        low, high = self.radius_mm
        if not 0 < low <= high:
            raise ConfigurationError(
                f"size class '{self.name}' needs 0 < smallest <= largest radius in mm, got {low} and {high}."
            )
        if self.probability < 0 or self.max_count < 1:
            raise ConfigurationError(
                f"size class '{self.name}' needs probability >= 0 and max_count >= 1, "
                f"got {self.probability} and {self.max_count}."
            )


PAPER_SIZE_CLASSES: tuple[SizeClass, ...] = (
    SizeClass(name="tiny", radius_mm=(3.0, 5.0), probability=0.4, max_count=3),
    SizeClass(name="small", radius_mm=(6.0, 10.0), probability=0.4, max_count=3),
    SizeClass(name="medium", radius_mm=(12.0, 20.0), probability=0.1),
    SizeClass(name="large", radius_mm=(24.0, 64.0), probability=0.1),
)
"""Classes of Chen et al. (CVPR 2024): early tumours (tiny or small) 0.8, medium 0.1, large 0.1; radii taken in mm."""


def fit_size_classes(size_classes: Sequence[SizeClass], largest_radius_mm: float) -> tuple[SizeClass, ...]:
    """Lower the upper ends of size classes to what a region can hold; classes that start above it are left out.

    If none is left, the class that starts lowest is kept with both ends at the limit.
    """
    fitting = [
        replace(size, radius_mm=(size.radius_mm[0], min(size.radius_mm[1], largest_radius_mm)))
        for size in size_classes
        if size.probability > 0 and size.radius_mm[0] <= largest_radius_mm
    ]
    if fitting:
        return tuple(fitting)
    smallest = min(size_classes, key=lambda size: size.radius_mm[0])
    return (replace(smallest, radius_mm=(largest_radius_mm, largest_radius_mm), probability=1.0),)


def draw_size_class(size_classes: Sequence[SizeClass], rng: np.random.Generator) -> SizeClass:
    """Draw a size class by its relative frequency.

    Raises:
        ConfigurationError: If no class has a positive probability.
    """
    weights = np.array([size.probability for size in size_classes], dtype=np.float64)
    if weights.sum() <= 0:
        raise ConfigurationError("size_classes needs at least one class with probability > 0.")
    return size_classes[int(rng.choice(len(size_classes), p=weights / weights.sum()))]
