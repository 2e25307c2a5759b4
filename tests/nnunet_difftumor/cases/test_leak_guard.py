import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_identifier, save_provenance
from nnunet_difftumor.cases.fold import FoldCases, PreprocessedCases, check_leaks, find_raw_images, tumor_masks_of
from nnunet_difftumor.cases.healthy import CaseGroups
from nnunet_difftumor.cases.leak_guard import (
    CaseContent,
    describe_case,
    describe_overlap,
    describe_unknown,
    find_overlap,
    read_provenance,
    refuse_overlap,
)
from nnunet_difftumor.cases.splits import Split
from nnunet_difftumor.ct import reading
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.errors import LeakError
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig, OrganTarget
from nnunet_difftumor.support.files.fact_cache import FactCache

NAMES = ("train_1", "train_2", "val_1", "val_2", "holdout_1")
LABELS = {"background": 0, "liver": 1, "tumor": 2}
OTHER = CaseFingerprint(
    identifier_hash=hash_identifier("elsewhere"), image_hash="a" * 64, tumor_mask_hash="b" * 64, tumor_prints=()
)


@pytest.fixture
def data(tmp_path):
    """A data set with CT and labels of every case, as nnU-Net keeps them."""
    images, gt = tmp_path / "imagesTr", tmp_path / "pre" / "gt_segmentations"
    for folder in (images, gt):
        folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(number)
        labels = np.zeros((5, 6, 7), dtype=np.int16)
        labels[1:4, 1:5] = 1
        if name != "holdout_1":
            labels[2, 2 : 3 + number % 2, 1 + number] = 2
        image_hu = rng.integers(-200, 300, size=labels.shape).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image_hu, np.eye(4)), images / f"{name}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), gt / f"{name}.nii.gz")
    return PreprocessedCases(
        folder=tmp_path / "pre",
        identifiers=NAMES,
        label_ending=".nii.gz",
        images={name: images / f"{name}_0000.nii.gz" for name in NAMES},
        labels=LABELS,
    )


CASES = FoldCases(
    CaseGroups(("train_1", "train_2", "val_1", "val_2"), ("holdout_1",), ()),
    ("holdout_1",),
    Split(("train_1", "train_2"), ("val_1", "val_2")),
    (),
)


@pytest.fixture
def fingerprint(fingerprint_case):
    def of_case(data, name, as_name=None, values=(2,)):
        return fingerprint_case(Case(as_name or name, data.images[name], data.label_file(name)), values)

    return of_case


def check(data, diffusion, autoencoder=(), fold=0, keep_images=True, **settings):
    folder = data.folder / "generator"
    folder.mkdir(exist_ok=True)
    save_provenance(folder / "provenance.json", Provenance(diffusion=tuple(diffusion), autoencoder=tuple(autoencoder)))
    if not keep_images:
        data = replace(data, images={})
    config = DiffTumorConfig(generator=None, organ_label=1, tumor_label=2, **settings)
    return check_leaks(folder, data, CASES, config, fold)


def test_clean_fold_passes_and_tells_which_tumors_are_too_small_to_be_recognised(data, fingerprint):
    trained_on = [fingerprint(data, "train_1"), fingerprint(data, "train_2"), OTHER]
    findings = check(data, trained_on, trained_on)
    assert findings.acknowledged == findings.warnings == ()
    assert len(findings.notes) == 1
    assert "2 validation cases (val_1, val_2) cannot be recognised in another resampling" in findings.notes[0]


@pytest.mark.parametrize("keep_images", [True, False], ids=["with raw CT", "labels only"])
def test_a_validation_case_in_the_diffusion_training_is_refused(data, keep_images, fingerprint):
    with pytest.raises(LeakError, match=r"diffusion model .*val_2.*fold_\{fold\}"):
        check(data, [fingerprint(data, "train_1"), fingerprint(data, "val_2")], keep_images=keep_images)


@pytest.mark.parametrize("keep_images", [True, False], ids=["with raw CT", "labels only"])
def test_a_renamed_copy_is_refused(data, keep_images, fingerprint):
    with pytest.raises(LeakError, match="under another identifier"):
        check(data, [fingerprint(data, "val_1", as_name="patient_77")], keep_images=keep_images)


def test_diffusion_overlap_cannot_be_acknowledged(data, fingerprint):
    with pytest.raises(LeakError, match="diffusion model"):
        check(
            data,
            [fingerprint(data, "val_1")],
            acknowledge_identifier_matches=True,
            acknowledge_autoencoder_overlap=True,
        )


def test_same_identifier_with_other_content_needs_an_acknowledgement(data, fingerprint):
    namesake = fingerprint(data, "train_1", as_name="val_1")
    with pytest.raises(LeakError, match="acknowledge_identifier_matches"):
        check(data, [namesake])
    findings = check(data, [namesake], acknowledge_identifier_matches=True)
    assert "val_1" in findings.acknowledged[0]


def test_a_name_whose_content_cannot_be_compared_tells_what_is_missing(data):
    unmasked = CaseFingerprint(identifier_hash=hash_identifier("val_1"), image_hash="c" * 64)
    with pytest.raises(LeakError, match="nnUNet_raw"):
        check(data, [unmasked], keep_images=False)


REGIONS = {"background": 0, "liver": [1, 2, 3], "tumor": [2, 3], "necrosis": 3}


@pytest.fixture
def regional(data):
    """The same data set with a tumour that is a region: part of it is necrosis."""
    for name in NAMES[:-1]:
        image = nibabel.load(data.label_file(name))
        labels = np.asarray(image.dataobj).copy()
        labels[2, 1, 1] = 3
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), data.label_file(name))
    return replace(data, labels=REGIONS)


@pytest.mark.parametrize("values", [[2, 3], [2]], ids=["as train-diffusion takes it", "its own label alone"])
@pytest.mark.parametrize("keep_images", [True, False], ids=["with raw CT", "labels only"])
def test_a_renamed_copy_of_a_tumor_that_is_a_region_is_refused(regional, keep_images, values, fingerprint):
    leak = fingerprint(regional, "val_1", "patient_77", values)
    with pytest.raises(LeakError, match="under another identifier"):
        check(regional, [leak], keep_images=keep_images)


def test_every_region_that_may_have_been_the_tumor_is_compared():
    labels = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2, "tumor_core": [2, 4]}
    target = OrganTarget(organ_label=1, tumor_label=2)
    assert tumor_masks_of(labels, target) == ((2,), (2, 4), (2, 3))
    assert tumor_masks_of({"background": 0, "liver": 1, "tumor": 2}, target) == ((2,),)


def test_another_mask_alone_does_not_prove_another_case(data, fingerprint):
    relabelled = fingerprint(data, "train_1", as_name="val_1")
    with pytest.raises(LeakError, match="cannot be compared without the raw CT"):
        check(data, [relabelled], keep_images=False)
    with pytest.raises(LeakError, match="but with other content"):
        check(data, [relabelled])


def test_autoencoder_overlap_needs_an_acknowledgement(data, fingerprint):
    seen = [fingerprint(data, "val_1")]
    with pytest.raises(LeakError, match="acknowledge_autoencoder_overlap"):
        check(data, [OTHER], seen)
    findings = check(data, [OTHER], seen, acknowledge_autoencoder_overlap=True)
    assert "autoencoder" in findings.acknowledged[0]


def test_an_autoencoder_that_saw_the_ct_without_labels_is_found(data, fingerprint_case):
    unlabelled = fingerprint_case(Case("scan", data.images["val_2"]))
    with pytest.raises(LeakError, match="autoencoder"):
        check(data, [OTHER], [unlabelled])


def test_fold_all_refuses_nothing_and_tells_the_overlap(data, fingerprint):
    findings = check(data, [fingerprint(data, "val_1")], fold="all")
    assert findings.acknowledged == ()
    assert "no claim about validation" in findings.notes[-1]
    assert "val_1" in findings.notes[-1]


def test_holdout_in_the_generators_training_is_told(data, fingerprint):
    findings = check(data, [OTHER, fingerprint(data, "holdout_1")])
    assert "specificity" in findings.notes[0]


def test_a_generator_without_provenance_is_refused(tmp_path):
    with pytest.raises(LeakError, match="train-diffusion"):
        read_provenance(tmp_path)
    save_provenance(tmp_path / "provenance.json", Provenance(diffusion=(), autoencoder=(OTHER,)))
    with pytest.raises(LeakError, match="names no case"):
        read_provenance(tmp_path)
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(LeakError):
        read_provenance(tmp_path)


def test_empty_tumor_masks_are_not_taken_for_copies(data, fingerprint):
    healthy = fingerprint(data, "holdout_1", as_name="other_healthy")
    content = describe_case("val_9", data.label_file("holdout_1"), None, [(2,)], FactCache(None))
    assert content.tumor_mask_hashes == ()
    assert describe_overlap(find_overlap([content], Provenance(diffusion=(healthy,), autoencoder=()))) == ()


def test_hashes_are_kept_and_follow_the_file(data, tmp_path):
    def describe():
        cache = FactCache(tmp_path / "facts.json")
        content = describe_case("val_1", data.label_file("val_1"), data.images["val_1"], [(2,)], cache)
        cache.save()
        return content

    before = describe()
    assert describe() == before
    shutil.copy(data.label_file("val_2"), data.label_file("val_1"))
    shutil.copy(data.images["val_2"], data.images["val_1"])
    changed = describe()
    assert changed.tumor_mask_hashes != before.tumor_mask_hashes
    assert changed.image_hash != before.image_hash


def test_each_file_is_read_once_and_then_never_again(data, tmp_path, monkeypatch, fingerprint_case):
    files = []

    def read_array(path):
        files.append(path)
        return original(path)

    original = reading.read_array
    monkeypatch.setattr(reading, "read_array", read_array)
    label_file, image_file = data.label_file("train_1"), data.images["train_1"]
    labels = np.zeros((60, 50, 40), np.uint8)
    labels[10:30, 10:30, 10:30], labels[12:20, 12:20, 12:20] = 2, 3
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), label_file)
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.int16) * 100 - 90, np.eye(4)), image_file)
    cache = FactCache(tmp_path / "facts.json")
    content = describe_case("train_1", label_file, image_file, [(2,), (2, 3)], cache)
    assert sorted(files) == sorted([label_file, image_file])
    assert (len(content.tumor_mask_hashes), len(content.tumor_prints)) == (2, 2)
    seen = fingerprint_case(Case("train_1", image_file, label_file), (2, 3))
    assert (seen.image_hash, seen.tumor_prints[0]) == (content.image_hash, content.tumor_prints[1])
    files.clear()
    assert describe_case("train_1", label_file, image_file, [(2,), (2, 3)], cache) == content
    assert files == []


def test_recompressed_and_retyped_copies_are_recognised(data, tmp_path, fingerprint_case):
    values = np.asarray(nibabel.load(data.images["val_1"]).dataobj)
    copy = tmp_path / "copy.nii"
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), copy)
    with pytest.raises(LeakError, match="under another identifier"):
        check(data, [fingerprint_case(Case("copy", copy))])


def test_refusal_names_every_case_once():
    named = CaseFingerprint(
        identifier_hash=hash_identifier("val_1"), image_hash="c" * 64, tumor_mask_hash="d" * 64, tumor_prints=()
    )
    content = CaseContent(identifier="val_1", image_hash="e" * 64, tumor_mask_hashes=("f" * 64,))
    overlap = find_overlap([content], Provenance(diffusion=(named,), autoencoder=(named,)))
    with pytest.raises(LeakError, match=r"1 validation case \(val_1\)"):
        refuse_overlap(overlap, acknowledge_identifier_matches=False, acknowledge_autoencoder_overlap=False)


def without_a_label(raw):
    (raw / "labelsTr" / "train_2.nii.gz").unlink()


def with_a_second_channel(raw):
    (raw / "imagesTr" / "train_2_0001.nii.gz").touch()


def with_a_broken_description(raw):
    (raw / "dataset.json").write_text("{")


def with_a_broken_list(raw):
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "dataset": {"train_2": {}}}))


def with_a_list_of_other_places(raw):
    (raw / "imagesTr").rename(raw / "elsewhere")
    listed = {name: {"images": [f"elsewhere/{name}_0000.nii.gz"], "label": f"labelsTr/{name}.nii.gz"} for name in NAMES}
    listed["train_1"]["images"] = ["$DIFFTUMOR_NOT_SET/train_1_0000.nii.gz"]
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "dataset": listed}))


@pytest.mark.parametrize(
    "spoil",
    [
        without_a_label,
        with_a_second_channel,
        with_a_broken_description,
        with_a_broken_list,
        with_a_list_of_other_places,
    ],
)
def test_what_is_wrong_with_another_case_does_not_blind_the_guard(data, spoil, fingerprint_case):
    raw = data.folder.parent
    shutil.copytree(data.folder / "gt_segmentations", raw / "labelsTr")
    (raw / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"})
    )
    seen = fingerprint_case(Case("patient_77", data.images["val_1"]))  # without labels: the CT alone tells
    spoil(raw)
    data = replace(data, images=find_raw_images(raw, ".nii.gz"))
    with pytest.raises(LeakError, match="val_1 under another identifier"):
        check(data, [seen])


@pytest.mark.parametrize("spoil", ["missing", "damaged"])
def test_a_ct_that_the_guard_cannot_look_at_is_told_and_the_others_are_looked_at(data, spoil, fingerprint_case):
    seen = fingerprint_case(Case("patient_77", data.images["val_1"]))
    if spoil == "missing":
        data.images["val_2"].unlink()
    else:
        data.images["val_2"].write_bytes(b"no image")
    notes = check(data, [OTHER]).notes
    assert any("WARNING: the CT of 1 validation case (val_2) is missing" in note for note in notes)
    with pytest.raises(LeakError, match="val_1 under another identifier"):
        check(data, [seen])


def test_a_record_without_content_hashes_guards_by_the_others(data, fingerprint_case):
    seen = replace(fingerprint_case(Case("patient_77", data.images["val_1"])), content_hash=None)
    folder = data.folder / "generator"
    folder.mkdir()
    save_provenance(folder / "provenance.json", Provenance(diffusion=(seen,), autoencoder=()))
    content = json.loads((folder / "provenance.json").read_text())
    del content["diffusion"][0]["content_hash"]  # as records of version 1.0 are
    (folder / "provenance.json").write_text(json.dumps(content))
    with pytest.raises(LeakError, match="val_1 under another identifier"):
        check_leaks(folder, data, CASES, DiffTumorConfig(generator=None, organ_label=1, tumor_label=2), 0)


def test_cases_that_trained_without_labels_are_counted(data, fingerprint_case):
    unlabelled = fingerprint_case(Case("elsewhere", data.images["train_1"]))
    notes = check(data, [OTHER], [unlabelled, unlabelled]).notes
    assert "autoencoder was trained on 2 cases without labels" in notes[-1]


MIRRORED_AND_RESPACED = {
    "mirrored": lambda hu: hu[::-1],
    "all axes mirrored": lambda hu: hu[::-1, ::-1, ::-1],
    "axes in another order": lambda hu: hu.transpose(2, 0, 1),
    "turned": lambda hu: np.rot90(hu, axes=(0, 2)),
    "padded": lambda hu: np.pad(hu, ((0, 2), (3, 0), (1, 1)), constant_values=-1024),
    "limited": lambda hu: hu.clip(-1000, 250),
    "padded with 0": lambda hu: np.pad(hu, ((0, 2), (3, 0), (1, 1)), constant_values=0),
}


@pytest.mark.parametrize("how", MIRRORED_AND_RESPACED)
def test_a_copy_in_other_axes_and_stated_at_another_spacing_is_refused(data, tmp_path, fingerprint_case, how):
    for name in NAMES:  # air around, as in a scan
        hu = np.pad(np.asarray(nibabel.load(data.images[name]).dataobj), 1, constant_values=-1000)
        labels = np.pad(np.asarray(nibabel.load(data.label_file(name)).dataobj), 1)
        nibabel.save(nibabel.Nifti1Image(hu, np.eye(4)), data.images[name])
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), data.label_file(name))
    hu = np.asarray(nibabel.load(data.images["val_1"]).dataobj)
    copy = tmp_path / "copy.nii.gz"
    changed = np.ascontiguousarray(MIRRORED_AND_RESPACED[how](hu))
    nibabel.save(nibabel.Nifti1Image(changed, np.diag([0.7, 0.7, 2.0, 1.0])), copy)
    with pytest.raises(LeakError, match=r"autoencoder.*val_1 under another identifier"):
        check(data, [OTHER], [fingerprint_case(Case("copy", copy))])
    another = fingerprint_case(Case("train", data.images["train_1"]))
    assert check(data, [OTHER], [another]).acknowledged == ()


def test_of_cases_that_are_known_by_name_alone_a_namesake_is_refused_and_others_are_warned_of():
    named = CaseFingerprint(identifier_hash=hash_identifier("liver_7"), image_hash=None)
    provenance = Provenance(diffusion=(named,), autoencoder=(), is_complete=False)
    cases = [CaseContent(identifier="liver_7", image_hash="1" * 64), CaseContent(identifier="liver_8")]
    overlap = find_overlap(cases, provenance)
    assert overlap["diffusion model"].not_comparable == ["liver_7"]
    settings = {"acknowledge_identifier_matches": False, "acknowledge_autoencoder_overlap": False}
    with pytest.raises(LeakError, match=r"identifiers of 1 validation case.*knows no more than names"):
        refuse_overlap(overlap, **settings)
    (warning,) = describe_unknown(provenance)
    assert "only 1 by name" in warning
    assert "cannot be excluded" in warning
    assert describe_unknown(Provenance(diffusion=(named,), autoencoder=())) == ()


def test_a_record_that_says_it_knows_no_case_is_read(tmp_path):
    save_provenance(tmp_path / "provenance.json", Provenance(diffusion=(), autoencoder=(), is_complete=False))
    assert not read_provenance(tmp_path).is_complete
    save_provenance(tmp_path / "provenance.json", Provenance(diffusion=(), autoencoder=()))
    with pytest.raises(LeakError, match="names no case"):
        read_provenance(tmp_path)
