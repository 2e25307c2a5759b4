"""Are the values of an image HU? Judged by where body, fat and air lie in its histogram."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import GeometryMismatchError, NotHounsfieldError

_FIRST_HU, _LAST_HU = -4096, 8191
_MOST_VOXELS = 4_000_000
_SPIKE_SHARE, _SPIKE_REACH = 0.002, 8

_AIR_TO_WARN, _FAT_TO_WARN, _AIR_TO_REFUSE = 0.01, 0.25, 0.25

_STORED = ("stored values without the rescale intercept", "subtract 1024 (DICOM: apply RescaleIntercept)")
_TWICE = ("HU from which the intercept was subtracted twice, or a volume without tissue", "add 1024")
_SCALED = ("grey values from 0 on (a scaled window, 8-bit values, MR or PET) or labels", "use the CT itself")
_WINDOWED = ("values cut off by a display window", "use the CT before any windowing")
_NORMALISED = ("normalised values (0 to 1, -1 to 1 or z-scores), SUV or a mask", "use the CT before any normalisation")


@dataclass(frozen=True, eq=False)
class _Histogram:
    """Voxels by whole HU from -4096 on, those beyond the ends in the outermost bins."""

    counts: NDArray[np.int64]

    def share(self, low_hu: float, high_hu: float) -> float:
        """Share of the voxels from one value up to another one, both included."""
        low, high = (int(np.clip(value, _FIRST_HU, _LAST_HU)) - _FIRST_HU for value in (low_hu, high_hu))
        return float(self.counts[low : high + 1].sum() / self.counts.sum())

    def without_padding(self) -> _Histogram:
        """The same without values that stand alone and often: padding, or air as one number."""
        window = np.ones(2 * _SPIKE_REACH + 1, dtype=np.int64)
        around = np.convolve(self.counts, window, mode="same") - self.counts
        is_padding = (self.counts >= _SPIKE_SHARE * self.counts.sum()) & (around <= 0.01 * self.counts)
        is_padding[list(self.cuts())] = False
        if self.counts[~is_padding].sum() < 0.01 * self.counts.sum():  # a phantom without noise: what cannot be HU
            is_padding[-1060 - _FIRST_HU :] = False
        return self if is_padding[self.counts > 0].all() else _Histogram(np.where(is_padding, 0, self.counts))

    def peak(self, low_hu: int, high_hu: int) -> int:
        """Value in HU with the most voxels within 10 HU, values that pile up at a cut left out."""
        counts = self.counts.copy()
        counts[list(self.cuts())] = 0
        near = np.convolve(counts, np.ones(21, dtype=np.int64), mode="same")
        return low_hu + int(np.argmax(near[low_hu - _FIRST_HU : high_hu + 1 - _FIRST_HU]))

    def cuts(self) -> Iterator[int]:
        """Bins where cut-off values pile up: others follow on one side alone, or it is the lowest of all."""
        for end in np.flatnonzero(self.counts >= max(20, _SPIKE_SHARE * self.counts.sum())):
            below, above = self.counts[max(0, end - 20) : end], self.counts[end + 1 : end + 21]
            inside = above if above.any() else below
            is_end = below.any() != above.any() and np.count_nonzero(inside) > 2
            is_lowest = not self.counts[:end].any() and self.counts[end + 1 :].any()
            is_lowest &= -700 < end + _FIRST_HU <= 10 and not -150 <= end + _FIRST_HU < 0  # padding; fat as one number
            if (is_end or is_lowest) and self.counts[end] > 5 * inside.mean():
                yield int(end)


def check_hounsfield(image_hu: NDArray[np.floating[Any]], path: Path) -> None:
    """Refuse a CT whose values cannot be HU.

    Raises:
        NotHounsfieldError: If the intercept is missing or was applied twice, or the values are windowed, scaled or SUV.
    """
    stride = max(1, image_hu.size // _MOST_VOXELS) | 1  # odd: no row is met at the same place again and again
    sample = np.clip(np.rint(image_hu.ravel()[::stride]), _FIRST_HU, _LAST_HU).astype(np.int64) - _FIRST_HU
    fault = _fault(_Histogram(np.bincount(sample, minlength=_LAST_HU - _FIRST_HU + 1)).without_padding())
    if fault is not None:
        low, high = float(image_hu.min()), float(image_hu.max())
        raise NotHounsfieldError(
            f"{path} should be a CT in HU (air near -1000, water 0), but its values run from {low:.4g} to {high:.4g}: "
            f"these look like {fault[0]}. To fix it, {fault[1]}, or convert the DICOM series again (dcm2niix keeps "
            "HU). Images that are no CT, such as MR, cannot be used."
        )


def check_organ(image_hu: NDArray[np.floating[Any]], organ: NDArray[np.bool_], path: Path) -> str | None:
    """Look for air and fat in the mask of an organ, which show that it may not lie on the organ.

    Air is below -300 HU, in an organ with air of its own, whose median is below that, below -980 HU. Fat is below
    -30 HU, and looked for in other organs alone; a sound pancreas has had 23%.

    Args:
        organ: True in the organ, at least once. Both arrays have the shape (D, H, W).
        path: File of the mask, for messages.

    Returns:
        A warning with the shares if 1% or more is air, or 25% air and fat.

    Raises:
        GeometryMismatchError: If 25% or more is air.
    """
    air_hu, fat_hu = (-300.0, -30.0) if np.median(image_hu[organ]) > -300.0 else (-980.0, -980.0)

    def share(limit_hu: float, mask: NDArray[np.bool_] = organ) -> float:
        return float((image_hu[mask] < limit_hu).mean())

    air, fat = share(air_hu), share(fat_hu) - share(air_hu)
    if air < _AIR_TO_WARN and air + fat < _FAT_TO_WARN:
        return None
    found = f"{air:.1%} of the organ in {path} is air in the CT (below {air_hu:g} HU), {fat:.1%} fat"
    limit_hu = fat_hu if air < _AIR_TO_WARN else air_hu
    flipped = [share(limit_hu, np.flip(organ, axis)) for axis in range(3)]
    if min(flipped) < share(limit_hu) / 4:
        found += f"; flipped along axis {np.argmin(flipped)} of (D, H, W) only {min(flipped):.1%} would be"
    if air < _AIR_TO_REFUSE:
        return f"{found}. Look whether the mask lies on the organ; one without gas has less than 1% of air."
    raise GeometryMismatchError(
        f"{found}; less than {_AIR_TO_REFUSE:.0%} of air is expected. The mask is of another scan or side, or flipped: "
        "make it from this CT, and look at both in a viewer."
    )


def _fault(values: _Histogram) -> tuple[str, str] | None:
    """What is wrong with the values of a CT without its padding, and how to mend it."""
    share = values.share
    if share(-10, 10) >= 0.9:
        return _NORMALISED
    if np.count_nonzero(values.counts) == 1:
        return None
    # fat and flesh 1024 HU too high; bone spreads to both sides of it, and fills no fifth, where noise may be fat
    stored = share(864, 1324)
    has_air_or_fat = share(_FIRST_HU, -60 if stored < 0.2 else -150) >= 0.005
    if not has_air_or_fat and stored > max(0.01, 0.6 * share(401, _LAST_HU)):
        return _STORED
    # flesh 1024 HU too low, and nothing where it should be; lungs reach higher, and air has its peak below
    low_flesh = share(-984, -860) - 3 * share(-859, -700)
    has_low_flesh = share(-160, 300) < 0.15 * low_flesh and values.peak(-1060, -860) > -985
    if has_low_flesh or share(_FIRST_HU, -1500) > 0.01 or share(_FIRST_HU, -700) > 0.997:  # air at -2024, no body
        return _TWICE
    if share(_FIRST_HU, -1) == 0 and (share(0, 10) > 0.005 or share(301, _LAST_HU) > 0.5):
        return _STORED if share(1024, _LAST_HU) > 0 else _SCALED
    return _WINDOWED if any(-700 < cut + _FIRST_HU < 300 for cut in values.cuts()) else None
