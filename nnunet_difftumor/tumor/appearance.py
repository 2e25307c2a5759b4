"""How a synthetic tumour shall look: contrast against its rim and heterogeneity inside, drawn together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from nnunet_difftumor.errors import DiffTumorError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Look of one tumour, as it is asked of a generator.

    Attributes:
        contrast_hu: Mean inside minus rim, in HU; None leaves it to the generator.
        heterogeneity_hu: Standard deviation inside after smoothing away the noise, in HU; None: likewise.
    """

    contrast_hu: float | None = None
    heterogeneity_hu: float | None = None

    def __post_init__(self) -> None:
        if self.heterogeneity_hu is not None and self.heterogeneity_hu < 0:
            raise DiffTumorError(f"heterogeneity_hu must be 0 or more, got {self.heterogeneity_hu}.")


@dataclass(frozen=True, kw_only=True)
class TruncatedNormal:
    """Normal distribution without its tails; mean and standard deviation are those before they are cut off."""

    mean: float
    sd: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.sd > 0 and self.low <= self.mean <= self.high and self.low < self.high):
            raise DiffTumorError(
                "TruncatedNormal needs sd > 0 and low <= mean <= high, got "
                f"mean={self.mean:g}, sd={self.sd:g}, low={self.low:g} and high={self.high:g}."
            )

    def draw(self, rng: np.random.Generator) -> float:
        """Draw a value from `low` to `high` by inverting the distribution function, with one random number."""
        below, upto = ndtr((np.array([self.low, self.high]) - self.mean) / self.sd)
        value = self.mean + self.sd * float(ndtri(rng.uniform(below, upto)))
        return float(np.clip(value, self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class AppearanceRule:
    """What appearances are drawn from.

    Attributes:
        examples: Tumours whose contrast and heterogeneity are drawn together; none leaves both to the generator.
        contrast_hu: Range in HU that replaces all other contrasts, drawn uniformly.
        contrast_prior_hu: Distribution in HU that replaces the examples' contrasts.
        only_darker: Examples that are not darker than their rim are left out.
        heterogeneity_hu: Range in HU that replaces the examples' heterogeneities, drawn uniformly.
        smallest_contrast_hu: Examples with less contrast are left out where there are others: a tumour that
            cannot be seen is never labelled.
    """

    examples: tuple[Appearance, ...] = ()
    contrast_hu: Range | None = None
    contrast_prior_hu: TruncatedNormal | None = None
    only_darker: bool = False
    heterogeneity_hu: Range | None = None
    smallest_contrast_hu: float = 8.0  # below, most would be dropped as invisible (5 HU and two standard errors)

    def __post_init__(self) -> None:
        for name in ("contrast_hu", "heterogeneity_hu"):
            limits = getattr(self, name)
            if limits is not None and not limits[0] <= limits[1]:
                raise DiffTumorError(f"{name} needs LO <= HI, got {limits[0]:g} and {limits[1]:g}.")
        if self.heterogeneity_hu is not None and self.heterogeneity_hu[0] < 0:
            raise DiffTumorError(f"heterogeneity_hu must be 0 or more, got {self.heterogeneity_hu[0]:g}.")
        if self.examples and not self.usable_examples:
            raise DiffTumorError(
                f"Only tumours darker than their rim are wanted, but none of the generator's {len(self.examples)} "
                "training tumours is. Give the target 'training', or a range of contrasts in HU."
            )

    def draw(
        self,
        rng: np.random.Generator,
        *,
        scan_seed: int = 0,
        host_hu: float | None = None,
        radius_mm: float | None = None,
    ) -> Appearance:
        """Draw the look of one tumour: one of the examples, with what a range or the prior replaces."""
        examples = self.usable_examples
        example = examples[int(rng.integers(len(examples)))] if examples else Appearance()
        contrast, heterogeneity = example.contrast_hu, example.heterogeneity_hu
        if self.contrast_hu is not None:
            contrast = float(rng.uniform(*self.contrast_hu))
        elif self.contrast_prior_hu is not None:
            contrast = self.contrast_prior_hu.draw(rng)
        if self.heterogeneity_hu is not None:
            heterogeneity = float(rng.uniform(*self.heterogeneity_hu))
        return Appearance(contrast_hu=contrast, heterogeneity_hu=heterogeneity)

    @property
    def usable_examples(self) -> Sequence[Appearance]:
        """Examples that are drawn from: those dark and visible enough, unless their contrast is replaced anyway."""
        if self.contrast_hu is not None or self.contrast_prior_hu is not None:
            return self.examples
        highest_hu, smallest_hu = 0.0 if self.only_darker else math.inf, self.smallest_contrast_hu
        allowed = [each for each in self.examples if each.contrast_hu is None or each.contrast_hu < highest_hu]
        return [each for each in allowed if each.contrast_hu is None or abs(each.contrast_hu) >= smallest_hu] or allowed
