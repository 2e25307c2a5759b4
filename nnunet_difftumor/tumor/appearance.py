"""How a synthetic tumour shall look: depth of its contrast and heterogeneity inside, drawn together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nnunet_difftumor.errors import DiffTumorError

Range = tuple[float, float]

LARGEST_CONTRAST_HU = 120.0
"""Contrasts are limited to it; the deepest tumours that were measured have 114 HU in their middle."""

LOWEST_TISSUE_HU = 10.0
"""No tumour is darker: water is 0 HU and simple fluid up to 20 HU, and a tumour holds cells besides."""

CORRELATION_IN_SCAN = 0.5
"""Correlation of the contrasts of two tumours of one scan (docs/explanation/synthesis.md says from where)."""

_TRIES = 8
_LOOKS_OF_SCAN = 1  # a stream of its own, whatever else is drawn from the scan's seed
_SMALL_DIAMETER_MM = 10.0
_SMALL_HETEROGENEITY_HU = 5.0
_HETEROGENEITY_PER_MM = 0.5
_ROBUST_PERCENTILE = 90.0


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Look of one tumour, as it is asked of a generator.

    Attributes:
        contrast_hu: Depth, in HU: tissue in the tumour's middle minus the host around it. The mean over the label is
            smaller, by the edge and by partial volume. None leaves it to the generator.
        heterogeneity_hu: Standard deviation inside without radial profile and noise, in HU; None: likewise.
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

    def at(self, share: float) -> float:
        """Value from `low` to `high` below which a share of the distribution, 0 to 1, lies."""
        from scipy.special import ndtr, ndtri  # --help would wait for them

        below, upto = ndtr((np.array([self.low, self.high]) - self.mean) / self.sd)
        value = self.mean + self.sd * float(ndtri(below + share * (upto - below)))
        return float(np.clip(value, self.low, self.high))

    def contrast_at(self, share: float, host_hu: float | None) -> float:
        """Contrast below which a share of the tumours lies, in HU: the distribution's own values, in every host."""
        return self.at(share)


@dataclass(frozen=True, kw_only=True)
class TissueLevel(TruncatedNormal):
    """Distribution of the level of tumour tissue in HU, which does not follow the organ's.

    Attributes:
        usual_host_hu: Level of the organ where that of the scan is not known.
    """

    usual_host_hu: float

    def contrast_at(self, share: float, host_hu: float | None) -> float:
        """Contrast below which a share of the tumours in a host of a level lies, all in HU."""
        return self.at(share) - (self.usual_host_hu if host_hu is None else host_hu)


@dataclass(frozen=True, kw_only=True)
class AppearanceRule:
    """What appearances are drawn from.

    Attributes:
        examples: Tumours whose contrast and heterogeneity are drawn together; none leaves both to the generator.
        contrast_hu: Range in HU that replaces all other contrasts, drawn uniformly.
        contrast_prior_hu: Distribution in HU that replaces the examples' contrasts: of contrasts or of levels.
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
        scan_seed: int | None = None,
        host_hu: float | None = None,
        radius_mm: float | None = None,
    ) -> Appearance:
        """Draw the look of one tumour: one of the examples, with what a range or the prior replaces.

        Contrasts of one scan are alike (a Gaussian copula), and over the scans distributed as the rule says. Then they
        are limited to 80 HU, or to a given range, and to tissue of `LOWEST_TISSUE_HU` as far as the range allows it. A
        prior's contrast that could not be seen is drawn again, eight times at most. Heterogeneity is limited to what
        a tumour of its size has room for, a given range is not.

        Args:
            scan_seed: What all tumours of a scan share; None for a tumour without others.
            host_hu: Level of the organ around the tumour in HU; None if it is not known.
            radius_mm: Radius of the tumour in mm; None leaves its heterogeneity as it is drawn.
        """
        scan_rng = rng if scan_seed is None else np.random.default_rng([scan_seed, _LOOKS_OF_SCAN])
        common = math.sqrt(CORRELATION_IN_SCAN) * scan_rng.normal()
        is_of_prior = self.contrast_hu is None and self.contrast_prior_hu is not None
        look = self._draw_once(rng, common, host_hu)
        for _ in range(_TRIES - 1):
            if not is_of_prior or abs(look.contrast_hu or 0.0) >= self.smallest_contrast_hu:
                break
            look = self._draw_once(rng, common, host_hu)
        if self.heterogeneity_hu is not None:
            return replace(look, heterogeneity_hu=float(rng.uniform(*self.heterogeneity_hu)))
        return look if radius_mm is None else self.with_room(look, radius_mm)

    def with_room(self, look: Appearance, radius_mm: float) -> Appearance:
        """Limit the heterogeneity of one of the examples to what a tumour of a radius has room for."""
        if look.heterogeneity_hu is None:
            return look
        return replace(look, heterogeneity_hu=min(look.heterogeneity_hu, self._largest_heterogeneity_hu(radius_mm)))

    def _draw_once(self, rng: np.random.Generator, common: float, host_hu: float | None) -> Appearance:
        """Draw a look by the scan's part of a normal score and a part of the tumour's own."""
        from scipy.special import ndtr

        share = float(ndtr(common + math.sqrt(1.0 - CORRELATION_IN_SCAN) * rng.normal()))
        examples = self._by_contrast
        is_replaced = self.contrast_hu is not None or self.contrast_prior_hu is not None
        place = float(rng.random()) if is_replaced else share
        look = examples[min(int(place * len(examples)), len(examples) - 1)] if examples else Appearance()
        contrast, (low_hu, high_hu) = look.contrast_hu, self.contrast_hu or (-LARGEST_CONTRAST_HU, LARGEST_CONTRAST_HU)
        if self.contrast_hu is not None:
            contrast = low_hu + share * (high_hu - low_hu)
        elif self.contrast_prior_hu is not None:
            contrast = self.contrast_prior_hu.contrast_at(share, host_hu)
        if contrast is None:
            return look
        lowest_hu = low_hu if host_hu is None else max(low_hu, LOWEST_TISSUE_HU - host_hu)
        return replace(look, contrast_hu=min(max(contrast, lowest_hu), high_hu))

    def _largest_heterogeneity_hu(self, radius_mm: float) -> float:
        """5 HU up to 10 mm in diameter and half a HU more per mm; never more than nine in ten examples have."""
        room_hu = _SMALL_HETEROGENEITY_HU + _HETEROGENEITY_PER_MM * max(0.0, 2.0 * radius_mm - _SMALL_DIAMETER_MM)
        shown_hu = [each.heterogeneity_hu for each in self.examples if each.heterogeneity_hu is not None]
        return min(room_hu, float(np.percentile(shown_hu, _ROBUST_PERCENTILE)))

    @property
    def usable_examples(self) -> Sequence[Appearance]:
        """Examples that are drawn from: those dark and visible enough, unless their contrast is replaced anyway."""
        if self.contrast_hu is not None or self.contrast_prior_hu is not None:
            return self.examples
        highest_hu, smallest_hu = 0.0 if self.only_darker else math.inf, self.smallest_contrast_hu
        allowed = [each for each in self.examples if each.contrast_hu is None or each.contrast_hu < highest_hu]
        return [each for each in allowed if each.contrast_hu is None or abs(each.contrast_hu) >= smallest_hu] or allowed

    @cached_property
    def _by_contrast(self) -> Sequence[Appearance]:
        return sorted(self.usable_examples, key=lambda look: look.contrast_hu or 0.0)
