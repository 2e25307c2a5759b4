"""The trainer in this process: discovery, refusals, splits, schedule, counts over ranks."""

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist

from diffusion.generator_folder import hash_generator, read_generator_info
from nnunet_difftumor.cases.fold import FoldCases, LeakFindings
from nnunet_difftumor.cases.healthy import CaseGroups, choose_holdout
from nnunet_difftumor.cases.splits import Split
from nnunet_difftumor.errors import ConfigurationError, DatasetError, DiffTumorError, LeakError, OutputExistsError
from nnunet_difftumor.injection.log import InjectionLog, read_counts
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.sources import ConfigSource
from nnunet_difftumor.synthesis.tissue.generator_names import resolve_generator
from nnunet_difftumor.trainer import preparation
from nnunet_difftumor.trainer.discovery import ext_trainer_folder
from nnunet_difftumor.trainer.output_record import read_recorded_config, refuse_other_training, write_output_record
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project()
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    monkeypatch.delenv("nnUNet_difftumor", raising=False)
    return project


def make_trainer(project, fold=0, *, configuration="3d_fullres", continued=False):
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    plans["continue_training"] = continued
    return nnUNetTrainerDiffTumor(plans, configuration, fold, dataset_json, torch.device("cpu"))


def edit_dataset_json(project, **changes):
    path = project.preprocessed / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_signature_is_nnunets():
    assert list(inspect.signature(nnUNetTrainerDiffTumor.__init__).parameters) == [
        "self",
        "plans",
        "configuration",
        "fold",
        "dataset_json",
        "device",
    ]


DISCOVERY = """
import pickle, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
found = recursive_find_trainer_class_by_name("nnUNetTrainerDiffTumor")
assert found is recursive_find_trainer_class_by_name("nnUNetTrainerDiffTumor")
assert found.__module__ == "nnunet_difftumor.trainer.trainers"
assert pickle.loads(pickle.dumps(found)) is found
heavy = [name for name in ("diffusers", "monai", "accelerate", "diffusion") if name in sys.modules]
assert not heavy, heavy
"""


def test_nnunet_finds_the_trainer_and_it_pickles_without_heavy_imports(project):
    subprocess.run([sys.executable, "-c", DISCOVERY], env=project.environment(), check=True, timeout=120)


def test_the_folder_for_nnunet_is_no_package_and_holds_one_module():
    folder = ext_trainer_folder()
    assert [path.name for path in folder.glob("*.py")] == ["difftumor_trainers.py"]


def test_the_trainer_can_be_pickled_as_a_class():
    assert pickle.loads(pickle.dumps(nnUNetTrainerDiffTumor)) is nnUNetTrainerDiffTumor


def refuse_2d(project):
    project.edit_plans(patch_size=[40, 40])


def refuse_cascade(project):
    project.edit_plans(previous_stage="3d_fullres")


def refuse_channels(project):
    edit_dataset_json(project, channel_names={"0": "CT", "1": "PET"})


def refuse_normalisation(project):
    project.edit_plans(normalization_schemes=["ZScoreNormalization"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (refuse_2d, "2D configuration.*3d_fullres"),
        (refuse_cascade, "cascade.*3d_fullres"),
        (refuse_channels, r"2 input channels \(CT, PET\)"),
        (refuse_normalisation, "ZScoreNormalization.*CT"),
    ],
    ids=["2d", "cascade", "channels", "normalisation"],
)
def test_unsupported_plans_are_refused_by_name_at_training_start_only(project, change, message):
    change(project)
    trainer = make_trainer(project)  # nothing is refused before training starts
    with pytest.raises(ConfigurationError, match=message):
        trainer.on_train_start()


def test_a_missing_generator_is_told_before_anything_is_written(project):
    project.configure(generator="/nowhere/generator")
    with pytest.raises(ConfigurationError, match=r"/nowhere/generator.*does not exist"):
        make_trainer(project).on_train_start()
    assert not (project.output() / "difftumor_config.json").exists()


def test_a_generator_for_another_window_is_refused(project):
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = -820.0
    (project.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.raises(DiffTumorError, match=r"labelled tissue.*-820 HU.*-175 to 250 HU"):
        make_trainer(project).on_train_start()


def test_a_generator_that_knows_the_validation_cases_is_refused(
    project, tmp_path, generator_with_provenance, fingerprint_case
):
    import shutil

    from diffusion.generator.provenance import Provenance, save_provenance
    from nnunet_difftumor.ct.datasets import Case

    folder = tmp_path / "generator"
    shutil.copytree(generator_with_provenance, folder)
    seen = tuple(
        fingerprint_case(
            Case(name, project.raw / "imagesTr" / f"{name}_0000.nii.gz", project.raw / "labelsTr" / f"{name}.nii.gz"),
            [2],
        )
        for name in ("tumor_0", "tumor_1", "tumor_2")
    )
    save_provenance(folder / "provenance.json", Provenance(diffusion=seen, autoencoder=()))
    project.configure(generator=str(folder))
    with pytest.raises(LeakError, match="diffusion model"):
        make_trainer(project).on_train_start()
    trainer = make_trainer(project, fold="all")
    trainer._prepare_training()
    assert "no claim about validation" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize(("edge", "tumors", "offset_mm"), [([-2.5, 2.0], 0, -2.5), ("fold", 1, None)])
def test_the_edge_of_tumors_is_given_or_measured_on_the_fold(project, edge, tumors, offset_mm):
    project.configure(edge=edge)
    rules = make_trainer(project)._prepare_training().injectors[0].rules
    assert sum(each.tumors for each in rules.edges) >= tumors
    assert offset_mm is None or [each.offset_mm for each in rules.edges] == [offset_mm]
    project.configure()
    assert make_trainer(project, fold=1)._prepare_training().injectors[0].rules.edges == ()  # the generator's own


@pytest.mark.parametrize(("fewest", "tumors"), [(1, 1), (1000, 0)])
def test_a_builtin_generator_follows_the_annotated_cases_where_enough_can_be_measured(
    project, monkeypatch, fewest, tumors
):
    monkeypatch.setattr(preparation, "_FEWEST_EDGES", fewest)
    project.configure(generator="builtin:soft-tissue-tiny", target="hypodense")
    trainer = make_trainer(project)
    edges = trainer._prepare_training().injectors[0].rules.edges
    whose = "measured on the fold's" if tumors else "those of the generator's"
    assert f"Visible edges, {whose}" in Path(trainer.log_file).read_text()
    of_generator = read_generator_info(resolve_generator("builtin:soft-tissue-tiny")).edges
    assert (edges != of_generator and sum(each.tumors for each in edges) >= tumors) if tumors else edges == of_generator


def test_settings_come_from_the_environment_first(project, tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text('{"num_epochs": 7, "num_val_iterations_per_epoch": 2}')
    monkeypatch.setenv("nnUNet_difftumor", str(tmp_path / "mine.json"))
    trainer = make_trainer(project)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (7, 5, 2)
    assert trainer.lr_scheduler.max_steps == 7


def test_without_settings_the_schedule_is_nnunets(project):
    (project.preprocessed / "difftumor.json").unlink()
    trainer = make_trainer(project)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
        1000,
        250,
        50,
    )


def test_network_is_built_without_settings_or_data():
    names = list(inspect.signature(nnUNetTrainerDiffTumor.build_network_architecture).parameters)
    assert "build_network_architecture" not in vars(nnUNetTrainerDiffTumor)
    assert names[0] == "plans_manager"


def test_every_rank_and_call_gets_lists_of_its_own(project):
    trainer = make_trainer(project, fold="all")
    train, val = trainer.do_split()
    assert train is not val
    train.clear()
    assert trainer.do_split()[0]


def test_splits_file_with_healthy_validation_cases(project):
    cases = [f"tumor_{number}" for number in range(3)] + [f"healthy_{number}" for number in range(8)]
    splits = [{"train": cases[2:9], "val": [*cases[:2], *cases[9:]]}, {"train": cases[:9], "val": cases[9:]}]
    (project.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    train, val = make_trainer(project).do_split()
    assert val == ["tumor_0", "tumor_1"]
    held_out = choose_holdout(cases[3:], 0.2)
    assert train == sorted(set(cases[2:9]).difference(held_out))  # no healthy validation case
    with pytest.raises(DatasetError, match="difftumor splits"):
        make_trainer(project, fold=1).do_split()


def test_a_splits_file_whose_lists_overlap_is_named(project):
    cases = [f"tumor_{number}" for number in range(3)] + [f"healthy_{number}" for number in range(8)]
    (project.preprocessed / "splits_final.json").write_text(json.dumps([{"train": cases, "val": cases[:2]}]))
    with pytest.raises(DatasetError, match=r"Fold 0 of .*splits_final.json has 2 cases in both.*tumor_0, tumor_1"):
        make_trainer(project).do_split()


def test_no_healthy_case_to_inject_into_is_told(project):
    project.configure(healthy_cases=[])
    with pytest.raises(ConfigurationError, match="No healthy case"):
        make_trainer(project).on_train_start()


@pytest.fixture
def unannotated_project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project(tumor_cases=0, healthy_cases=6)
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    return project


def test_a_data_set_without_annotated_tumors_must_be_confirmed_healthy(unannotated_project):
    with pytest.raises(ConfigurationError, match="confirmed_healthy"):
        make_trainer(unannotated_project).on_train_start()


def test_sizes_that_cannot_be_measured_are_told_before_anything_is_recorded(unannotated_project):
    unannotated_project.configure(confirmed_healthy=True, size_classes="training_tumors")
    with pytest.raises(ConfigurationError, match='size_classes is "training_tumors"'):
        make_trainer(unannotated_project).on_train_start()
    assert not (unannotated_project.output() / "difftumor_config.json").exists()


def test_a_data_set_without_annotated_tumors_trains(unannotated_project):
    unannotated_project.configure(confirmed_healthy=True)
    trainer = make_trainer(unannotated_project)
    trainer.run_training()
    counts = read_counts(unannotated_project.output() / "injection_counts.csv")[0]
    assert counts["healthy_samples"] == counts["carrying"] == 10  # 5 iterations of 2 samples
    assert counts["injected"] >= 6
    assert "synthetic tumours only" in Path(trainer.log_file).read_text()
    assert (unannotated_project.output() / "checkpoint_final.pth").is_file()


def test_probability_zero_needs_no_generator(project):
    project.configure(generator=None, injection_probability=0)
    trainer = make_trainer(project)
    trainer._prepare_training()
    recorded = read_recorded_config(project.output())
    assert recorded is not None
    assert recorded.injection_probability == 0


def test_a_folder_with_other_settings_or_another_split_is_refused(project):
    project.configure(seed=5)
    make_trainer(project)._prepare_training()
    project.configure()
    make_trainer(project)._prepare_training()  # a start without any checkpoint is no training
    (project.output() / "checkpoint_best.pth").touch()
    make_trainer(project)._prepare_training()
    project.configure(seed=9)
    with pytest.raises(OutputExistsError, match="seed: 0 was used, now 9"):
        make_trainer(project)._prepare_training()
    continued = make_trainer(project, continued=True)
    continued.current_epoch = 1
    with pytest.raises(OutputExistsError, match="seed"):
        continued._prepare_training()
    project.configure(num_epochs=4)
    with pytest.raises(OutputExistsError, match="num_epochs"):
        make_trainer(project)._prepare_training()
    longer = make_trainer(project, continued=True)
    longer.current_epoch = 1
    longer._prepare_training()


def test_validation_uses_the_recorded_settings_and_refuses_another_split(project):
    trainer = make_trainer(project)
    trainer._prepare_training()
    expected = trainer.do_split()
    (project.preprocessed / "difftumor.json").unlink()
    assert make_trainer(project).do_split() == expected
    names = [f"tumor_{number}" for number in range(3)] + [f"healthy_{number}" for number in range(8)]
    other = [{"train": [name for name in names if name != "tumor_2"], "val": ["tumor_2"]}]
    (project.preprocessed / "splits_final.json").write_text(json.dumps(other))
    with pytest.raises(OutputExistsError, match="val: 2 cases"):
        make_trainer(project).do_split()


CASES = FoldCases(CaseGroups(("t0", "t1"), ("h0",), ()), (), Split(("h0", "t0"), ("t1",)), ())


def test_a_retrained_generator_in_the_same_place_is_noticed(tmp_path, generator_with_provenance):
    resolved = resolve_config({"background": 0, "liver": 1, "tumor": 2}, [ConfigSource("s", {}, tmp_path)])
    write_output_record(tmp_path, resolved, CASES, "a" * 64, LeakFindings((), ()))
    (tmp_path / "checkpoint_best.pth").touch()
    refuse_other_training(tmp_path, resolved, CASES, "a" * 64, is_continued=True)
    with pytest.raises(OutputExistsError, match=r"settings:\n  generator: its weights differ.*used\nRestore"):
        refuse_other_training(tmp_path, resolved, CASES, "b" * 64, is_continued=True)


def test_generator_hash_follows_weights_and_not_the_place(tmp_path, generator_with_provenance):
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(generator_with_provenance, copy)
    (copy / "README.md").write_text("other words")
    assert hash_generator(copy) == hash_generator(generator_with_provenance)
    weights = next(copy.rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert hash_generator(copy) != hash_generator(generator_with_provenance)


REPORT = {
    "counts": {"healthy_samples": 4, "carrying": 3, "injected": 2, "rejected_invisible": 1, "tumors_placed": 3},
    "records": [{"case": "h0"}, {"case": "h1"}],
    "pictures": [],
}


def test_log_sums_batches_and_continues_where_a_training_was_cut(tmp_path):
    log = InjectionLog(tmp_path, 3, first_epoch=0)
    for epoch in range(3):
        log.clear()
        log.add(REPORT)
        log.add(REPORT)
        (line,) = log.write_epoch(epoch)
    assert "healthy samples 8, tumours in their case 6: shown 4, out of view 0" in line
    assert "rejected: invisible 2" in line
    continued = InjectionLog(tmp_path, 3, first_epoch=2)
    continued.add({**REPORT, "counts": {"healthy_samples": 1, "rejected_no_room": 1, "carrying": 1}})
    continued.write_epoch(2)
    rows = read_counts(tmp_path / "injection_counts.csv")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["carrying"] for row in rows] == [6, 6, 1]
    assert (rows[2]["rejected_no_room"], rows[0]["rejected_no_room"]) == (1, 0)
    assert len((tmp_path / "difftumor_records.jsonl").read_text().splitlines()) == 3


def test_a_new_training_in_a_folder_starts_its_log_anew(tmp_path):
    for _ in range(2):
        log = InjectionLog(tmp_path, 1, first_epoch=0)
        log.add(REPORT)
        log.write_epoch(0)
    assert len(read_counts(tmp_path / "injection_counts.csv")) == 1
    assert len((tmp_path / "difftumor_records.jsonl").read_text().splitlines()) == 1


class RankedTrainer(nnUNetTrainerDiffTumor):
    """As much of the trainer as counting over ranks needs."""

    def __init__(self, folder, rank):
        self.is_ddp, self.local_rank, self.current_epoch = True, rank, 0
        self._prepared = SimpleNamespace(log=InjectionLog(folder, 16, first_epoch=0))
        self.lines = []

    def print_to_log_file(self, *lines, **options):
        self.lines += lines


def _count_on_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    trainer = RankedTrainer(folder, rank)
    trainer._prepared.log.add(REPORT)
    trainer._log_injections()
    assert len(trainer.lines) == (1 if rank == 0 else 0)
    dist.destroy_process_group()


def test_counts_are_summed_over_ranks(tmp_path):
    context = mp.get_context("fork")
    ranks = [context.Process(target=_count_on_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert read_counts(tmp_path / "injection_counts.csv")[0]["injected"] == 4
