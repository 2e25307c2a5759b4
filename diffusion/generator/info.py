"""What a generator was made for: sizes, spacings, HU window and the tumours that trained it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffusion.generator.folder_check import GeneratorFolderError
from diffusion.generator.records import require_numbers

if TYPE_CHECKING:
    from autoencoder.intensity import IntensityWindow


@dataclass(frozen=True, kw_only=True)
class TrainingTumor:
    """Statistics of one tumour that trained the diffusion model.

    Attributes:
        radius_mm: Radius of the sphere of the tumour's volume.
        contrast_hu: Depth: mean of the tumour's middle minus median of the rim.
        heterogeneity_hu: Standard deviation inside without radial profile and noise.
    """

    radius_mm: float
    contrast_hu: float
    heterogeneity_hu: float

    def __post_init__(self) -> None:
        require_numbers(**vars(self))
        if self.radius_mm <= 0 or self.heterogeneity_hu < 0:
            raise GeneratorFolderError(
                f"A training tumour needs radius_mm > 0 and heterogeneity_hu >= 0, got {self.radius_mm} and "
                f"{self.heterogeneity_hu}."
            )


@dataclass(frozen=True, kw_only=True)
class EdgeStatistics:
    """Where the visible edge of the annotated tumours of one range of sizes lies against their outlines.

    Attributes:
        from_diameter_mm: Smallest diameter (of the sphere of equal volume) that this holds for, up to the next one's.
        tumors: Number of tumours that were measured in this range; 0 if all of it comes from the others.
        offset_mm: Signed distance to the outline at which half of the depth is reached; negative inside the label.
        offset_sd_mm: Standard deviation of the offset between tumours.
        offset_interval_mm: 95% interval of the mean offset.
        width_mm: Distance over which the depth falls from three quarters to a quarter.
        width_sd_mm: Standard deviation of the width between tumours.
        width_interval_mm: 95% interval of the mean width.
    """

    from_diameter_mm: float
    tumors: int
    offset_mm: float
    offset_sd_mm: float
    offset_interval_mm: tuple[float, float]
    width_mm: float
    width_sd_mm: float
    width_interval_mm: tuple[float, float]

    @classmethod
    def exactly(cls, offset_mm: float, width_mm: float) -> EdgeStatistics:
        """Return the statistics of tumours of any size that all have this edge."""
        return cls(
            from_diameter_mm=0.0,
            tumors=0,
            offset_mm=offset_mm,
            offset_sd_mm=0.0,
            offset_interval_mm=(offset_mm, offset_mm),
            width_mm=width_mm,
            width_sd_mm=0.0,
            width_interval_mm=(width_mm, width_mm),
        )

    def __post_init__(self) -> None:
        pairs = (*self.offset_interval_mm, *self.width_interval_mm)
        require_numbers(**{name: value for name, value in vars(self).items() if not name.endswith("interval_mm")})
        for value in pairs:
            require_numbers(interval_mm=value)
        if len(pairs) != 4 or self.width_mm <= 0 or min(self.offset_sd_mm, self.width_sd_mm) < 0:
            raise GeneratorFolderError(f"Edge statistics need width_mm > 0, deviations >= 0 and intervals, got {self}.")


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """What a caller must know to use a generator as it was trained.

    Attributes:
        roi_sides: Sides of the cubic crops that the networks were trained on, ascending, in voxels.
        spacing_range_mm: Smallest and largest isotropic voxel spacing of those crops, in mm.
        margin_voxels: Voxels that a crop should leave around the tumour.
        edges: Where the visible edge of the training tumours lies, by size; empty if it was not measured.
        data_note: What the training data are, for the model card; say so if they are a phantom.
    """

    roi_sides: tuple[int, ...] = (32, 48, 64)
    spacing_range_mm: tuple[float, float] = (1.5, 6.0)
    margin_voxels: int = 12
    low_hu: float = -175.0
    high_hu: float = 250.0
    training_tumors: tuple[TrainingTumor, ...] = ()
    edges: tuple[EdgeStatistics, ...] = field(default=(), metadata={"may_lack": True})
    preset: str = "tiny"
    data_note: str = ""
    format_version: int = 1

    def __post_init__(self) -> None:
        sides = self.roi_sides
        are_sizes = all(type(side) is int and side > 0 and side % 4 == 0 for side in sides)
        if not sides or not are_sizes or list(sides) != sorted(set(sides)):
            raise GeneratorFolderError(f"roi_sides must be ascending positive multiples of 4, got {sides!r}.")
        require_numbers(low_hu=self.low_hu, high_hu=self.high_hu)
        for spacing_mm in self.spacing_range_mm:
            require_numbers(spacing_range_mm=spacing_mm)
        if len(self.spacing_range_mm) != 2 or not 0 < self.spacing_range_mm[0] <= self.spacing_range_mm[1]:
            raise GeneratorFolderError(f"spacing_range_mm must be (low, high) in mm, got {self.spacing_range_mm!r}.")
        if self.low_hu >= self.high_hu:
            raise GeneratorFolderError(f"low_hu must be below high_hu, got {self.low_hu} and {self.high_hu}.")
        if type(self.margin_voxels) is not int or self.margin_voxels < 0:
            raise GeneratorFolderError(f"margin_voxels must be an integer of 0 or more, got {self.margin_voxels!r}.")
        if not isinstance(self.preset, str) or not isinstance(self.data_note, str):
            raise GeneratorFolderError(f"preset and data_note must be text, got {self.preset!r}, {self.data_note!r}.")

    @property
    def window(self) -> IntensityWindow:
        """HU window of the networks."""
        from autoencoder.intensity import IntensityWindow

        return IntensityWindow(self.low_hu, self.high_hu)
