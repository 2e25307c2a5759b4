"""The short table of tumours in place that the demo's report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.evaluation.realism.collection import MeasuredTumor
from nnunet_difftumor.evaluation.realism.settings import EVALUATION_SPACING_MM
from nnunet_difftumor.evaluation.realism.tables import distribution_of
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.statistics.distributions import HuDistribution, wasserstein_hu

_ROWS = {
    "real": making.REAL,
    "synthetic": making.GENERATED,
    "synthetic, no residual": making.NO_RESIDUAL,
    "copy-paste": making.COPY_PASTE,
    "flat fill and residual, no diffusion": making.NO_DIFFUSION,
    "textured fill and residual, no diffusion": making.TEXTURED_FILL,
    "autoencoder": making.AUTOENCODER,
}


@dataclass(frozen=True)
class HuStatistics:
    """HU inside the masks of all evaluated tumours.

    Attributes:
        mean_hu: Mean, every case weighing the same.
        within_case_sd_hu: Mean over the cases of the standard deviation inside the mask.
        wasserstein_hu: Wasserstein distance to the real values, every case weighing the same.
        pooled_mean_hu: Mean, every voxel weighing the same: large tumours count most.
        pooled_wasserstein_hu: Wasserstein distance to the real values, every voxel weighing the same.
    """

    mean_hu: float
    within_case_sd_hu: float
    wasserstein_hu: float
    pooled_mean_hu: float
    pooled_wasserstein_hu: float


def inplace_table(tumors: Sequence[MeasuredTumor], window_hu: tuple[float, float]) -> dict[str, Any]:
    """Pool tumours in place into a short table.

    Args:
        tumors: Real tumours, and what replaced them.
        window_hu: Window of all values in HU.

    Returns:
        Plain values: `rows` with one `HuStatistics` per kind of tissue, `cases` with per-case means.
    """
    groups = {name: [t for t in tumors if t.made.method == method] for name, method in _ROWS.items()}
    groups = {name: group for name, group in groups.items() if group}
    real = distribution_of(groups["real"], window_hu)
    voxels = {t.measures.patient: int(t.made.place.label.sum()) for t in groups["real"]}
    rows = {name: _statistics(group, real, voxels, window_hu) for name, group in groups.items()}
    rows["constant at the real mean"] = _constant(rows["real"], real, voxels)
    synthetic = groups["synthetic"]
    return {
        "spacing_mm": EVALUATION_SPACING_MM,
        "draws_per_case": max(tumor.made.draw for tumor in synthetic) + 1,
        "rows": {name: asdict(statistics) for name, statistics in rows.items()},
        "cases": [_case(tumor, synthetic) for tumor in groups["real"]],
    }


def _case(real: MeasuredTumor, synthetic: Sequence[MeasuredTumor]) -> dict[str, Any]:
    own = [tumor.measures for tumor in synthetic if tumor.measures.patient == real.measures.patient]
    return {
        "identifier": real.measures.patient,
        "real_mean_hu": real.measures.mean_hu,
        "real_sd_hu": real.measures.sd_hu,
        "synthetic_mean_hu": float(np.mean([measures.mean_hu for measures in own])),
        "synthetic_sd_hu": float(np.mean([measures.sd_hu for measures in own])),
        "voxels": int(real.made.place.label.sum()),
    }


def _statistics(
    tumors: Sequence[MeasuredTumor], real: HuDistribution, voxels: Mapping[str, int], window_hu: tuple[float, float]
) -> HuStatistics:
    made = distribution_of(tumors, window_hu)
    patients = made.patients
    weights = np.array([voxels[patient] for patient in patients], dtype=np.float64)

    def of_patients(name: str) -> list[float]:
        own = [[getattr(t.measures, name) for t in tumors if t.measures.patient == patient] for patient in patients]
        return [float(np.mean(values)) for values in own]

    means_hu = of_patients("mean_hu")
    return HuStatistics(
        mean_hu=float(np.mean(means_hu)),
        within_case_sd_hu=float(np.mean(of_patients("sd_hu"))),
        wasserstein_hu=wasserstein_hu(made.cumulative.mean(axis=0), real.cumulative.mean(axis=0)),
        pooled_mean_hu=float(np.average(means_hu, weights=weights)),
        pooled_wasserstein_hu=wasserstein_hu(_pool(made, voxels), _pool(real, voxels)),
    )


def _constant(row: HuStatistics, real: HuDistribution, voxels: Mapping[str, int]) -> HuStatistics:
    """What a generator would score that fills every mask with the mean of all real tumours."""

    def distance_hu(mean_hu: float, cumulative: NDArray[np.floating]) -> float:
        return wasserstein_hu(np.where(real.edges_hu >= mean_hu, 1.0, 0.0), cumulative)

    return HuStatistics(
        mean_hu=row.mean_hu,
        within_case_sd_hu=0.0,
        wasserstein_hu=distance_hu(row.mean_hu, real.cumulative.mean(axis=0)),
        pooled_mean_hu=row.pooled_mean_hu,
        pooled_wasserstein_hu=distance_hu(row.pooled_mean_hu, _pool(real, voxels)),
    )


def _pool(distribution: HuDistribution, voxels: Mapping[str, int]) -> NDArray[np.floating]:
    """Cumulative distribution of all voxels. Shape (B,)."""
    weights = [voxels[patient] for patient in distribution.patients]
    return np.average(distribution.cumulative, axis=0, weights=weights)
