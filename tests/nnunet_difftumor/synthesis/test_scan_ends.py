"""A scan holds tissue to the end of its outer voxels, on whatever grid it is looked at."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.evaluation.realism.measures import reconstruction
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, read_scan

TISSUE_HU = -40
SPACINGS = pytest.mark.parametrize("spacing_mm", [(0.8, 0.8, 0.8), (1.0, 0.7, 0.7), (3.0, 0.8, 0.8)])


def save_scan(folder: Path, spacing_mm: tuple[float, float, float]) -> Case:
    """A scan of nothing but organ, and of a tumour that reaches its first slice."""
    shape = tuple(int(40 / spacing) for spacing in spacing_mm)
    labels = np.ones(shape, np.uint8)
    labels[: shape[0] // 2, shape[1] // 4 : shape[1] // 2, shape[2] // 4 : shape[2] // 2] = 2
    affine = np.diag([*spacing_mm[::-1], 1.0])
    for name, array in (("ct", np.full(shape, TISSUE_HU, np.int16)), ("labels", labels)):
        nibabel.save(nibabel.Nifti1Image(array.T, affine), folder / f"{name}.nii.gz")
    return Case("a", folder / "ct.nii.gz", folder / "labels.nii.gz")


@SPACINGS
def test_an_evaluated_scan_has_no_air_in_its_outer_planes(tmp_path: Path, spacing_mm: tuple[float, float, float]):
    scan = read_scan(save_scan(tmp_path, spacing_mm), 1, 2, (-175.0, 250.0))
    np.testing.assert_allclose(scan.image_hu, TISSUE_HU, atol=0.01)
    assert (scan.organ | scan.tumors).all()
    assert scan.tumors[0].sum() == pytest.approx(scan.tumors[1].sum(), rel=0.1)


@pytest.mark.parametrize("spacing_mm", [1.5, 3.0, 4.0])
def test_a_reconstructed_tile_has_no_air_in_its_outer_planes(spacing_mm: float):
    organ = np.ones((32, 48, 48), bool)
    tumor = np.zeros_like(organ)
    tumor[:8, 20:32, 20:32] = True
    image_hu = np.full(organ.shape, TISSUE_HU, np.float32)
    scan = EvaluationScan("a", (2.0, 2.0, 2.0), image_hu, organ & ~tumor, tumor, tumor, (-175.0, 250.0))
    tile_hu, tile_tumor, _ = reconstruction._tiles(scan, spacing_mm, 1)[0]
    np.testing.assert_allclose(tile_hu, TISSUE_HU, atol=0.01)
    assert tile_tumor[0].sum() == tile_tumor[1].sum() > 0
