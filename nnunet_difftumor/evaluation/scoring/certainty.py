"""How certain a network is of each tumour that it predicts, and predictions without those it is too little certain of.

nnU-Net writes a tumour wherever it is the most probable label. How many false alarms that gives depends on how often
training showed a tumour. A tumour's certainty is the largest margin in it: by how much the logit of the tumour exceeds
that of every other label. On scans that have no tumour it is measured how certain the network must be; tumours of less
are dropped whole, and the others keep their outlines.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from nnunet_difftumor.ct.components import label_components
from nnunet_difftumor.ct.datasets import find_label_maps, read_dataset_json
from nnunet_difftumor.ct.grid import GridGeometry
from nnunet_difftumor.ct.reading import read_labels
from nnunet_difftumor.ct.writing import write_ct_like
from nnunet_difftumor.errors import CorruptImageError, DatasetError, list_some
from nnunet_difftumor.evaluation.scoring.case_maps import NPZ_ENDING, turn_back
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme, read_label_scheme
from nnunet_difftumor.support.files.atomic_files import folder_written_whole

_RULES = ScoringRules()
_LEAST = 1e-12
_LABELS_FILE = "dataset.json"

Labels = NDArray[np.int16]


class PredictionFolder:
    """A folder that `nnUNetv2_predict --save_probabilities` wrote, with its dataset.json."""

    def __init__(self, folder: Path, tumor_labels: Sequence[str] = ()) -> None:
        """Look at a folder.

        Args:
            tumor_labels: Names or values of the tumour labels; without any, all whose names say so.

        Raises:
            DatasetError: If dataset.json or the probabilities of a case are missing.
            MissingLabelError: If no label is a tumour, or one is unknown.
        """
        self.folder, path = folder, folder / _LABELS_FILE
        self.scheme: LabelScheme = read_label_scheme(path, tumor_labels)
        self._order = tuple(read_dataset_json(path).get("regions_class_order", ()))
        self.maps = find_label_maps(folder)
        missing = [case for case in self.maps if not (folder / f"{case}{NPZ_ENDING}").is_file()]
        if missing:
            raise DatasetError(
                f"{folder} holds no probabilities (<case>{NPZ_ENDING}) of {list_some(missing)}. Predict with "
                "nnUNetv2_predict --save_probabilities."
            )

    @property
    def tumor_values(self) -> list[int]:
        """Label values that are tumours."""
        return sorted({value for label in self.scheme.tumors for value in label.values})

    @property
    def _channels(self) -> list[int]:
        return sorted({label.channel for label in self.scheme.tumors})

    def certainties(self, case: str) -> list[float]:
        """Certainty of each predicted tumour of a case, in logits; specks are left out, as in `difftumor score`."""
        labels, grid = read_labels(self.maps[case])
        numbers, largest = self._tumors_of(labels, self._probabilities(case, labels, grid))
        voxels = np.bincount(numbers.ravel(), minlength=len(largest))
        voxel_mm3 = abs(float(np.linalg.det(grid.affine[:3, :3])))
        counts = (voxels >= _RULES.smallest_voxels) & (voxels * voxel_mm3 >= _RULES.smallest_mm3)
        return [float(value) for value in largest[1:][counts[1:]]]

    def write_without(self, case: str, certainty: float, output: Path) -> tuple[int, int]:
        """Write the label map of a case without tumours of no more than a certainty: the next probable label is there.

        Returns:
            Tumours that are left, and that were dropped; specks count here.
        """
        labels, grid = read_labels(self.maps[case])
        values = self._probabilities(case, labels, grid)
        numbers, largest = self._tumors_of(labels, values)
        is_dropped = largest <= certainty
        is_dropped[0] = False
        write_ct_like(
            self.maps[case], output, self._without_tumors(values).astype(np.float32), np.asarray(is_dropped[numbers])
        )
        return int((~is_dropped[1:]).sum()), int(is_dropped.sum())

    def _tumors_of(self, labels: Labels, values: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Number of the predicted tumour of each voxel, and the certainty of each; the first is of no tumour."""
        numbers, count = label_components(np.isin(labels, self.tumor_values))
        largest = np.asarray(ndimage.maximum(self._margin(values), numbers, np.arange(count + 1)), dtype=np.float64)
        return numbers, largest

    def _margin(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """By how much the logit of a tumour exceeds those of all other labels. Shape (D, H, W)."""
        logs = np.log(np.maximum(values, _LEAST))
        if self.scheme.has_regions:
            others = np.log(np.maximum(1.0 - values[self._channels], _LEAST))
            return np.max(logs[self._channels] - others, axis=0)
        return logs[self._channels].max(axis=0) - np.delete(logs, self._channels, axis=0).max(axis=0)

    def _without_tumors(self, values: NDArray[np.float32]) -> Labels:
        """The labels that nnU-Net would write if no channel were a tumour. Shape (D, H, W)."""
        if self.scheme.has_regions:
            labels = np.zeros(values.shape[1:], dtype=np.int16)
            for channel, value in enumerate(self._order):
                if channel not in self._channels and value not in self.tumor_values:
                    labels[values[channel] > 0.5] = value
            return labels
        others = values.copy()
        others[self._channels] = -1.0
        return others.argmax(axis=0).astype(np.int16)

    def _probabilities(self, case: str, labels: Labels, grid: GridGeometry) -> NDArray[np.float32]:
        """nnU-Net's probabilities on the grid of the label map. Shape (C, D, H, W)."""
        path = self.folder / f"{case}{NPZ_ENDING}"
        try:
            with np.load(path, allow_pickle=False) as archive:
                values = np.asarray(archive["probabilities"], dtype=np.float32)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise CorruptImageError(
                f"{path} cannot be read as nnU-Net's probabilities ({' '.join(str(error).split())[:200]}). Predict "
                "again with --save_probabilities."
            ) from error
        if self.scheme.is_reoriented and values.ndim == 4:
            values = np.stack([turn_back(channel, grid) for channel in values])
        if values.shape != (self.scheme.channels, *labels.shape):
            raise CorruptImageError(
                f"{path} should hold probabilities of shape {(self.scheme.channels, *labels.shape)}, one channel a "
                f"label on the grid of {self.maps[case].name}, but has {values.shape}. Take both, and dataset.json, "
                "from one prediction."
            )
        return values


def choose_certainty(certainties: Sequence[Sequence[float]], most_a_scan: float) -> float:
    """Return the smallest certainty above which no more false alarms a scan are left; 0 keeps all.

    Args:
        certainties: Of the predicted tumours of each scan; none of the scans has a tumour.
    """
    every = sorted((value for scan in certainties for value in scan), reverse=True)
    allowed = int(most_a_scan * len(certainties) + 1e-9)
    return every[allowed] if allowed < len(every) else 0.0


def read_certainty(path: Path) -> tuple[float, list[str]]:
    """Read the certainty that `difftumor calibrate` wrote, and the names of the tumour labels.

    Raises:
        DatasetError: If the file is none of that command's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return float(content["certainty"]), [str(name) for name in content["tumor_labels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path} is no file that difftumor calibrate wrote ({error!r}). Give its --output."
        ) from error


def drop_uncertain(predictions: PredictionFolder, certainty: float, output: Path) -> tuple[int, int]:
    """Write the label maps of a folder without tumours of no more than a certainty, and dataset.json, into a new one.

    Returns:
        Tumours that are left, and that were dropped.

    Raises:
        OutputExistsError: If the folder exists and is not empty.
    """
    kept, dropped = 0, 0
    with folder_written_whole(output) as temporary:
        shutil.copyfile(predictions.folder / _LABELS_FILE, temporary / _LABELS_FILE)  # as in nnU-Net's own predictions
        for case, path in tqdm(predictions.maps.items(), unit="scan"):
            left, gone = predictions.write_without(case, certainty, temporary / path.name)
            kept, dropped = kept + left, dropped + gone
    return kept, dropped
