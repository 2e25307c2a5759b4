"""Healthy cases of further data sets: settings, what is refused, training with them, the command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api as api
from nnunetv2.experiment_planning.plans_for_pretraining import move_plans_between_datasets as transfer

from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_identifier, save_provenance
from nnunet_difftumor.cases.extra.joining import CompositeDataset
from nnunet_difftumor.cases.extra.preprocessing import setting_with, write_setting
from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import ConfigurationError, DatasetError, LeakError
from nnunet_difftumor.settings.resolving import config_from_json, resolve_config
from nnunet_difftumor.settings.sources import ConfigSource
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

EXTRA = [{"dataset": 906, "confirmed_healthy": True}]
NAMES = ["donor_1", "donor_2", "donor_3"]
PLAIN = {"background": 0, "liver": 1, "tumor": 2}


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    return use(make_nnunet_project(), monkeypatch)


def use(project, monkeypatch):
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    monkeypatch.delenv("nnUNet_difftumor", raising=False)
    project.configure(extra_healthy_datasets=EXTRA)
    return project


def make_trainer(project, fold=0):
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    plans["continue_training"] = False
    return nnUNetTrainerDiffTumor(plans, "3d_fullres", fold, dataset_json, torch.device("cpu"))


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def resolve(value):
    return resolve_config(PLAIN, [ConfigSource("mine.json", {"extra_healthy_datasets": value}, Path())]).config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"dataset": 906}], r'mine\.json.*906 is not confirmed.*"confirmed_healthy": true'),
        ([{"dataset": 906, "confirmed_healthy": False}], "not confirmed"),
        ([{"dataset": 906, "confirmed_healthy": 1}], "not confirmed"),
        ([{"dataset": 906, "confirmed": True}], "must look like"),
        ([906], "must look like"),
        ([{"dataset": True, "confirmed_healthy": True}], "number or a full name"),
        (906, "must be a list of data sets"),
        ([*EXTRA, *EXTRA], "906 twice"),
    ],
)
def test_malformed_settings_are_named(value, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve(value)


def test_settings_survive_their_record():
    config = resolve([{"dataset": "Dataset906_Extra", "confirmed_healthy": True}])
    assert config_from_json(config.to_json()) == config
    assert resolve([]).extra_healthy_datasets == ()


class FakeDataset:
    def __init__(self, **cases):
        self.cases, self.identifiers = cases, list(cases)

    def load_case(self, identifier):
        return self.cases[identifier]


def test_a_composite_opens_each_case_where_it_lies():
    joined = CompositeDataset([FakeDataset(c=1, a=2), FakeDataset(b=3)])
    assert joined.identifiers == ["a", "b", "c"]
    assert [joined.load_case(case) for case in "abc"] == [joined[case] for case in "abc"] == [2, 3, 1]
    with pytest.raises(ValueError, match="share a case identifier"):
        CompositeDataset([FakeDataset(a=1), FakeDataset(a=2)])


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_extra_cases_train_in_every_fold_and_nothing_is_copied(project):
    extra = project.add_extra(NAMES)
    before = files_under(project.preprocessed)
    for fold in (0, 1, "all"):
        trainer = make_trainer(project, fold)
        train, val = trainer.do_split()
        assert set(NAMES) <= set(train)
        assert not set(NAMES) & set(val)
        assert set(NAMES) <= set(trainer._fold_cases.healthy_train)
        assert not set(NAMES) & set(trainer._fold_cases.holdout)
        assert all(case.startswith("tumor") for case in val)
    assert set(files_under(project.preprocessed)) - set(before) <= {"difftumor_cases.json"}
    trainer = make_trainer(project)
    trainer.initialize()
    dataset, validation = trainer.get_tr_and_val_datasets()
    assert dataset.identifiers == sorted(trainer.do_split()[0])
    assert not set(NAMES) & set(validation.identifiers)
    data, seg, _, properties = dataset.load_case("donor_2")
    assert data.shape == seg.shape == (1, 40, 40, 40)
    labels = np.asarray(nibabel.load(extra.raw / "labelsTr" / "donor_2.nii.gz").dataobj).T
    assert np.array_equal(np.asarray(seg[0][:]), labels)
    assert len(properties["class_locations"][1]) > 0


def test_a_training_places_tumors_in_extra_cases_and_says_so(project):
    project.add_extra(NAMES)
    project.configure(extra_healthy_datasets=EXTRA, num_iterations_per_epoch=12, recorded_samples=24)
    trainer = make_trainer(project)
    trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert "Extra healthy cases of Dataset906_Extra: 3. They train in every fold" in log
    records = (project.output() / "difftumor_records.jsonl").read_text().splitlines()
    assert set(NAMES) & {json.loads(record)["case"] for record in records}
    split = json.loads((project.output() / "difftumor_split.json").read_text())
    assert set(NAMES) <= set(split["healthy_train"])
    assert not set(NAMES) & {*split["val"], *split["holdout"]}
    recorded = json.loads((project.output() / "difftumor_config.json").read_text())
    assert recorded["settings"]["extra_healthy_datasets"] == [{"dataset": "906", "confirmed_healthy": True}]


def test_a_data_set_without_healthy_cases_of_its_own_trains_on_extra_ones(make_nnunet_project, monkeypatch):
    project = use(make_nnunet_project(tumor_cases=3, healthy_cases=0), monkeypatch)
    project.add_extra(NAMES)
    trainer = make_trainer(project)
    trainer._prepare_training()
    assert trainer._fold_cases.healthy_train == tuple(NAMES)


def write_labels(extra, name, change):
    for folder in (extra.raw / "labelsTr", extra.preprocessed / "gt_segmentations"):
        path = folder / f"{name}.nii.gz"
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj).copy()
        change(labels)
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), path)


def plan(**changes):
    def change(project, extra):
        edit_json(
            extra.preprocessed / "nnUNetPlans_for_Dataset905_Test.json",
            lambda plans: plans["configurations"]["3d_fullres"].update(changes),
        )

    return change


def intensities(project, extra):
    def change(plans):
        plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = 90.0

    edit_json(extra.preprocessed / "nnUNetPlans_for_Dataset905_Test.json", change)


def describe(**changes):
    def change(project, extra):
        edit_json(extra.preprocessed / "dataset.json", lambda content: content.update(changes))

    return change


def put_tumor(project, extra):
    write_labels(extra, "donor_2", lambda labels: labels.__setitem__((20, 20, 20), 2))


def put_unnamed_label(project, extra):
    write_labels(extra, "donor_2", lambda labels: labels.__setitem__((20, 20, 20), 7))


def collide(project, extra):
    for folder in (project.preprocessed / "nnUNetPlans_3d_fullres", project.preprocessed / "gt_segmentations"):
        for path in folder.glob("healthy_1[._]*"):
            shutil.copy(path, folder / path.name.replace("healthy_1", "donor_3"))


def forget_plans(project, extra):
    (extra.preprocessed / "nnUNetPlans_for_Dataset905_Test.json").unlink()


def interrupt(project, extra):
    (extra.preprocessed / "nnUNetPlans_for_Dataset905_Test_3d_fullres" / "donor_1.pkl").unlink()


def lose_labels(project, extra):
    (extra.preprocessed / "gt_segmentations" / "donor_1.nii.gz").unlink()


def name_itself(project, extra):
    project.configure(extra_healthy_datasets=[{"dataset": 905, "confirmed_healthy": True}])


def name_nobody(project, extra):
    project.configure(extra_healthy_datasets=[{"dataset": 977, "confirmed_healthy": True}])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (collide, DatasetError, "1 cases of Dataset906_Extra have identifiers that Dataset905_Test uses too: donor_3"),
        (plan(spacing=[1.0, 2.0, 2.0]), ConfigurationError, r"spacing \(\[1\.0, 2\.0, 2\.0\] there.*add-healthy -d"),
        (plan(normalization_schemes=["ZScoreNormalization"]), ConfigurationError, "normalization_schemes"),
        (intensities, ConfigurationError, "foreground_intensity_properties_per_channel"),
        (describe(channel_names={"0": "MR"}), ConfigurationError, r"channels .*MR.*CT"),
        (describe(labels={"background": 0, "liver": 2}), ConfigurationError, "liver is 2 there and 1 here"),
        (describe(labels={"background": 0, "liver": 1, "spleen": 2}), ConfigurationError, "lacks: spleen"),
        (put_tumor, ConfigurationError, r"1 cases of Dataset906_Extra have voxels of a tumour label \(2\): donor_2"),
        (put_unnamed_label, DatasetError, r"does not name: donor_2 \(\[7\]\)"),
        (forget_plans, DatasetError, "not preprocessed for Dataset905_Test.*difftumor add-healthy"),
        (interrupt, DatasetError, "interrupted at donor_1"),
        (lose_labels, DatasetError, "donor_1"),
        (name_itself, ConfigurationError, "trained on already"),
        (name_nobody, DatasetError, "no data set '977'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(project, change, error, message):
    change(project, project.add_extra(NAMES))
    with pytest.raises(error, match=message):
        make_trainer(project)._prepare_training()
    assert not (project.output() / "difftumor_config.json").exists()


def test_without_the_confirmation_nothing_is_trained(project):
    project.add_extra(NAMES)
    project.configure(extra_healthy_datasets=[{"dataset": 906}])
    with pytest.raises(ConfigurationError, match="not confirmed to be healthy"):
        make_trainer(project)._prepare_training()


def test_regions_need_the_same_labels(make_nnunet_project, monkeypatch):
    project = use(make_nnunet_project(labelling="regions"), monkeypatch)
    labels = {"background": 0, "whole_liver": [1, 2]}
    project.add_extra(NAMES, labelling={"labels": labels, "regions_class_order": [1]})
    with pytest.raises(ConfigurationError, match="does not declare the labels tumor"):
        make_trainer(project)._prepare_training()


@pytest.mark.parametrize("labelling", ["regions", "ignore"])
def test_extra_cases_with_the_same_regions_or_ignore_label_train(make_nnunet_project, monkeypatch, labelling):
    project = use(make_nnunet_project(labelling=labelling), monkeypatch)
    original = json.loads((project.preprocessed / "dataset.json").read_text())
    keys = {"labels", "regions_class_order"} & set(original)
    project.add_extra(NAMES, labelling={key: original[key] for key in keys})
    make_trainer(project).run_training()
    assert (project.output() / "checkpoint_final.pth").is_file()


def test_an_extra_data_set_need_not_declare_the_tumor(project):
    project.add_extra(NAMES, labelling={"labels": {"background": 0, "liver": 1}})
    trainer = make_trainer(project)
    trainer.run_training()
    assert (project.output() / "checkpoint_final.pth").is_file()


def test_cases_without_the_organ_train_but_get_no_tumors(project):
    extra = project.add_extra(NAMES)
    write_labels(extra, "donor_2", lambda labels: labels.fill(0))
    trainer = make_trainer(project)
    trainer._prepare_training()
    assert "donor_2" in trainer.do_split()[0]
    assert "donor_2" not in trainer._fold_cases.healthy_train
    assert "1 without the organ" in Path(trainer.log_file).read_text()


def copy_of(project, original):
    """An extra data set whose case donor_9 has the CT of one of the project's cases."""
    cases = [f"tumor_{number}" for number in range(3)] + [f"healthy_{number}" for number in range(8)]
    extra = project.add_extra(["donor_9"], first_seed=cases.index(original))
    source = project.preprocessed / "nnUNetPlans_3d_fullres"
    target = extra.preprocessed / "nnUNetPlans_for_Dataset905_Test_3d_fullres"
    shutil.copy(source / f"{original}.b2nd", target / "donor_9.b2nd")


def test_a_copy_of_a_case_with_a_tumor_is_not_healthy(project):
    copy_of(project, "tumor_0")
    with pytest.raises(ConfigurationError, match=r"annotated tumour.*donor_9 \(tumor_0\)"):
        make_trainer(project)._prepare_training()


def test_a_copy_of_a_held_out_case_is_a_leak_and_one_of_a_training_case_is_told(project):
    (project.preprocessed / "healthy_holdout.json").write_text('{"holdout": ["healthy_4"]}')
    copy_of(project, "healthy_4")
    with pytest.raises(LeakError, match=r"held-out.*donor_9 \(healthy_4\)"):
        make_trainer(project)._prepare_training()
    (project.preprocessed / "healthy_holdout.json").write_text('{"holdout": ["healthy_5"]}')
    trainer = make_trainer(project)
    trainer._prepare_training()
    assert "training cases too: donor_9 (healthy_4)" in Path(trainer.log_file).read_text()


def put_copy(project, case, original, axes=()):
    """Let a case of the project have the CT of another one, mirrored along axes, and keep its labels."""
    folder = project.preprocessed / "nnUNetPlans_3d_fullres"
    (folder / f"{case}.b2nd").unlink()
    image = blosc2.open(str(folder / f"{original}.b2nd"))[:]
    blosc2.asarray(np.ascontiguousarray(np.flip(image, axes)), urlpath=str(folder / f"{case}.b2nd"))


def test_a_healthy_training_case_with_the_ct_of_a_validation_case_is_a_leak(make_nnunet_project, monkeypatch):
    project = use(make_nnunet_project(), monkeypatch)
    project.configure()
    split = {"train": ["tumor_0", "tumor_1", *(f"healthy_{number}" for number in range(8))], "val": ["tumor_2"]}
    (project.preprocessed / "splits_final.json").write_text(json.dumps([split]))
    put_copy(project, "healthy_3", "tumor_2")
    with pytest.raises(LeakError, match=r"validation.*healthy_3 \(tumor_2\)"):
        make_trainer(project)._prepare_training()
    for axes in ((1,), (2, 3), (1, 2, 3)):
        put_copy(project, "healthy_3", "tumor_2", axes)
        with pytest.raises(LeakError, match=r"validation.*healthy_3 \(tumor_2\)"):
            make_trainer(project)._prepare_training()
    put_copy(project, "healthy_3", "tumor_1")
    with pytest.raises(ConfigurationError, match=r"annotated tumour.*healthy_3 \(tumor_1\)"):
        make_trainer(project)._prepare_training()
    put_copy(project, "healthy_3", "healthy_4")
    trainer = make_trainer(project)
    trainer._prepare_training()
    assert "training cases too: healthy_3 (healthy_4)" in Path(trainer.log_file).read_text()


HOLDOUT = "healthy_holdout.json"
SPLIT = {"train": ["tumor_0", "tumor_1", "healthy_1", "healthy_2"], "val": ["tumor_2"]}


def know(project, split=None, **known):
    """Write a splits file of one fold, and beside it what `difftumor splits` records."""
    (project.preprocessed / "splits_final.json").write_text(json.dumps([split or SPLIT]))
    (project.preprocessed / HOLDOUT).write_text(json.dumps({"holdout": ["healthy_3"], **known}))


@pytest.mark.parametrize(
    "known",
    [
        {"patients": {"tumor_2": "A", "donor_2": "A", "healthy_3": "B", "donor_3": "B"}},
        {
            "group_pattern": r"_(\d)$",
            "patients": {f"{kind}_{n}": str(n) for kind in ("tumor", "healthy") for n in (2, 3)},
        },
    ],
)
def test_extra_scans_of_validation_and_held_out_patients_do_not_train(project, known):
    project.add_extra(NAMES)
    know(project, {**SPLIT, "train": ["tumor_0", "tumor_1", "healthy_1"]}, **known)
    trainer = make_trainer(project)
    trainer._prepare_training()
    assert set(trainer.do_split()[0]) & set(NAMES) == {"donor_1"}
    assert set(trainer.get_tr_and_val_datasets()[0].identifiers) == set(trainer.do_split()[0])
    log = Path(trainer.log_file).read_text()
    assert "scans of this fold's validation and held-out patients: donor_2, donor_3" in log
    assert "Compared as validation cases, as scans of their patients: donor_2" in log
    project.configure(extra_healthy_datasets=EXTRA, generator=str(generator_that_saw(project, "donor_3")))
    make_trainer(project)._prepare_training()
    project.configure(extra_healthy_datasets=EXTRA, generator=str(generator_that_saw(project, "donor_2")))
    with pytest.raises(LeakError, match="donor_2"):
        make_trainer(project)._prepare_training()


def generator_that_saw(project, name):
    folder = project.root / f"generator_of_{name}"
    shutil.copytree(project.generator, folder)
    one = CaseFingerprint(identifier_hash=hash_identifier(name), image_hash="0" * 64)
    save_provenance(folder / "provenance.json", Provenance(diffusion=(one,), autoencoder=(one,)))
    return folder


@pytest.mark.parametrize(
    ("split", "known"),
    [
        (SPLIT, {"patients": {"tumor_2": "A", "healthy_4": "A"}}),
        ({**SPLIT, "val": ["tumor_2", "healthy_4"]}, {}),  # by hand: beside the other scan of its patient
    ],
)
def test_a_copy_of_another_scan_of_a_validation_patient_is_a_leak(project, split, known):
    copy_of(project, "healthy_4")
    know(project, split)
    if not known:
        know(project, SPLIT)
    make_trainer(project)._prepare_training()
    know(project, split, **known)
    with pytest.raises(LeakError, match=r"another scan of its patient: donor_9 \(healthy_4\)"):
        make_trainer(project)._prepare_training()


@pytest.mark.parametrize("where", ["extra", "target"])
def test_a_known_tumor_is_no_extra_health(project, where, capsys):
    extra = project.add_extra(NAMES)
    folder = (extra if where == "extra" else project).preprocessed
    (folder / HOLDOUT).write_text(json.dumps({"holdout": [], "known_tumor": ["donor_2"]}))
    message = r"1 cases of Dataset906_Extra .*: donor_2, or a tumour by the metadata of `difftumor splits`"
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(project)._prepare_training()
    assert re.search(message, run_here(capsys, "--confirmed-healthy")[1])


def test_the_setting_is_added_to_what_is_written(tmp_path):
    (tmp_path / "difftumor.json").write_text('{"seed": 4, "extra_healthy_datasets": []}')
    write_setting(tmp_path, setting_with(tmp_path, "Dataset906_Extra"))
    write_setting(tmp_path, setting_with(tmp_path, "Dataset907_More"))
    write_setting(tmp_path, setting_with(tmp_path, "Dataset906_Extra"))
    written = json.loads((tmp_path / "difftumor.json").read_text())
    assert written["seed"] == 4
    assert [each["dataset"] for each in written["extra_healthy_datasets"]] == ["Dataset906_Extra", "Dataset907_More"]
    (tmp_path / "difftumor.json").write_text(json.dumps({"extra_healthy_datasets": EXTRA}))
    assert len(setting_with(tmp_path, "Dataset906_Extra")) == 1
    assert len(setting_with(tmp_path, "Dataset907_More")) == 2


def run_here(capsys, *words):
    status = main(["add-healthy", "-d", "905", "--from", "906", *words])
    return status, "".join(capsys.readouterr())


def test_the_command_refuses_before_it_preprocesses(project, capsys):
    extra = project.add_extra(NAMES)
    shutil.rmtree(extra.preprocessed)
    assert "known to be free of tumours" in run_here(capsys)[1]
    assert "has no configuration '3d_lowres'" in run_here(capsys, "--confirmed-healthy", "-c", "3d_lowres")[1]
    assert "preprocess Dataset905_Test first" in run_here(capsys, "--confirmed-healthy", "--plans", "Other")[1]
    (project.preprocessed / "gt_segmentations" / "donor_1.nii.gz").touch()
    assert "Dataset905_Test uses too: donor_1" in run_here(capsys, "--confirmed-healthy")[1]
    (project.preprocessed / "gt_segmentations" / "donor_1.nii.gz").unlink()
    edit_json(extra.raw / "dataset.json", lambda content: content.update(labels={"background": 0, "lung": 1}))
    assert "labels that Dataset905_Test lacks: lung" in run_here(capsys, "--confirmed-healthy")[1]
    edit_json(extra.raw / "dataset.json", lambda content: content.update(labels=PLAIN))
    path = extra.raw / "labelsTr" / "donor_2.nii.gz"
    stored = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj) * 2, stored.affine), path)
    status, printed = run_here(capsys, "--confirmed-healthy")
    assert status == 1
    assert "voxels of a tumour label (2): donor_2" in printed
    assert not extra.preprocessed.exists()


def test_the_command_looks_at_hu_and_organs_before_it_preprocesses(project, capsys, caplog, monkeypatch):
    extra = project.add_extra(NAMES)
    shutil.rmtree(extra.preprocessed)
    monkeypatch.setattr(api, "preprocess_dataset", lambda *_, **__: None)
    path = extra.raw / "imagesTr" / "donor_2_0000.nii.gz"
    stored = nibabel.load(path)
    image_hu = np.asarray(stored.dataobj)
    nibabel.save(nibabel.Nifti1Image(image_hu + np.int16(1024), stored.affine), path)
    status, printed = run_here(capsys, "--confirmed-healthy")
    assert status == 1
    assert "donor_2_0000.nii.gz should be a CT in HU" in printed
    assert not extra.preprocessed.exists()
    organ = np.argwhere(np.asarray(nibabel.load(extra.raw / "labelsTr" / "donor_2.nii.gz").dataobj) == 1)
    for share, says in ((0.3, "30.0% of the organ in"), (0.05, "5.0% of the organ in")):
        changed = image_hu.copy()
        changed[tuple(organ[: round(share * len(organ))].T)] = -1000
        nibabel.save(nibabel.Nifti1Image(changed, stored.affine), path)
        assert says in run_here(capsys, "--confirmed-healthy")[1] + caplog.text


def test_the_command_keeps_what_is_there_and_refuses_other_plans(project, capsys):
    extra = project.add_extra(NAMES)
    status, printed = run_here(capsys, "--confirmed-healthy")
    assert status == 0
    assert "were already preprocessed" in printed
    assert '"dataset": "906"' in printed  # the setting has it by number
    plan(spacing=[1.0, 2.0, 2.0])(project, extra)
    status, printed = run_here(capsys, "--confirmed-healthy")
    assert status == 1
    assert "OutputExistsError" in printed
    assert "--overwrite" in printed


def preprocess_nothing(monkeypatch):
    """Count what is preprocessed in place of doing it; nnU-Net's functions are tested in the slow suite."""
    calls = []
    monkeypatch.setattr(api, "extract_fingerprint_dataset", lambda *_, **__: None)
    monkeypatch.setattr(api, "preprocess_dataset", lambda number, *_: calls.append(number))
    monkeypatch.setattr(transfer, "move_plans_between_datasets", lambda *_: None)
    return calls


def take_one_out(extra):
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (extra.raw / part / f"donor_3{ending}").unlink()


def lose_copied_labels(extra):
    shutil.rmtree(extra.preprocessed / "gt_segmentations")


def correct_a_label(extra):
    later = (extra.preprocessed / "gt_segmentations" / "donor_1.nii.gz").stat().st_mtime + 60
    os.utime(extra.raw / "labelsTr" / "donor_1.nii.gz", (later, later))


@pytest.mark.parametrize("change", [take_one_out, lose_copied_labels, correct_a_label])
def test_changed_raw_cases_are_preprocessed_again(project, capsys, monkeypatch, change):
    extra = project.add_extra(NAMES)
    calls = preprocess_nothing(monkeypatch)
    assert run_here(capsys, "--confirmed-healthy")[0] == 0
    assert calls == []
    change(extra)
    status, printed = run_here(capsys, "--confirmed-healthy")
    assert calls == [906]
    assert status == 1  # nothing was preprocessed here
    assert "did not preprocess every case" in printed


def test_labels_of_another_shape_are_named_before_anything_is_preprocessed(project, capsys, monkeypatch):
    extra = project.add_extra(NAMES)
    calls = preprocess_nothing(monkeypatch)
    path = extra.raw / "labelsTr" / "donor_2.nii.gz"
    stored = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj)[:, :, :-2], stored.affine), path)
    status, printed = run_here(capsys, "--confirmed-healthy")
    assert (status, calls) == (1, [])
    assert "1 label maps of Dataset906_Extra have another shape than their image: donor_2" in printed


@pytest.mark.slow
def test_from_raw_data_to_a_training_with_extra_cases(make_nnunet_project):
    project = make_nnunet_project(is_preprocessed=False)
    project.add_extra(NAMES, is_preprocessed=False)
    environment = {**project.environment(), "nnUNet_n_proc_DA": "1"}
    folder = Path(sys.executable).parent

    def run(*words, expected=0):
        done = subprocess.run(
            [str(folder / words[0]), *words[1:]],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    planning = ("-d", "905", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    run("nnUNetv2_plan_and_preprocess", *planning)
    project.shrink_plans()
    project.configure()
    adding = ("difftumor", "add-healthy", "-d", "905", "--from", "906", "--confirmed-healthy", "--workers", "1")
    printed = run(*adding, "--write")
    assert "3 cases of Dataset906_Extra are preprocessed" in printed
    assert "were already preprocessed" in run(*adding)
    settings = json.loads((project.preprocessed / "difftumor.json").read_text())
    assert settings["extra_healthy_datasets"] == [{"dataset": "Dataset906_Extra", "confirmed_healthy": True}]
    assert settings["num_epochs"] == 1
    train = ("nnUNetv2_train", "905", "3d_fullres", "0", "-tr", "nnUNetTrainerDiffTumor", "-device", "cpu")
    printed = run(*train)
    assert "Extra healthy cases of Dataset906_Extra: 3." in printed
    split = json.loads((project.output() / "difftumor_split.json").read_text())
    assert set(NAMES) <= set(split["healthy_train"])
    summary = json.loads((project.output() / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(split["val"])
    project.configure(num_epochs=2, extra_healthy_datasets=settings["extra_healthy_datasets"])
    assert "Epoch 1" in run(*train, "--c")
    project.configure(num_epochs=2)
    run(*train, "--c", expected=1)
