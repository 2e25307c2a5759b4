"""Predicted tumours outside the organ are dropped, if that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_difftumor.ct.components import NEIGHBOURS_26, label_components
from nnunet_difftumor.evaluation.scoring.case_maps import CaseMaps
from nnunet_difftumor.evaluation.scoring.scheme import ScoredLabel

REFERENCE = "reference"
PREDICTION = "prediction"


@dataclass(frozen=True)
class OrganFilter:
    """Where the organ mask comes from.

    Attributes:
        source: "reference" (the reference's organ and its tumours), "prediction" (the predicted organ), or a folder
            of masks in which everything above 0 is organ.
    """

    source: str

    @property
    def folder(self) -> Path | None:
        """The folder of masks, or None."""
        return None if self.source in (REFERENCE, PREDICTION) else Path(self.source)

    def reach(self, maps: CaseMaps, label: ScoredLabel) -> NDArray[np.bool_]:
        """Organ of a tumour label and the voxels next to it. Shape (D, H, W)."""
        if self.source == PREDICTION:
            organ = np.isin(maps.prediction, label.organ_values)
        elif self.source == REFERENCE:
            organ = np.isin(maps.reference, (*label.organ_values, *label.values))
        else:
            assert maps.organ_mask is not None  # reading a case without its mask has failed before
            organ = maps.organ_mask
        return np.asarray(ndimage.binary_dilation(organ, structure=NEIGHBOURS_26), dtype=bool)


def keep_near_organ(prediction: NDArray[np.bool_], reach: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop the predicted components that have no voxel in the organ or next to it.

    A component is kept or dropped as a whole: cutting it at the organ's border would correct its outline too.

    Args:
        prediction: Predicted tumours. Shape (D, H, W).
        reach: Organ and the voxels next to it. Shape (D, H, W).
    """
    numbers, count = label_components(prediction)
    is_kept = np.zeros(count + 1, dtype=bool)
    is_kept[numbers[reach]] = True
    is_kept[0] = False
    return is_kept[numbers]
