"""Measure how well tumour prints recognise resampled copies, and print the table of docs/explanation/leak-guard.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from diffusion.generator.provenance import TumorPrint
from nnunet_difftumor.cases.tumor_prints import can_be_told, mean_same_tumor, take_tumor_prints
from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.label_roles import find_tumor_label
from nnunet_difftumor.ct.reading import read_ct, read_mask
from nnunet_difftumor.phantom.dataset import make_patient
from nnunet_difftumor.phantom.styles import STANDARD
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.spec import draw_tumor_spec
from nnunet_difftumor.tumor.surface import TumorSurface

COPIES = ("nearest", "linear")
"""How a copy's mask is resampled: to the nearest voxel, or linearly with the threshold 0.5."""

_SPACING_FACTORS = (0.7, 1.5)
_MARGIN_VOXELS = 2
_DRAWN_SIZES = {
    "drawn, 3-5 mm": SizeClass(name="tiny", radius_mm=(3.0, 5.0), probability=1.0),
    "drawn, 6-10 mm": SizeClass(name="small", radius_mm=(6.0, 10.0), probability=1.0),
    "drawn, 12-20 mm": SizeClass(name="medium", radius_mm=(12.0, 20.0), probability=1.0),
    "drawn, 24-36 mm": SizeClass(name="large", radius_mm=(24.0, 36.0), probability=1.0),
}
_SLICES_MM = (1.0, 1.5, 2.5, 5.0)


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A tumour mask on its grid, with its CT if there is one.

    Attributes:
        tumor_mask: True inside the tumour. Shape (D, H, W).
        spacing_mm: Spacing in mm, (D, H, W).
        image_hu: The CT. Shape (D, H, W).
    """

    tumor_mask: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    image_hu: NDArray[np.float32] | None = None

    def prints(self, *, with_image: bool = True) -> tuple[TumorPrint, ...]:
        """Take the prints of the mask, with or without its surroundings."""
        return take_tumor_prints(self.tumor_mask, self.spacing_mm, self.image_hu if with_image else None)


@dataclass(frozen=True, kw_only=True)
class PrintRates:
    """What was measured on one population of tumours.

    Attributes:
        population: Name of the population.
        uses_image: Whether the surroundings in the CT were compared too.
        cases: Number of cases.
        told: Cases that are large enough, or known well enough, to be compared.
        copies: Resampled copies of the cases that are compared.
        found: Copies that were found.
        pairs: Pairs of different cases, and of a case and a copy of another one.
        false_alarms: Pairs that were taken for one tumour.
    """

    population: str
    uses_image: bool
    cases: int
    told: int
    copies: int
    found: int
    pairs: int
    false_alarms: int

    def to_row(self) -> str:
        """Return a row of a Markdown table: population, compared, told, found, false alarms."""
        found = f"{self.found} of {self.copies} ({self.found / self.copies:.0%})" if self.copies else "none compared"
        compared = "shape and CT" if self.uses_image else "shape alone"
        return (
            f"| {self.population} | {compared} | {self.told} of {self.cases} | {found} "
            f"| {self.false_alarms} of {self.pairs:,} |"
        )


def resample_copy(scan: LabelledScan, how: str, rng: np.random.Generator) -> LabelledScan:
    """Make another resampling of a scan: voxel size 0.7 to 1.5 times along each axis, shifted, cropped, turned.

    Args:
        scan: The scan.
        how: One of `COPIES`: how the mask is resampled. The CT is resampled linearly.
        rng: Random generator.

    Returns:
        The copy. Up to half of what surrounds the tumour is cropped on each side; axes are permuted and flipped,
        which makes every rotation by 90 degrees.
    """
    low, high = _SPACING_FACTORS
    factors = np.exp(rng.uniform(np.log(low), np.log(high), size=3))
    box = ndimage.find_objects(scan.tumor_mask.astype(np.uint8))[0]
    start = [rng.uniform(0.0, 0.5) * max(part.start - _MARGIN_VOXELS, 0) for part in box]
    sides = zip(scan.tumor_mask.shape, box, strict=True)
    stop = [side - 1 - rng.uniform(0.0, 0.5) * max(side - part.stop - _MARGIN_VOXELS, 0) for side, part in sides]
    shape = tuple(int((last - first) / step) + 1 for first, last, step in zip(start, stop, factors, strict=True))
    is_nearest = how == "nearest"
    mask = _sample(scan.tumor_mask.astype(np.float32), factors, start, shape, order=0 if is_nearest else 1) >= 0.5
    image = None if scan.image_hu is None else _sample(scan.image_hu, factors, start, shape, order=1)
    axes = tuple(int(axis) for axis in rng.permutation(3))
    flipped = tuple(axis for axis in range(3) if rng.random() < 0.5)

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(np.flip(array.transpose(axes), flipped))

    spacing_mm = np.asarray(scan.spacing_mm) * factors
    depth, height, width = (float(spacing_mm[axis]) for axis in axes)
    return LabelledScan(turn(mask), (depth, height, width), None if image is None else turn(image))


def drawn_scans(size_class: SizeClass, count: int, rng: np.random.Generator) -> Iterator[LabelledScan]:
    """Draw tumours as the trainer does, each on a grid of its own; without a CT.

    Args:
        size_class: Sizes of the tumours.
        count: Number of tumours.
        rng: Random generator.

    Yields:
        One tumour at a time.
    """
    for _ in range(count):
        spec = draw_tumor_spec(size_class, (0.0, 0.0, 0.0), Appearance(), rng)
        surface = TumorSurface(spec)
        in_plane_mm = float(rng.uniform(0.6, 1.0))
        spacing_mm = (float(rng.choice(_SLICES_MM)), in_plane_mm, in_plane_mm)
        half = np.ceil(surface.half_extent_mm / spacing_mm).astype(int) + 2
        start_mm = (rng.uniform(-0.5, 0.5, size=3) - half) * spacing_mm
        distance_mm = surface.signed_distance_on_grid((2 * half + 1).tolist(), spacing_mm, start_mm)
        yield LabelledScan(distance_mm < 0, spacing_mm)


def dataset_scans(folder: Path, tumor_label: str | None = None) -> Iterator[LabelledScan]:
    """Read the cases with tumours of an nnU-Net raw data set.

    Args:
        folder: The data set's folder.
        tumor_label: Name of the tumour label; None looks for it.

    Yields:
        One case at a time.
    """
    dataset = load_raw_dataset(folder)
    values = find_tumor_label(dataset.labels, tumor_label)
    for case in dataset.cases:
        ct = read_ct(case.image_path)
        mask = np.isin(read_mask(case.label_path, ct), values) if case.label_path else np.zeros(1, dtype=bool)
        if mask.any():
            yield LabelledScan(mask, ct.spacing_mm, ct.image_hu)


def phantom_scans(count: int, seed: int) -> Iterator[LabelledScan]:
    """Make phantom patients with 1 to 3 liver tumours each.

    Args:
        count: Number of patients.
        seed: Seed of the patients.

    Yields:
        One patient at a time.
    """
    tumor_value = max(STANDARD.labels.values())
    for index in range(count):
        patient = make_patient(seed, index, is_healthy=False)
        yield LabelledScan(patient.label == tumor_value, patient.spacing_mm, patient.image_hu.astype(np.float32))


def measure_rates(
    population: str,
    scans: Sequence[LabelledScan] | Iterator[LabelledScan],
    rng: np.random.Generator,
    *,
    copies: int = 1,
) -> tuple[PrintRates, ...]:
    """Compare every case with resampled copies of itself, with every other case and with that one's copies.

    Args:
        population: Name of the population.
        scans: The cases; read one at a time.
        rng: Random generator.
        copies: Copies of each case and kind of `COPIES`.

    Returns:
        Rates with shape alone, then with the CT too where the cases have one.
    """
    originals: dict[bool, list[tuple[TumorPrint, ...]]] = {False: [], True: []}
    resampled: dict[bool, list[list[tuple[TumorPrint, ...]]]] = {False: [], True: []}
    for scan in tqdm(scans, desc=population, unit="case"):
        made = [resample_copy(scan, how, rng) for how in COPIES for _ in range(copies)]
        for with_image in (False, True) if scan.image_hu is not None else (False,):
            originals[with_image].append(scan.prints(with_image=with_image))
            resampled[with_image].append([copy.prints(with_image=with_image) for copy in made])
    return tuple(
        _rates(population, with_image, originals[with_image], resampled[with_image])
        for with_image in (False, True)
        if originals[with_image]
    )


def all_populations(
    dataset: Path | None, *, drawn: int, phantoms: int, seed: int
) -> dict[str, Callable[[], Iterator[LabelledScan]]]:
    """Name the populations of the published table.

    Args:
        dataset: An nnU-Net raw data set with tumours; None leaves it out.
        drawn: Drawn tumours of each size.
        phantoms: Phantom patients.
        seed: Seed.

    Returns:
        A maker of scans by name.
    """
    makers: dict[str, Callable[[], Iterator[LabelledScan]]] = {}
    for number, (name, size_class) in enumerate(_DRAWN_SIZES.items()):
        rng = np.random.default_rng([seed, number])
        makers[name] = lambda size_class=size_class, rng=rng: drawn_scans(size_class, drawn, rng)
    makers["phantom livers"] = lambda: phantom_scans(phantoms, seed)
    if dataset is not None:
        makers[dataset.name] = lambda: dataset_scans(dataset)
    return makers


def _rates(
    population: str,
    uses_image: bool,
    originals: Sequence[tuple[TumorPrint, ...]],
    resampled: Sequence[Sequence[tuple[TumorPrint, ...]]],
) -> PrintRates:
    told = [can_be_told(prints) for prints in originals]
    compared = [
        (prints, copy)
        for prints, copies, is_told in zip(originals, resampled, told, strict=True)
        for copy in copies
        if is_told
    ]
    pairs = [
        (originals[first], other)
        for first, second in combinations(range(len(originals)), 2)
        for other in (originals[second], *resampled[second])
    ]
    return PrintRates(
        population=population,
        uses_image=uses_image,
        cases=len(originals),
        told=sum(told),
        copies=len(compared),
        found=sum(mean_same_tumor(prints, copy) for prints, copy in compared),
        pairs=len(pairs),
        false_alarms=sum(mean_same_tumor(first, other) for first, other in pairs),
    )


def _sample(
    array: NDArray[np.float32],
    factors: NDArray[np.float64],
    start: Sequence[float],
    shape: tuple[int, ...],
    *,
    order: int,
) -> NDArray[np.float32]:
    sampled = np.empty(shape, dtype=np.float32)
    offset: Any = start  # a sequence, although scipy declares a number
    ndimage.affine_transform(array, factors, offset, shape, output=sampled, order=order, mode="nearest")
    return sampled


def main() -> int:
    """Measure every population."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, metavar="RAW_DATASET", help="an nnU-Net raw data set with real tumours")
    parser.add_argument("--drawn", type=int, default=400, metavar="N", help="drawn tumours of each size (default 400)")
    parser.add_argument("--phantoms", type=int, default=60, metavar="N", help="phantom patients (default 60)")
    parser.add_argument("--copies", type=int, default=2, metavar="N", help="copies of each kind (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default 0)")
    options = parser.parse_args()
    rows = []
    makers = all_populations(options.data, drawn=options.drawn, phantoms=options.phantoms, seed=options.seed)
    for name, make in makers.items():
        rates = measure_rates(name, make(), np.random.default_rng(options.seed), copies=options.copies)
        rows += [each.to_row() for each in rates]
    print("| tumours | compared by | large enough | copies found | false alarms |\n|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
