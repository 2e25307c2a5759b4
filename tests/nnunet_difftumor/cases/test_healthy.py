import json
import os
import shutil

import nibabel
import numpy as np
import pytest

from nnunet_difftumor.cases import healthy as module
from nnunet_difftumor.cases.healthy import CaseGroups, choose_holdout, count_label_voxels, group_cases
from nnunet_difftumor.ct.label_roles import LabelRoles
from nnunet_difftumor.errors import ConfigurationError, DatasetError
from nnunet_difftumor.support.files.fact_cache import FactCache


def write_labels(path, labels):
    nibabel.save(nibabel.Nifti1Image(np.asarray(labels, dtype=np.int16).T, np.eye(4)), path)
    return path


@pytest.fixture
def label_files(tmp_path):
    folder = tmp_path / "gt_segmentations"
    folder.mkdir()
    organ = np.zeros((4, 5, 6))
    organ[1:3, 1:4] = 1
    tumor = organ.copy()
    tumor[2, 2, 2] = 2  # a single voxel on the raw grid counts
    volumes = {"tumor": tumor, "healthy": organ, "empty": np.zeros_like(organ), "ignored": np.where(organ, 7, 0)}
    return {name: write_labels(folder / f"{name}.nii.gz", labels) for name, labels in volumes.items()}


def test_voxels_are_counted_on_the_raw_grid(label_files):
    counts = count_label_voxels(label_files, FactCache(None))
    assert counts["tumor"] == {0: 84, 1: 35, 2: 1}
    assert counts["empty"] == {0: 120}


def test_healthy_means_organ_present_and_tumor_absent(label_files):
    groups = group_cases(count_label_voxels(label_files, FactCache(None)), LabelRoles(1, 2))
    assert groups == CaseGroups(tumor=("tumor",), healthy=("healthy",), other=("empty", "ignored"))


def test_counts_are_kept_and_a_changed_file_is_read_again(label_files, tmp_path, monkeypatch):
    cache_file = tmp_path / "difftumor_cases.json"
    first = count_label_voxels(label_files, FactCache(cache_file))
    assert json.loads(cache_file.read_text())["format"] == 1
    read = []
    monkeypatch.setattr(module, "_count_voxels", lambda path: read.append(path.name) or {1: 1, 2: 5})
    assert count_label_voxels(label_files, FactCache(cache_file)) == first
    assert read == []
    stamp = label_files["healthy"].stat().st_mtime_ns + 10**9
    os.utime(label_files["healthy"], ns=(stamp, stamp))
    again = count_label_voxels(label_files, FactCache(cache_file))
    assert read == ["healthy.nii.gz"]
    assert again["healthy"] == {1: 1, 2: 5}


def test_files_of_several_sites_with_equal_names_are_told_apart(label_files, tmp_path):
    """nnU-Net's `dataset` listing may name <site>/labelsTr/001.nii.gz of several sites."""
    sites = {"a": "tumor", "b": "healthy"}
    for site, case in sites.items():
        (tmp_path / site / "labelsTr").mkdir(parents=True)
        shutil.copy(label_files[case], tmp_path / site / "labelsTr" / "001.nii.gz")
    files = {site: tmp_path / site / "labelsTr" / "001.nii.gz" for site in sites}
    same_names = {**files, "c": write_labels(tmp_path / "001.nii.gz", np.ones((3, 3, 3)))}
    (tmp_path / "d" / "a" / "labelsTr").mkdir(parents=True)
    same_names["d"] = write_labels(tmp_path / "d" / "a" / "labelsTr" / "001.nii.gz", np.full((2, 2, 2), 2))
    for cache in (FactCache(None), FactCache(tmp_path / "cases.json"), FactCache(tmp_path / "cases.json")):
        counts = count_label_voxels(same_names, cache)
        assert counts["a"] == {0: 84, 1: 35, 2: 1}
        assert counts["b"] == {0: 84, 1: 36}
        assert (counts["c"], counts["d"]) == ({1: 27}, {2: 8})


def test_a_damaged_cache_is_started_anew(label_files, tmp_path):
    cache_file = tmp_path / "cases.json"
    for content in ("{", '{"format": 1, "files": [1]}', '{"format": 9, "files": {}}'):
        cache_file.write_text(content)
        assert count_label_voxels(label_files, FactCache(cache_file))["healthy"][1] == 36


def test_a_missing_label_file_is_named(label_files, tmp_path):
    with pytest.raises(DatasetError, match="gone"):
        count_label_voxels({**label_files, "gone": tmp_path / "gone.nii.gz"}, FactCache(None))


VOXELS = {"t": {0: 9, 1: 5, 2: 1}, "a": {0: 9, 1: 5}, "b": {0: 9, 1: 5}, "no_organ": {0: 9}}


def test_a_list_limits_the_healthy_cases():
    groups = group_cases(VOXELS, LabelRoles(1, 2), healthy_cases=["b"])
    assert groups == CaseGroups(tumor=("t",), healthy=("b",), other=("a", "no_organ"))


@pytest.mark.parametrize(("listed", "message"), [("t", "tumour label"), ("no_organ", "organ label"), ("x", "not in")])
def test_a_listed_case_must_be_healthy(listed, message):
    with pytest.raises(ConfigurationError, match=message):
        group_cases(VOXELS, LabelRoles(1, 2), healthy_cases=["a", listed])


def test_no_annotation_at_all_is_not_health_unless_confirmed():
    unannotated = {name: VOXELS[name] for name in ("a", "b", "no_organ")}
    with pytest.raises(ConfigurationError, match="confirmed_healthy"):
        group_cases(unannotated, LabelRoles(1, 2))
    assert group_cases(unannotated, LabelRoles(1, 2), confirmed_healthy=True).healthy == ("a", "b")
    assert group_cases(unannotated, LabelRoles(1, 2), healthy_cases=["a"]).healthy == ("a",)


def test_a_case_with_ignored_voxels_is_not_healthy_unless_the_user_says_so():
    partly = {**VOXELS, "b": {0: 9, 1: 5, 3: 40}}
    assert group_cases(partly, LabelRoles(1, 2, ignore=3)).healthy == ("a",)
    assert "b" in group_cases(partly, LabelRoles(1, 2, ignore=3)).other
    assert group_cases(partly, LabelRoles(1, 2, ignore=3), healthy_cases=["b"]).healthy == ("b",)
    assert group_cases(partly, LabelRoles(1, 2, ignore=3), confirmed_healthy=True).healthy == ("a", "b")
    only_partly = {name: partly[name] for name in ("t", "b")}
    with pytest.raises(ConfigurationError, match=r"All 1 cases.*ignore label \(b\).*confirmed_healthy"):
        group_cases(only_partly, LabelRoles(1, 2, ignore=3))


def test_every_part_of_a_tumor_region_is_tumor():
    labels = {"background": 0, "liver": [1, 2, 3], "tumor": [2, 3], "necrosis": 3}
    roles = LabelRoles.of_dataset(labels, 1, 2)
    assert roles == LabelRoles(1, 2, tumor_parts=(3,))
    necrotic = {**VOXELS, "b": {0: 9, 1: 5, 3: 1}}
    assert group_cases(necrotic, roles).tumor == ("b", "t")
    kidney = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
    assert LabelRoles.of_dataset(kidney, 1, 2).tumor_parts == ()  # a cyst is no tumour


def test_holdout_is_a_share_and_does_not_depend_on_the_order_of_cases():
    cases = [f"case_{number}" for number in range(20)]
    holdout = choose_holdout(cases, 0.2)
    assert len(holdout) == 4
    assert choose_holdout(cases[::-1], 0.2) == holdout
    assert set(choose_holdout(cases, 0.4)) > set(holdout)
    assert choose_holdout(cases, 0.2, seed=1) != holdout


def test_holdout_leaves_a_case_to_train_and_changes_little_when_a_case_is_added():
    assert choose_holdout(["a"], 0.9) == ()
    assert choose_holdout([], 0.2) == ()
    assert len(choose_holdout(["a", "b"], 0.9)) == 1
    cases = [f"case_{number}" for number in range(20)]
    assert len(set(choose_holdout(cases, 0.2)) & set(choose_holdout([*cases, "new"], 0.2))) >= 3
