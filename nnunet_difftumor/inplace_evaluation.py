"""In-place evaluation: replace real tumours by generated ones and compare their HU.

The generator never saw the cases. Neither the tissue inside the mask nor its noise reaches the result:
the mask is filled before encoding, the requested contrast comes from the training tumours, and the
residual is borrowed from tumour-free tissue of the same scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt, label
from scipy.stats import wasserstein_distance

from nnunet_difftumor.appearance import Appearance
from nnunet_difftumor.cases import Case, read_ct, read_mask
from nnunet_difftumor.composite import robust_sd
from nnunet_difftumor.drawing import MaskSurface
from nnunet_difftumor.errors import MissingLabelError
from nnunet_difftumor.generators import TissueGenerator
from nnunet_difftumor.resample import average_onto, resample
from nnunet_difftumor.roi import choose_roi

FloatArray = NDArray[np.float32]

EVALUATION_SPACING_MM = 2.0
DRAWS_PER_CASE = 4
_SMALLEST_TUMOR_MM3 = 113.0  # a sphere of 3 mm radius


@dataclass(frozen=True)
class HuStatistics:
    """HU inside the masks of all evaluated tumours.

    Attributes:
        mean_hu: Pooled mean.
        within_case_sd_hu: Mean over the cases of the standard deviation inside the mask.
        wasserstein_hu: Wasserstein distance of the pooled values to the real ones.
    """

    mean_hu: float
    within_case_sd_hu: float
    wasserstein_hu: float


@dataclass(frozen=True, eq=False)
class InPlaceCase:
    """One tumour, real and generated, on an isotropic grid.

    Attributes:
        identifier: Case identifier.
        spacing_mm: Spacing of the grid in mm.
        mask: True inside the tumour. Shape (D, H, W).
        real_hu: The scan in HU. Shape (D, H, W).
        synthetic_hu: The scan with the tumour replaced, one per draw. Shape (K, D, H, W).
        smooth_hu: The same without a residual. Shape (K, D, H, W).
        fill_hu: The same with the fill alone, encoded and decoded, in place of the diffusion. Shape (K, D, H, W).
        requested: Look that was asked for in each draw.
    """

    identifier: str
    spacing_mm: float
    mask: NDArray[np.bool_]
    real_hu: FloatArray
    synthetic_hu: FloatArray
    smooth_hu: FloatArray
    fill_hu: FloatArray
    requested: tuple[Appearance, ...]


class FillTissue:
    """The no-diffusion baseline: the contrast fill itself, encoded and decoded."""

    def __init__(self, autoencoder: Any) -> None:
        """Use an autoencoder.

        Args:
            autoencoder: The generator's autoencoder.
        """
        self._autoencoder = autoencoder

    def generate(
        self, host_hu: FloatArray, tumor_masks: NDArray[np.bool_], appearances: Sequence[Appearance]
    ) -> FloatArray:
        """Decode the fill of every region (see `TissueGenerator.generate`). Shape (N, S, S, S), HU."""
        import torch

        from diffusion.conditioning import fill_tumor_region

        contrasts = [look.contrast_hu for look in appearances]
        requested = torch.tensor([float("nan") if value is None else value for value in contrasts])
        with torch.inference_mode():
            filled = fill_tumor_region(
                torch.from_numpy(np.ascontiguousarray(host_hu[:, None])),
                torch.from_numpy(tumor_masks[:, None].astype(np.float32)),
                requested,
            )
            return self._autoencoder.reconstruct(filled)[:, 0].numpy()


def evaluate_case(
    case: Case,
    organ_label: int,
    tumor_label: int,
    tissue: TissueGenerator,
    fill: FillTissue,
    rng: np.random.Generator,
) -> InPlaceCase:
    """Replace the largest tumour of a case, several times.

    Args:
        case: A case that the generator never saw.
        organ_label: Value of the organ.
        tumor_label: Value of the tumour.
        tissue: The generator.
        fill: The no-diffusion baseline.
        rng: Random generator for seeds.

    Returns:
        The scan with the real and with the generated tumours, at 2 mm.

    Raises:
        MissingLabelError: If the case has no tumour of at least 3 mm radius.
    """
    real_hu, organ, mask = _read_isotropic(case, organ_label, tumor_label)
    surface = MaskSurface(mask, (EVALUATION_SPACING_MM,) * 3, seed=0)
    roi = choose_roi(surface, (EVALUATION_SPACING_MM,) * 3, tissue.roi_rule)
    requested = _stratified(tissue.appearances, DRAWS_PER_CASE, rng)
    host_roi = np.repeat(roi.sample(real_hu, (EVALUATION_SPACING_MM,) * 3)[None], DRAWS_PER_CASE, axis=0)
    masks = np.repeat(roi.draw_mask(surface)[None], DRAWS_PER_CASE, axis=0)
    seeds = [int(seed) for seed in rng.integers(2**62, size=DRAWS_PER_CASE)]
    regions = tissue.generate(host_roi, masks, requested, seeds)
    filled = fill.generate(host_roi, masks, requested)

    def onto_scan(region: FloatArray) -> FloatArray:
        spacing = (EVALUATION_SPACING_MM,) * 3
        return average_onto(region, (roi.spacing_mm,) * 3, real_hu.shape, spacing, -np.asarray(roi.start_mm))

    residual = _borrowed_residual(real_hu, onto_scan(regions.reconstruction_hu[0]), organ, mask, tissue.window_hu)
    smooth = np.stack([np.where(mask, onto_scan(region), real_hu) for region in regions.tumor_hu])
    fills = np.stack([np.where(mask, onto_scan(region) + residual, real_hu) for region in filled])
    synthetic = np.where(mask, smooth + residual, real_hu)
    return InPlaceCase(
        case.identifier,
        EVALUATION_SPACING_MM,
        mask,
        real_hu,
        synthetic.astype(np.float32),
        smooth.astype(np.float32),
        fills.astype(np.float32),
        tuple(requested),
    )


def summarize(cases: Sequence[InPlaceCase], window_hu: tuple[float, float]) -> dict[str, Any]:
    """Pool the cases into the table that the report shows.

    Args:
        cases: Evaluated cases.
        window_hu: Window to which every value is limited first, in HU.

    Returns:
        Plain values: `rows` with one `HuStatistics` per kind of tissue, `cases` with per-case means.
    """
    real = [np.clip(case.real_hu[case.mask], *window_hu) for case in cases]
    kinds = {
        "synthetic": [np.clip(case.synthetic_hu[:, case.mask], *window_hu) for case in cases],
        "synthetic, no residual": [np.clip(case.smooth_hu[:, case.mask], *window_hu) for case in cases],
        "fill and residual, no diffusion": [np.clip(case.fill_hu[:, case.mask], *window_hu) for case in cases],
    }
    pooled_real = np.concatenate(real)
    rows = {"real": _statistics([values[None] for values in real], pooled_real)}
    rows.update({name: _statistics(values, pooled_real) for name, values in kinds.items()})
    mean_hu = float(pooled_real.mean())
    rows["constant at the real mean"] = HuStatistics(mean_hu, 0.0, float(np.mean(np.abs(pooled_real - mean_hu))))
    return {
        "spacing_mm": EVALUATION_SPACING_MM,
        "draws_per_case": DRAWS_PER_CASE,
        "rows": {name: asdict(statistics) for name, statistics in rows.items()},
        "cases": [
            {
                "identifier": case.identifier,
                "real_mean_hu": float(values.mean()),
                "real_sd_hu": float(values.std()),
                "synthetic_mean_hu": float(generated.mean()),
                "synthetic_sd_hu": float(generated.std(axis=1).mean()),
                "voxels": int(case.mask.sum()),
            }
            for case, values, generated in zip(cases, real, kinds["synthetic"], strict=True)
        ],
    }


def save_picture(cases: Sequence[InPlaceCase], path: Path, heading: str) -> None:
    """Draw real beside generated tumours and write a PNG.

    Args:
        cases: Evaluated cases.
        path: Where the PNG is to appear; replaced if it exists.
        heading: Heading of the picture.
    """
    from nnunet_difftumor.montage import MontageRow, crop_around, draw_montage, save_figure

    rows = []
    for case in cases:
        spacing = (case.spacing_mm, case.spacing_mm, case.spacing_mm)
        box = crop_around(case.mask, spacing, margin_mm=20.0)
        before, after, inside = case.real_hu[box], case.synthetic_hu[0][box], case.mask[box]
        rows.append(MontageRow(before[::-1], after[::-1], inside[::-1], spacing, case.identifier))
    save_figure(draw_montage(rows, heading), path)


def _read_isotropic(case: Case, organ_label: int, tumor_label: int) -> tuple[FloatArray, NDArray, NDArray]:
    """Scan, tumour-free organ and largest tumour at the evaluation's spacing."""
    if case.label_path is None:
        raise MissingLabelError(f"Case {case.identifier} has no label map; evaluate on annotated cases.")
    ct = read_ct(case.image_path)
    labels = read_mask(case.label_path, ct)
    shape = [
        max(1, int(np.floor((size - 1) * spacing / EVALUATION_SPACING_MM)) + 1)
        for size, spacing in zip(labels.shape, ct.spacing_mm, strict=True)
    ]

    def on_grid(volume: NDArray, fill_value: float) -> FloatArray:
        start = (0.0, 0.0, 0.0)
        return resample(volume, ct.spacing_mm, shape, (EVALUATION_SPACING_MM,) * 3, start, fill_value=fill_value)

    tumor = on_grid(labels == tumor_label, 0.0) >= 0.5
    components, _ = label(tumor)  # type: ignore[misc]
    sizes = np.bincount(np.asarray(components).ravel())[1:]
    if len(sizes) == 0 or sizes.max() * EVALUATION_SPACING_MM**3 < _SMALLEST_TUMOR_MM3:
        raise MissingLabelError(f"{case.label_path} has no tumour (label {tumor_label}) of at least 3 mm radius.")
    largest = np.asarray(components) == int(np.argmax(sizes)) + 1
    organ = (on_grid(labels == organ_label, 0.0) >= 0.5) & ~tumor
    return on_grid(ct.image_hu, -1000.0), organ, largest


def _stratified(examples: Sequence[Appearance], count: int, rng: np.random.Generator) -> list[Appearance]:
    """Looks of training tumours at evenly spread ranks of the contrast, in random order."""
    if not examples:
        return [Appearance()] * count
    ordered = sorted(examples, key=lambda look: look.contrast_hu or 0.0)
    ranks = ((np.arange(count) + 0.5) / count * len(ordered)).astype(int)
    return [ordered[int(rank)] for rank in rng.permutation(ranks)]


def _borrowed_residual(
    real_hu: FloatArray,
    reconstruction_hu: FloatArray,
    organ: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    window_hu: tuple[float, float],
) -> FloatArray:
    """Residual of the largest tumour-free cube of organ, mirrored over the whole scan. Shape (D, H, W)."""
    residual = np.clip(real_hu, *window_hu) - reconstruction_hu
    tissue = organ & ~mask
    depth = np.asarray(distance_transform_cdt(np.pad(tissue, 1), metric="chessboard"))[1:-1, 1:-1, 1:-1]
    centre = np.unravel_index(int(np.argmax(depth)), depth.shape)
    reach = max(0, int(depth.max()) - 1)
    cube = residual[tuple(slice(int(c) - reach, int(c) + reach + 1) for c in centre)]
    values = residual[tissue] if tissue.any() else residual
    limit = 3.0 * robust_sd(values)
    cube = np.clip(cube - np.median(values), -limit, limit)
    return np.pad(
        cube, [(0, max(0, size - cube.shape[axis])) for axis, size in enumerate(mask.shape)], mode="symmetric"
    )[tuple(slice(0, size) for size in mask.shape)]


def _statistics(values: Sequence[NDArray[np.floating]], pooled_real: NDArray[np.floating]) -> HuStatistics:
    """Pool draws and cases; each entry has shape (draws, voxels)."""
    pooled = np.concatenate([entry.ravel() for entry in values])
    weights = np.concatenate([np.full(entry.size, 1.0 / len(entry)) for entry in values])
    return HuStatistics(
        float(np.average(pooled, weights=weights)),
        float(np.mean([entry.std(axis=1).mean() for entry in values])),
        float(wasserstein_distance(pooled, pooled_real, u_weights=weights)),
    )
