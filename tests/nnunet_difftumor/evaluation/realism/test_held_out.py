"""Every patient is judged once, by a generator that never saw him."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_identifier
from nnunet_difftumor.cases.known_cases import KnownCases
from nnunet_difftumor.ct.datasets import Case, RawDataset
from nnunet_difftumor.errors import DatasetError, LeakError
from nnunet_difftumor.evaluation.realism import held_out
from nnunet_difftumor.evaluation.realism.held_out import HeldOut

NAMES = ("a_1", "a_2", "b_1", "c_1")
KNOWN = KnownCases(patients={name: name[0] for name in NAMES})


@pytest.fixture(autouse=True)
def _no_ct_is_read(monkeypatch):
    monkeypatch.setattr(held_out, "read_stored_ct", lambda path: path)
    monkeypatch.setattr(held_out, "hash_ct", lambda path: {str(path)})


def dataset() -> RawDataset:
    cases = tuple(Case(name, Path(f"{name}.nii.gz"), Path(f"{name}_label.nii.gz")) for name in NAMES)
    return RawDataset(folder=Path("Dataset001_Test"), labels={}, file_ending=".nii.gz", cases=cases, options={})


def trained_on(*names: str) -> Provenance:
    hashes = [(hash_identifier(name), hash_identifier(f"CT of {name}")) for name in names]
    prints = [CaseFingerprint(identifier_hash=identifier, image_hash=image) for identifier, image in hashes]
    return Provenance(diffusion=tuple(prints), autoencoder=())


def splits(path: Path, *validation: list[str]) -> Path:
    path.write_text(json.dumps([{"train": [], "val": each} for each in validation]))
    return path


def names(found: list[list[Case]]) -> list[list[str]]:
    return [[case.identifier for case in cases] for cases in found]


def test_each_generator_is_judged_on_the_fold_of_its_place(tmp_path):
    file = splits(tmp_path / "splits.json", ["a_1", "a_2"], ["b_1", "c_1"])
    both = [trained_on("b_1", "c_1"), trained_on("a_1", "a_2")]
    assert names(HeldOut(file, known=KNOWN).cases(dataset(), both)) == [["a_1", "a_2"], ["b_1", "c_1"]]
    assert names(HeldOut(file, 1).cases(dataset(), both[1:])) == [["b_1", "c_1"]]
    with pytest.raises(LeakError, match=r"2 of the cases to evaluate trained this generator \(a_1, a_2\)"):
        HeldOut(file).cases(dataset(), both[::-1])


def test_another_scan_of_a_patient_that_trained_the_generator_is_refused(tmp_path):
    file = splits(tmp_path / "splits.json", ["a_1"])
    assert names(HeldOut(file, 0).cases(dataset(), [trained_on("a_2")])) == [["a_1"]]  # nobody knows
    with pytest.raises(LeakError, match="a_2"):
        HeldOut(file, 0, KNOWN).cases(dataset(), [trained_on("a_2")])
    assert names(HeldOut(known=KNOWN).cases(dataset(), [trained_on("a_2")])) == [["b_1", "c_1"]]


def test_a_patient_is_judged_once(tmp_path):
    file = splits(tmp_path / "splits.json", ["a_1"], ["a_2", "b_1"])
    nothing = [trained_on(), trained_on()]
    assert names(HeldOut(file).cases(dataset(), nothing)) == [["a_1"], ["a_2", "b_1"]]
    with pytest.raises(DatasetError, match="validates a in more than one"):
        HeldOut(file, known=KNOWN).cases(dataset(), nothing)


def test_several_generators_need_splits_and_no_fold(tmp_path):
    file = splits(tmp_path / "splits.json", ["a_1"], ["b_1"])
    for chosen in (HeldOut(), HeldOut(file, 0)):
        with pytest.raises(DatasetError, match="2 generators need --splits"):
            chosen.cases(dataset(), [trained_on(), trained_on()])
    with pytest.raises(DatasetError, match="no validation list for fold 2"):
        HeldOut(file).cases(dataset(), [trained_on()] * 3)
    with pytest.raises(DatasetError, match="give both or neither"):
        HeldOut(file).cases(dataset(), [trained_on()])
