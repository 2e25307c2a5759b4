from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_difftumor.cases import real_edges
from nnunet_difftumor.cases.known_cases import KnownCases
from nnunet_difftumor.cases.real_edges import real_edge_law
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.ct.label_roles import LabelRoles
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.generator_training.crop_cache import build_crop_cache
from nnunet_difftumor.generator_training.tumor_statistics import measure_training_edges
from nnunet_difftumor.support.files.fact_cache import FactCache
from nnunet_difftumor.tumor.edge import Edge

SHAPE, SPACING_MM, OFFSET_MM = (24, 50, 90), (2.0, 1.0, 1.0), -1.5
ROLES = LabelRoles(organ=1, tumor=2)


def write_case(folder: Path, name: str, contrast_hu: float = -50.0) -> Case:
    """A muscle, and half of the scan fat beside it, with a tumour of 16 mm whose visible edge lies 1.5 mm inside."""
    folder.mkdir(exist_ok=True)
    axes_mm = (np.arange(count) * mm for count, mm in zip(SHAPE, SPACING_MM, strict=True))
    grid = np.stack(np.meshgrid(*axes_mm, indexing="ij"))
    distance_mm = np.linalg.norm(grid - np.reshape((24.0, 25.0, 25.0), (3, 1, 1, 1)), axis=0) - 8.0
    image_hu = 80.0 + contrast_hu * Edge(offset_mm=OFFSET_MM, width_mm=1.5).share(distance_mm)
    image_hu += np.random.default_rng(0).normal(0.0, 6.0, SHAPE)
    labels = np.where(distance_mm <= 0, 2, 1).astype(np.uint8)
    labels[:, :, 45:] = 0
    image_hu[:, :, 45:] = -100.0
    paths = folder / f"{name}_0000.nii.gz", folder / f"{name}.nii.gz"
    for path, array in zip(paths, (image_hu.astype(np.int16), labels), strict=True):
        nibabel.save(nibabel.Nifti1Image(array.T, np.diag([*reversed(SPACING_MM), 1.0])), path)
    return Case(name, *paths)


def measure(case: Case, cache: FactCache) -> float:
    assert case.label_path is not None
    files = {case.identifier: case.label_path}
    law = real_edge_law({case.identifier: case.image_path}, files, ROLES, KnownCases(), cache)
    assert [each.tumors for each in law] == [0, 1, 0]
    return law[1].offset_mm


def test_the_edge_of_a_fold_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = write_case(tmp_path / "raw", "a")
    first = measure(case, FactCache(tmp_path / "facts.json"))
    assert first == pytest.approx(OFFSET_MM, abs=0.4)
    monkeypatch.setattr(real_edges, "measure_case", lambda *_: pytest.fail("measured again"))
    assert measure(case, FactCache(tmp_path / "facts.json")) == first


def test_a_fold_without_scans_or_visible_tumors_is_refused(tmp_path: Path) -> None:
    case = write_case(tmp_path / "raw", "a", contrast_hu=0.0)
    assert case.label_path is not None
    files = {"a": case.label_path}
    with pytest.raises(ConfigurationError, match="those of 1 training cases with tumours are not in nnUNet_raw: a"):
        real_edge_law({}, files, ROLES, KnownCases(), FactCache(None))
    with pytest.raises(ConfigurationError, match="that stands out against label 1 beside it"):
        real_edge_law({"a": case.image_path}, files, ROLES, KnownCases(), FactCache(None))


def test_a_generator_measures_the_same_edge_on_its_training_cases(tmp_path: Path) -> None:
    case = write_case(tmp_path / "raw", "a")
    cached = build_crop_cache([case], tmp_path / "cache", tumor_values=(2,))
    law = measure_training_edges(cached)
    assert law[1].offset_mm == pytest.approx(measure(case, FactCache(None)), abs=0.05)


def test_two_scans_of_a_patient_are_one_patient_to_a_generator(tmp_path: Path) -> None:
    cases = [write_case(tmp_path / "raw", name, contrast_hu) for name, contrast_hu in (("a", -50.0), ("b", -25.0))]
    cached = build_crop_cache(cases, tmp_path / "cache", tumor_values=(2,))
    apart, together = (
        measure_training_edges(cached, known=KnownCases(patients=patients)) for patients in ({}, {"a": "x", "b": "x"})
    )
    (low_mm, high_mm), one_patient = apart[1].offset_interval_mm, together[1].offset_interval_mm
    assert one_patient[0] == pytest.approx(one_patient[1])
    assert low_mm < high_mm
