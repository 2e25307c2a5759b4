"""Studies with matched arms: planning, dry run, resuming with a fake nnU-Net, errors."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml

from nnunet_difftumor.cases.known_cases import KnownCases, read_known_cases
from nnunet_difftumor.cases.splits import Split, read_holdout, read_splits
from nnunet_difftumor.cli import _build_parser, main
from nnunet_difftumor.errors import ConfigurationError, DiffTumorError, LeakError, OutputExistsError
from nnunet_difftumor.evaluation.comparison.inputs.plan import read_experiment
from nnunet_difftumor.evaluation.comparison.inputs.trained_models import refuse_training_cases
from nnunet_difftumor.generator_training.runs import check_output_folder
from nnunet_difftumor.study import comparing, on_ray
from nnunet_difftumor.study import runs as study_runs
from nnunet_difftumor.study.data_views import make_view, open_data
from nnunet_difftumor.study.exposure import fitting_epochs, shares_of
from nnunet_difftumor.study.plan import read_study
from nnunet_difftumor.study.plan_text import describe_plan, write_slurm_script
from nnunet_difftumor.study.planning import plan_runs
from nnunet_difftumor.study.runs import installed_versions, train_all
from nnunet_difftumor.support.processes.logged_command import run_logged
from nnunet_difftumor.support.processes.steps import RunError

GENERATOR = "generators/{fold}_of_{annotated}"
STUDY = {
    "dataset": 905,
    "device": "cpu",
    "folds": [0, 2],
    "seeds": [0, 1],
    "annotated": [0, 3, "all"],
    "schedule": {"epochs": 4, "iterations": 2, "val_iterations": 1},
    "arms": [
        {"name": "nnU-Net", "trainer": "stock", "healthy": False, "annotated": [3, "all"]},
        {"name": "nnU-Net, healthy too", "trainer": "stock", "healthy": True},
        {"name": "healthy only", "trainer": "healthy-only", "wall_clock_factor": 1.5},
        {"name": "copy-paste", "trainer": "copy-paste", "generator": GENERATOR, "annotated": [3, "all"]},
        {"name": "hand-crafted", "trainer": "hand-crafted", "generator": GENERATOR},
        {"name": "DiffTumor", "trainer": "difftumor", "steps": [2, 4], "generator": GENERATOR},
    ],
}

ARMS = [{key: value for key, value in arm.items() if key != "annotated"} for arm in STUDY["arms"]]


@pytest.fixture
def project(make_nnunet_project, monkeypatch, tmp_path):
    project = make_nnunet_project(tumor_cases=6, healthy_cases=5)
    project.activate(monkeypatch)
    monkeypatch.delenv("nnUNet_extTrainer")  # the study finds this package's trainers itself
    for fold in (0, 2):
        for annotated in (0, 3, "all"):
            folder = tmp_path / "generators" / f"{fold}_of_{annotated}"
            folder.mkdir(parents=True)
    return project


@pytest.fixture
def plan(project, tmp_path):
    """Plan a study with changes: gives the study, its data and its runs."""

    def make(output="out", **changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        study = read_study(path)
        data = open_data(study)
        return study, data, plan_runs(study, data, tmp_path / output)

    return make


class FakeNnunet:
    """Does what nnU-Net leaves behind, and is killed at some starts after its first checkpoint."""

    def __init__(self, killed_at=(), epochs=4, failing=()):
        self.starts, self.killed_at, self.epochs, self.failing = [], set(killed_at), epochs, failing
        self.generator_starts = []

    def __call__(self, words, environment, log):
        if words[1].startswith("train-"):
            return self.train_generator(words, log)
        generator = json.loads(Path(environment["nnUNet_difftumor"]).read_text()).get("generator", "")
        assert "generators/fold-" not in generator or Path(generator).is_dir()
        self.starts.append((environment["nnUNet_difftumor"], "--c" in words))
        log.write_text("a line\n")
        if any(name in environment["nnUNet_results"] for name in self.failing):
            return 1
        _, dataset, configuration, fold, _, trainer, _, plans = words[:8]
        model = Path(environment["nnUNet_results"]) / dataset / f"{trainer}__{plans}__{configuration}"
        folder = model / f"fold_{fold}"
        (folder / "validation").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint_best.pth").touch()
        if len(self.starts) in self.killed_at:
            raise KeyboardInterrupt
        split = read_splits(Path(environment["nnUNet_preprocessed"]) / dataset / "splits_final.json")[int(fold)]
        for name in (*(f"{case}.nii.gz" for case in split.val), "summary.json"):
            (folder / "validation" / name).touch()
        (folder / "checkpoint_final.pth").touch()
        now = "2026-01-01 10:00:00.0"
        lines = [f"{now}: Epoch {epoch} \n{now}: Epoch time: 2.5 s \n" for epoch in range(self.epochs)]
        (folder / "training_log_1.txt").write_text("".join(lines))
        (model / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
        return 0

    def train_generator(self, words, log):
        """Parse the words as the real command does, and leave its product."""
        options = _build_parser(words[1:]).parse_args(words[1:])
        self.generator_starts.append(options)
        log.write_text("a line\n")
        check_output_folder(options.output, resume=options.resume)
        (options.output / "checkpoints").mkdir(parents=True, exist_ok=True)
        if any(name == options.output.name for name in self.failing):
            return 1
        if len(self.generator_starts) in self.killed_at:
            raise KeyboardInterrupt
        if options.command == "train-autoencoder":
            product = options.output / "autoencoder" / "config.json"
        else:
            assert (options.autoencoder / "autoencoder" / "config.json").is_file()
            product = options.output / "generator" / "model_index.json"
        product.parent.mkdir()
        product.touch()
        return 0


def test_every_combination_is_planned_once(plan):
    _, _, runs = plan()
    per_fold_and_seed = 2 + 3 * 2 + 3 + 2 + 3 + 3  # by arm, and by number of annotated cases
    per_fold_and_seed += 3  # steps is a list of two
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * per_fold_and_seed
    assert len({run.settings_file for run in runs}) == len({run.fold_folder for run in runs}) == len(runs)


def test_all_arms_see_the_same_cases(plan):
    _, data, runs = plan()
    for fold in (0, 2):
        assert len({run.split.val for run in runs if run.fold == fold}) == 1
        tumors = {}
        for run in (run for run in runs if run.fold == fold):
            train = set(run.split.train)
            assert not train & ({*run.split.val} | {*data.folds[fold].holdout})
            tumors.setdefault(run.annotated, set()).add(frozenset(train & set(data.groups.tumor)))
            healthy = train & set(data.groups.healthy)
            assert healthy == (set(data.folds[fold].healthy_train) if run.healthy else set())
        assert {number: len(lists) for number, lists in tumors.items()} == {0: 1, 3: 1, "all": 1}
        sizes = [len(next(iter(tumors[number]))) for number in (0, 3, "all")]
        assert sizes == [0, 3, len(data.folds[fold].tumor_train)]
        assert next(iter(tumors[3])) < next(iter(tumors["all"]))


def test_trainers_of_this_package_settle_the_same_lists_in_a_view(plan, monkeypatch):
    """What a stock trainer reads as written must be what nnUNetTrainerDiffTumor makes of it."""
    import torch

    from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

    _, data, runs = plan()
    run = next(run for run in runs if run.arm.name == "DiffTumor, steps 2" and (run.annotated, run.fold) == (3, 2))
    make_view(data, run.view, data.lists_of_view(3, healthy=True))
    run.work_folder.mkdir(parents=True)
    run.settings_file.write_text(json.dumps(dict(run.settings)))
    for name, value in run.environment.items():
        monkeypatch.setenv(name, value)
    view = Path(run.environment["nnUNet_preprocessed"]) / data.name
    assert read_splits(view / "splits_final.json")[2] == run.split
    plans = json.loads((view / "nnUNetPlans.json").read_text())
    trainer = nnUNetTrainerDiffTumor(
        {**plans, "continue_training": False}, "3d_fullres", 2, dict(data.dataset_json), torch.device("cpu")
    )
    assert trainer.do_split() == (list(run.split.train), list(run.split.val))
    config = trainer._resolve_config().config
    assert (config.num_epochs, config.steps, config.seed) == (4, 2, run.seed)
    assert config.generator.endswith("generators/2_of_3")
    assert view.resolve() != data.cases.folder
    assert not (data.cases.folder / "splits_final.json").exists()


def test_other_data_sets_are_beside_a_view(plan, project):
    """Extra healthy cases are looked for there."""
    project.add_extra(["donor_0"])
    _, data, runs = plan()
    view = runs[0].root / "data" / "annotated-3"
    for _ in range(2):
        make_view(data, view, data.lists_of_view(3, healthy=True))
    beside = view / "Dataset906_Extra"
    assert beside.resolve() == (project.root / "preprocessed" / "Dataset906_Extra").resolve()
    assert (beside / "dataset.json").is_file()


ONE_ARM = {"arms": ARMS[1:2], "annotated": ["all"], "baseline": ARMS[1]["name"]}


def view_of(run):
    return Path(run.environment["nnUNet_preprocessed"]) / run.data.name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"folds": [0]}, {"folds": [0, 1]}),
        ({"folds": [0, 2]}, {"folds": [0, 1, 2]}),
        ({"folds": [0, 1]}, {"folds": [0], "seeds": [0, 1]}),
    ],
)
def test_folds_may_be_added_and_taken_away_at_any_time(plan, before, after):
    _, _, runs = plan(**ONE_ARM, **{"seeds": [0], **before})
    assert train_all(runs, run_command=FakeNnunet()) == {}
    lists = (view_of(runs[0]) / "splits_final.json").read_bytes()
    _, _, runs = plan(**ONE_ARM, **{"seeds": [0], **after})
    nnunet = FakeNnunet()
    assert train_all(runs, run_command=nnunet) == {}
    assert 0 < len(nnunet.starts) < len(runs)
    assert (view_of(runs[0]) / "splits_final.json").read_bytes() == lists
    for run in runs:
        assert read_splits(view_of(run) / "splits_final.json")[run.fold] == run.split


def test_lists_that_no_run_was_trained_with_are_replaced(plan):
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    path = view_of(runs[0]) / "splits_final.json"
    complete = read_splits(path)
    path.write_text(json.dumps([complete[0].to_json()] * len(complete)))
    _, _, runs = plan(**ONE_ARM, folds=[0, 1, 2], seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    assert read_splits(path) == complete


def test_lists_that_a_run_was_trained_with_are_never_replaced(plan):
    """The run's arm is no longer in the study, so its record is not looked at."""
    _, _, runs = plan(**ONE_ARM, folds=[2], seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    path = view_of(runs[0]) / "splits_final.json"
    other_arm = {"arms": [{**ARMS[1], "name": "later"}], "annotated": ["all"], "baseline": "later"}
    content = json.loads(path.read_text())
    content[2]["train"].pop()
    path.write_text(json.dumps(content))
    _, _, later = plan(**other_arm, folds=[0], seeds=[0])
    with pytest.raises(OutputExistsError, match=r"runs were trained with them: fold 2\. Restore the data set's splits"):
        later[0].run_once(FakeNnunet())
    assert json.loads(path.read_text()) == content
    shutil.rmtree(runs[0].work_folder)
    assert later[0].run_once(FakeNnunet())
    assert read_splits(path)[2] == runs[0].split


def test_the_holdout_that_a_run_was_trained_with_is_never_replaced(plan):
    _, data, runs = plan(**ONE_ARM, folds=[0], seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    path = view_of(runs[0]) / "healthy_holdout.json"
    assert read_holdout(path) == data.folds[0].holdout
    path.write_text('{"holdout": []}')
    _, data, runs = plan(**ONE_ARM, folds=[0], seeds=[0, 1])
    with pytest.raises(OutputExistsError, match="the held-out healthy cases"):
        runs[1].run_once(FakeNnunet())


def test_a_fold_that_cannot_be_trained_hinders_no_other(plan, project):
    """Neither where too few annotated cases are in it, nor where no tumour case validates."""
    tumor, healthy = [f"tumor_{n}" for n in range(6)], [f"healthy_{n}" for n in range(5)]
    folds = [
        {"train": [*tumor[1:], *healthy], "val": tumor[:1]},
        {"train": [tumor[0], tumor[5], *healthy], "val": tumor[1:5]},
        {"train": tumor, "val": healthy},
    ]
    (project.preprocessed / "splits_final.json").write_text(json.dumps(folds))
    _, _, runs = plan(**{**ONE_ARM, "annotated": [3]}, folds=[0], seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    assert read_splits(view_of(runs[0]) / "splits_final.json") == (runs[0].split, Split((), ()), Split((), ()))
    with pytest.raises(ConfigurationError, match="fold 1 has 2 training cases with annotated tumour"):
        plan(**{**ONE_ARM, "annotated": [3]}, folds=[0, 1])
    with pytest.raises(DiffTumorError, match="No validation case is left in this fold"):
        plan(**{**ONE_ARM, "annotated": [3]}, folds=[2])


def test_processes_that_start_together_make_one_view(plan, tmp_path, monkeypatch):
    _, data, _ = plan(**ONE_ARM)
    link = Path.symlink_to

    def slowly(self, target):
        time.sleep(0.01)
        link(self, target)

    monkeypatch.setattr(Path, "symlink_to", slowly)
    with ThreadPoolExecutor(4) as starts:
        lists = data.lists_of_view("all", healthy=True)
        made = [starts.submit(make_view, data, tmp_path / "view", lists) for _ in range(4)]
    assert [each.result() for each in made] == [None] * 4
    assert sorted(os.listdir(tmp_path / "view")) == [".lock", data.name]


def move_data(project, monkeypatch, folder):
    """Move nnUNet_preprocessed, and say so."""
    shutil.move(project.root / "preprocessed", folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))


def test_a_view_follows_data_that_moved_before_the_first_checkpoint(plan, project, monkeypatch, tmp_path):
    project.add_extra(["donor_0"])
    _, data, runs = plan(**ONE_ARM)
    with pytest.raises(RunError):
        runs[0].run_once(lambda words, environment, log: log.write_text("a line"))
    move_data(project, monkeypatch, tmp_path / "moved")
    _, data, runs = plan(**ONE_ARM)
    assert runs[0].run_once(FakeNnunet())
    assert (view_of(runs[0]) / "nnUNetPlans.json").resolve() == tmp_path / "moved" / data.name / "nnUNetPlans.json"
    beside = view_of(runs[0]).parent / "Dataset906_Extra"
    assert beside.resolve() == tmp_path / "moved" / "Dataset906_Extra"


def test_a_view_that_trained_does_not_change_its_data(plan, project, monkeypatch, tmp_path):
    _, _, runs = plan(**ONE_ARM)
    runs[0].run_once(FakeNnunet())
    move_data(project, monkeypatch, tmp_path / "moved to a name with spaces")
    _, _, runs = plan(**ONE_ARM)
    message = r"if the data were moved, link the old place to the new one \((ln -s [^)]*)\)"
    with pytest.raises(OutputExistsError, match=message) as caught:
        runs[1].run_once(FakeNnunet())
    words = shlex.split(re.search(message, str(caught.value))[1])
    assert words[2:] == [str(tmp_path / "moved to a name with spaces" / project.dataset), str(project.preprocessed)]
    (project.root / "preprocessed").symlink_to(tmp_path / "moved to a name with spaces")
    assert runs[1].run_once(FakeNnunet())


@pytest.mark.parametrize("has_splits", [True, False])
def test_a_study_keeps_what_is_known_of_patients_and_tumors(plan, project, has_splits):
    patients = {"tumor_0": "A", "tumor_1": "A", "healthy_0": "A"}
    known = KnownCases(("healthy_1",), patients)
    if has_splits:
        names = [f"tumor_{n}" for n in range(6)] + [f"healthy_{n}" for n in range(5)]
        rows = [f"{name},{patients.get(name, '')},{int(name == 'healthy_1')}" for name in names]
        (project.root / "cases.csv").write_text("\n".join(["case,patient,tumor", *rows]))
        columns = ["--group-column", "patient", "--tumor-column", "tumor"]
        assert main(["splits", "-d", "905", "--metadata", str(project.root / "cases.csv"), *columns]) == 0
    else:
        path = project.preprocessed / "healthy_holdout.json"
        path.write_text(json.dumps({"holdout": ["healthy_4"], **known.to_json()}))
    _, data, runs = plan(**{**ONE_ARM, "annotated": ["all"]}, folds=list(range(3)), seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    for run in runs:
        assert not {*map(known.patient_of, run.split.train)} & {*map(known.patient_of, run.split.val)}
        assert read_known_cases(view_of(run) / "healthy_holdout.json") == known
    assert data.groups.other == known.tumor


def test_a_file_in_place_of_a_link_is_refused(plan):
    _, _, runs = plan(**ONE_ARM)
    view_of(runs[0]).mkdir(parents=True)
    (view_of(runs[0]) / "nnUNetPlans.json").write_text("{}")
    with pytest.raises(OutputExistsError, match=r"nnUNetPlans.json should be a link to .*, but is none. Move it away"):
        runs[0].run_once(FakeNnunet())


def test_a_view_of_another_data_set_is_refused(plan, project):
    _, _, runs = plan(**ONE_ARM)
    view_of(runs[0]).parent.mkdir(parents=True)
    view_of(runs[0]).symlink_to(project.preprocessed)
    with pytest.raises(OutputExistsError, match="is a view of another data set than Dataset905_Test"):
        runs[0].run_once(FakeNnunet())
    assert not (project.preprocessed / "splits_final.json").exists()


def test_stock_training_takes_the_schedule_and_nothing_else(plan, monkeypatch):
    import torch

    from nnunet_difftumor.trainer.trainers import nnUNetTrainerScheduled

    _, data, runs = plan()
    run = next(run for run in runs if run.arm.name == "nnU-Net")
    assert run.trainer == "nnUNetTrainerScheduled"
    run.work_folder.mkdir(parents=True)
    run.settings_file.write_text(json.dumps(dict(run.settings)))
    monkeypatch.setenv("nnUNet_difftumor", str(run.settings_file))
    plans = json.loads((data.cases.folder / "nnUNetPlans.json").read_text())

    def make():
        trainer = nnUNetTrainerScheduled(
            {**plans, "continue_training": False}, "3d_fullres", 0, dict(data.dataset_json), torch.device("cpu")
        )
        trainer.initialize()
        return trainer

    trainer = make()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (4, 2, 1)
    monkeypatch.delenv("nnUNet_difftumor")
    trainer = make()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (1000, 250)


def test_the_own_schedule_of_nnunet_means_its_own_trainer(plan):
    _, _, runs = plan(schedule={})
    assert {run.trainer for run in runs if run.arm.trainer == "stock"} == {"nnUNetTrainer"}


def test_equal_wall_clock_is_a_second_control_and_says_so(plan):
    _, _, runs = plan()
    names = {run.arm.name: run.arm.epochs for run in runs}
    assert names["healthy only"] == 4
    assert names["healthy only (wall-clock control, epochs x 1.5)"] == 6


class CountingNnunet(FakeNnunet):
    """Trains for the epochs of the settings, and counts samples that it draws as nnU-Net does; or other ones."""

    def __init__(self, batch_size=2, draws=None, **options):
        super().__init__(**options)
        self.batch_size, self.draws, self.rng = batch_size, draws, np.random.default_rng(0)

    def __call__(self, words, environment, log):
        settings = json.loads(Path(environment["nnUNet_difftumor"]).read_text())
        self.epochs = settings["num_epochs"]
        status = super().__call__(words, environment, log)
        lists = read_splits(Path(environment["nnUNet_preprocessed"]) / words[1] / "splits_final.json")
        cases = lists[int(words[3])].train
        (folder,) = Path(environment["nnUNet_results"]).glob("*/*/fold_*")
        share = None if "Scheduled" in words[5] else settings.get("healthy_share")
        is_healthy = np.array([case.startswith("healthy") for case in cases])
        weights = np.where(is_healthy, share, 1 - share) if share else np.ones(len(cases))
        weights = weights / np.where(is_healthy, is_healthy.sum(), (~is_healthy).sum()) if share else weights
        samples = self.epochs * settings["num_iterations_per_epoch"] * self.batch_size
        drawn = (self.draws or self.rng.multinomial)(samples, weights / weights.sum())
        rows = [f"{case},{count}\n" for case, count in zip(cases, drawn, strict=True)]
        (folder / "samples_seen.csv").write_text("case,samples\n" + "".join(rows))
        return status


EQUAL = {
    "exposure": "equal",
    "seeds": [0],
    "folds": [0],
    "annotated": [3],
    "schedule": {"epochs": 60, "iterations": 50, "val_iterations": 1},
    "arms": [
        {"name": "nnU-Net", "trainer": "stock", "healthy": False},
        {"name": "nnU-Net, healthy too", "trainer": "stock", "healthy": True},
        {"name": "as drawn", "trainer": "healthy-only"},
        {"name": "half", "trainer": "healthy-only", "healthy_share": 0.5},
        {"name": "most", "trainer": "hand-crafted", "healthy_share": 0.75, "generator": GENERATOR},
    ],
}
LONG = {"name": "long", "trainer": "stock", "healthy": False, "length": "longest"}


def test_equal_exposure_gives_every_arm_the_same_annotated_samples(plan):
    """Healthy samples take time of their own: 4 healthy cases beside 3 annotated ones make the training 7/3 as long."""
    _, data, runs = plan(**EQUAL)
    assert len(data.folds[0].healthy_train) == 4
    epochs = {run.arm.name: run.epochs for run in runs}
    assert epochs == {"nnU-Net": 60, "nnU-Net, healthy too": 140, "as drawn": 140, "half": 120, "most": 240}
    assert [run.annotated_samples for run in runs] == [pytest.approx(60 * 50 * 2)] * 5
    assert [run.settings["num_epochs"] for run in runs] == list(epochs.values())
    assert [run.epochs_left() for run in runs] == list(epochs.values())
    _, _, as_ever = plan(**{**EQUAL, "exposure": "iterations"})
    assert {run.epochs for run in as_ever} == {60}
    assert [round(run.annotated_samples / 6000, 6) for run in as_ever] == [1, *[round(3 / 7, 6)] * 2, 0.5, 0.25]


def test_the_share_of_stock_arms_is_that_of_the_cases(plan):
    """healthy_share is a setting of trainers with healthy cases, which plain nnU-Net does not look at."""
    _, _, runs = plan(**{**EQUAL, "settings": {"healthy_share": 0.75}, "arms": EQUAL["arms"][:3]})
    assert [run.epochs for run in runs] == [60, 140, 240]


def test_epochs_depend_on_the_run_where_the_share_does(plan):
    _, _, runs = plan(**{**EQUAL, "annotated": [2, 4], "arms": [EQUAL["arms"][1]], "baseline": "nnU-Net, healthy too"})
    assert [(run.annotated, run.epochs) for run in runs] == [(2, 180), (4, 120)]


def test_a_run_without_annotated_cases_is_as_long_as_its_arm_or_the_study(plan):
    arms = [*EQUAL["arms"][1:4], {**EQUAL["arms"][3], "name": "healthy alone", "healthy_share": 1}]
    _, _, runs = plan(**{**EQUAL, "annotated": [0], "arms": arms, "baseline": "half"})
    assert [run.epochs for run in runs] == [60, 60, 120, 60]
    assert {run.annotated_samples for run in runs} == {0}
    assert {run.settings.get("healthy_share", 1.0) for run in runs} == {1.0}  # healthy cases are all there is to draw


def test_epochs_that_cannot_be_stretched_to_whole_ones_name_those_that_can(plan):
    schedule = {"epochs": 4, "iterations": 50}
    with pytest.raises(ConfigurationError, match=r"needs 2\.333 times the 4 epochs.* 9 whole .*epochs: 3 or 6, which"):
        plan(**{**EQUAL, "schedule": schedule})
    for epochs in (3, 6):
        _, _, runs = plan(**{**EQUAL, "schedule": {**schedule, "epochs": epochs}})
        assert max(abs(run.annotated_samples / (epochs * 100) - 1) for run in runs) < 0.01


@pytest.mark.parametrize("counts", [(1, 2), (3, 7), (5, 9), (99, 1)])
def test_whole_epochs_fit_to_one_percent_or_are_refused(counts):
    cases = [f"{kind}{number}" for kind, count in zip("th", counts, strict=True) for number in range(count)]
    shares = shares_of(cases, cases[: counts[0]], cases[counts[0] :], None)
    assert shares.annotated == pytest.approx(counts[0] / sum(counts))
    for epochs in range(1, 60):
        is_within = abs(shares.epochs(epochs) * shares.annotated / epochs - 1) < 0.01 + 1e-6
        assert shares.fits(epochs) == is_within
        around = fitting_epochs(epochs, [shares])
        assert all(shares.fits(each) for each in around)
        between = range(around[0] if len(around) == 2 else 0, around[-1])
        assert not any(shares.fits(each) for each in between[1:] if each != epochs)


def test_the_longest_other_run_says_how_long_a_long_one_is(plan):
    _, _, runs = plan(**{**EQUAL, "arms": [LONG, *EQUAL["arms"][:4]], "annotated": [2, 4], "baseline": "long"})
    epochs = {(run.arm.name, run.annotated): run.epochs for run in runs}
    assert (epochs["long", 2], epochs["long", 4]) == (180, 120)
    assert {run.trainer for run in runs if run.arm.name == "long"} == {"nnUNetTrainerScheduled"}
    arms = [LONG, {**EQUAL["arms"][0], "wall_clock_factor": 1.5}]
    _, _, runs = plan(**{**EQUAL, "exposure": "iterations", "schedule": {}, "arms": arms, "baseline": "long"})
    assert [(run.epochs, run.settings["num_epochs"]) for run in runs] == [(1500, 1500), (1000, 1000), (1500, 1500)]
    assert [run.trainer for run in runs] == ["nnUNetTrainerScheduled", "nnUNetTrainer", "nnUNetTrainerScheduled"]


def test_equal_exposure_is_found_in_what_was_seen(plan, capsys):
    _, _, runs = plan(**EQUAL)
    assert "6000 of 14000 samples annotated" in describe_plan(runs)
    assert train_all(runs, run_command=CountingNnunet()) == {}
    printed = describe_plan(runs)
    assert re.search(r"nnU-Net\.annotated.*: finished;.*6000 of 6000 samples annotated, 6000 seen\n", printed)
    (seen,) = re.findall(r"# half\..*6000 of 12000 samples annotated, (\d+) seen", printed)
    assert 0 < abs(int(seen) - 6000) <= 3 * math.sqrt(12000 / 4)


@pytest.mark.parametrize(("off", "is_refused"), [(164, False), (-164, False), (165, True), (-165, True)])
def test_other_samples_than_planned_are_an_error_of_the_run(plan, off, is_refused):
    """Of 12000 samples, 6000 +/- 164.3 are annotated."""
    _, data, runs = plan(**EQUAL)
    run = next(run for run in runs if run.arm.name == "half")

    def draws(samples, weights):
        assert weights.sum() == pytest.approx(1)
        is_annotated = np.array([case in data.groups.tumor for case in run.split.train])
        counts = np.zeros(len(weights), int)
        counts[is_annotated.argmax()], counts[is_annotated.argmin()] = 6000 + off, 6000 - off
        return counts

    if not is_refused:
        assert run.run_once(CountingNnunet(draws=draws))
        return
    with pytest.raises(RunError, match=rf"^half\..* seen {6000 + off} .*annotated cases instead of 6000 \(\+/- 164, "):
        run.run_once(CountingNnunet(draws=draws))
    assert run.state() != "finished"


def test_samples_that_were_not_counted_are_an_error_of_the_run(plan):
    _, _, runs = plan(**EQUAL)
    with pytest.raises(RunError, match=r"left no .*samples_seen\.csv, which says how many annotated samples"):
        runs[0].run_once(FakeNnunet(epochs=60))


def test_extra_healthy_cases_need_a_share_to_be_equally_exposed(plan, project):
    project.add_extra(["donor_0"])
    settings = {"extra_healthy_datasets": [{"dataset": "Dataset906_Extra", "confirmed_healthy": True}]}
    arms = [EQUAL["arms"][0], {**EQUAL["arms"][2], "settings": settings}]
    with pytest.raises(ConfigurationError, match=r"Write healthy_share \(e\.g\. 0\.5\) beside exposure: equal"):
        plan(**{**EQUAL, "arms": arms})
    _, _, runs = plan(**{**EQUAL, "exposure": "iterations", "arms": arms})
    assert [run.annotated_samples for run in runs] == [6000, None]
    arms[1]["healthy_share"] = 0.5
    _, _, runs = plan(**{**EQUAL, "arms": arms})
    assert [run.epochs for run in runs] == [60, 120]


@pytest.mark.parametrize("killed_at", [(1,), (2, 3), (1, 2, 5, 8)])
def test_a_killed_study_goes_on_and_trains_nothing_twice(plan, killed_at):
    _, _, runs = plan(seeds=[0], annotated=["all"], arms=[*ARMS[:2], *ARMS[3:]])
    nnunet = FakeNnunet(killed_at)
    for _ in killed_at:
        with pytest.raises(KeyboardInterrupt):
            train_all(runs, run_command=nnunet)
    assert train_all(runs, run_command=nnunet) == {}
    assert {run.state() for run in runs} == {"finished"}
    assert {file for file, _ in nnunet.starts} == {str(run.settings_file) for run in runs}
    assert len(nnunet.starts) == len(runs) + len(killed_at)  # each kill costs one more start
    for run in runs:
        starts = [is_continued for file, is_continued in nnunet.starts if file == str(run.settings_file)]
        assert starts == [False, *[True] * (len(starts) - 1)]
    assert train_all(runs, run_command=nnunet) == {}
    assert len(nnunet.starts) == len(runs) + len(killed_at)


def test_other_epochs_than_the_study_asks_for_are_an_error(plan):
    _, _, runs = plan()
    with pytest.raises(RunError, match="trained for 3 epochs instead of 4"):
        runs[0].run_once(FakeNnunet(epochs=3))
    assert runs[0].state() != "finished"


def test_a_run_that_fails_does_not_stop_the_others(plan):
    _, _, runs = plan(seeds=[0], annotated=["all"], arms=ARMS[:2])
    nnunet = FakeNnunet(failing=["nnU-Net.annotated-all.fold-0"])
    errors = train_all(runs, run_command=nnunet)
    assert list(errors) == ["nnU-Net.annotated-all.fold-0.seed-0"]
    assert "ended with status 1" in str(next(iter(errors.values())))
    assert len(nnunet.starts) == len(runs)


def test_a_changed_study_does_not_mix_with_what_was_trained(plan):
    _, _, runs = plan(seeds=[0])
    runs[0].run_once(FakeNnunet())
    _, _, changed = plan(seeds=[0], settings={"injection_probability": 0.9})
    with pytest.raises(OutputExistsError, match=r"settings: injection_probability: 1.0 was used, now 0.9"):
        changed[0].check()
    _, _, more = plan(seeds=[0, 1])
    more[0].check()


def test_a_study_does_not_go_on_with_other_versions_of_nnunet(plan, tmp_path, monkeypatch, capsys):
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0, 1])
    runs[0].run_once(FakeNnunet())
    recorded = json.loads((runs[0].work_folder / "versions.json").read_text())
    assert recorded == installed_versions()
    monkeypatch.setattr(study_runs, "version", lambda name: {**recorded, "batchgeneratorsv2": "0.3.4"}[name])
    words = ["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 1
    assert f"{recorded['batchgeneratorsv2']}: {runs[0].name}\n" in capsys.readouterr().err
    runs[1].run_once(FakeNnunet())
    assert main([*words[:-1], "--compare"]) == 1
    assert f"batchgeneratorsv2 0.3.4: {runs[1].name}\n" in capsys.readouterr().err


def test_two_processes_do_not_train_one_run(plan):
    _, _, runs = plan()

    def second(words, environment, log):
        with pytest.raises(RunError, match="another process"):
            runs[0].run_once(FakeNnunet())
        return FakeNnunet()(words, environment, log)

    assert runs[0].run_once(second)


def test_a_dry_run_prints_commands_and_time_and_writes_nothing(plan, tmp_path, capsys):
    _, _, runs = plan(seeds=[0], folds=[0], annotated=["all"], arms=ARMS[:3], seconds_per_epoch=60)
    words = ["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    commands = [line for line in printed.splitlines() if not line.startswith("#")]
    assert len(commands) == len(runs)
    assert all("nnUNetv2_train Dataset905_Test 3d_fullres 0 -tr nnUNetTrainer" in line for line in commands)
    assert "4 epochs of 60 s (from the study): 4.0 min" in printed
    assert "18.0 min of training" in printed  # 3 arms of 4 epochs and one of 6
    runs[0].run_once(FakeNnunet())
    printed = describe_plan(runs)
    assert f"# {runs[0].name}: finished" in printed
    assert "14.0 min of training" in printed


def test_the_time_is_measured_or_unknown(plan):
    _, _, runs = plan(seeds=[0], annotated=["all"], arms=ARMS[:2])
    assert "time unknown" in describe_plan(runs)
    runs[0].run_once(FakeNnunet())
    printed = describe_plan(runs)
    assert "4 epochs of 2.5 s (measured): 10 s" in printed
    assert "at least 10 s of training; unknown for 2 runs" in printed


@pytest.mark.parametrize(
    ("checkpoints", "left", "duration"),
    [
        ({}, 100, "4.2 d"),
        ({"best": 80}, 20, "20.0 h"),
        ({"latest": 50, "best": 80}, 50, "2.1 d"),
        ({"final": 100, "latest": 50}, 0, "0 s"),
        ({"latest": 99}, 1, "1.0 h"),
    ],
)
def test_the_time_of_an_interrupted_run_is_that_of_the_epochs_after_its_checkpoint(plan, checkpoints, left, duration):
    """nnU-Net goes on from the final, else the latest, else the best checkpoint; what came after it is trained anew."""
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0], schedule={"epochs": 100}, seconds_per_epoch=10)
    folder = runs[0].fold_folder
    folder.mkdir(parents=True)
    start = datetime(2026, 1, 1, 10).timestamp()

    def line(epoch, text):
        return f"{datetime.fromtimestamp(start + 3600 * epoch + 0.25)}: {text} \n"

    lines = [line(n, f"Epoch {n}") + line(n + 1, "Epoch time: 3600.0 s") for n in range(100 if left == 0 else 99)]
    (folder / "training_log_1.txt").write_text("".join(lines))
    for name, epochs in checkpoints.items():
        (folder / f"checkpoint_{name}.pth").touch()
        os.utime(folder / f"checkpoint_{name}.pth", (start + 3600 * epochs + 2,) * 2)
    printed = describe_plan(runs)
    assert f"#   {left} epochs of 3.6e+03 s (measured): {duration}" in printed
    assert f"# {duration} of training, " in printed
    assert (f"; {100 - left} of 100 are in the last checkpoint" in printed) == (left < 100)


def test_a_slurm_script_names_each_run_that_is_left(plan, tmp_path):
    _, _, runs = plan(seeds=[0], annotated=["all"], arms=ARMS[:2])
    runs[0].run_once(FakeNnunet())
    script = tmp_path / "array.sh"
    assert write_slurm_script(script, runs, overwrite=False) == len(runs) - 1
    text = script.read_text()
    assert f"#SBATCH --array=0-{len(runs) - 2}\n" in text
    names = []
    for task in range(len(runs) - 1):
        words = ["bash", "-c", text.replace("exec difftumor", "printf '%s\\n'")]
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        names.append(subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
    names = [printed.splitlines()[-1] for printed in names]
    assert names == [run.name for run in runs[1:]]
    with pytest.raises(OutputExistsError):
        write_slurm_script(script, runs, overwrite=False)


def test_slurm_takes_an_output_folder_of_any_name(plan, tmp_path):
    _, _, runs = plan("my study, 50%", **ONE_ARM, folds=[0], seeds=[0])
    write_slurm_script(tmp_path / "array.sh", runs, overwrite=False)
    (line,) = (line for line in (tmp_path / "array.sh").read_text().splitlines() if "--output=" in line)
    assert shlex.split(line)[1:] == [f"--output={tmp_path}/my study, 50%%/slurm/%A_%a.log"]
    assert (tmp_path / "my study, 50%" / "slurm").is_dir()


def test_slurm_is_given_the_run_of_only(plan, tmp_path, capsys):
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0, 1])
    words = ["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    words += ["--slurm", str(tmp_path / "array.sh")]
    assert main([*words, "--only", runs[1].name]) == 0
    text = (tmp_path / "array.sh").read_text()
    assert "#SBATCH --array=0-0\n" in text
    assert runs[1].name in text
    assert runs[0].name not in text
    assert "array.sh: 1 runs." in capsys.readouterr().out


def test_no_slurm_script_is_written_for_finished_runs(plan, tmp_path, capsys):
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    words = ["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    assert main([*words, "--slurm", str(tmp_path / "array.sh")]) == 0
    assert not (tmp_path / "array.sh").exists()
    printed = capsys.readouterr().out
    assert f"all its runs are finished. To compare them: difftumor {' '.join(words)}" in printed


def test_validation_cases_of_all_folds_are_compared(plan):
    _, data, runs = plan(annotated=["all"], arms=ARMS[:2], baseline="nnU-Net, healthy too")
    assert train_all(runs, run_command=FakeNnunet()) == {}
    calls = []

    def compare(path, output, *, overwrite):
        experiment = read_experiment(path)
        calls.append(experiment)
        output.mkdir(parents=True)
        (output / "report.html").touch()

    (report,) = compare_with(compare, runs)
    (experiment,) = calls
    assert experiment.arms == ("nnU-Net, healthy too", "nnU-Net")
    assert [model.seed for model in experiment.models_of("nnU-Net")] == [0, 1]
    (hospital,) = experiment.hospitals
    validated = {case for fold in (0, 2) for case in data.folds[fold].split.val}
    for folder in (hospital.labels, *(model.folder_of(hospital) for model in experiment.models)):
        assert {file.name.removesuffix(".nii.gz") for file in folder.iterdir()} == validated
        assert all(file.is_file() for file in folder.iterdir())
    assert compare_with(compare, runs) == (report,)
    assert len(calls) == 1


def compare_with(compare, runs):
    """Compare, with another command in place of `difftumor compare`."""
    with mock.patch.object(comparing, "compare", compare):
        return comparing.compare_all(runs)


def experiments_of(runs):
    """Compare without figures; gives the experiments for which there was something to do."""
    made = []

    def compare(path, output, *, overwrite):
        made.append(read_experiment(path))
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.html").touch()

    compare_with(compare, runs)
    return made


def test_what_is_finished_is_compared_and_what_is_missing_named(plan, capsys):
    """An arm's repetition is compared with all its folds or not at all, and joins when they are finished."""
    arms = [ARMS[0], ARMS[1], ARMS[3]]
    _, _, runs = plan(annotated=[3, "all"], arms=arms)
    missing = ["nnU-Net.annotated-3.fold-2.seed-1", "nnU-Net_healthy_too.annotated-3.fold-0.seed-0"]
    missing += ["nnU-Net_healthy_too.annotated-3.fold-0.seed-1", "copy-paste.annotated-3.fold-2.seed-0"]
    assert len(train_all(runs, run_command=FakeNnunet(failing=[*missing, "annotated-all"]))) == 4 + len(runs) / 2
    (experiment,) = experiments_of(runs)
    assert experiment.title == "study: 3 annotated cases"
    assert experiment.arms == ("nnU-Net", "copy-paste")
    assert [(model.arm, model.seed) for model in experiment.models] == [("nnU-Net", 0), ("copy-paste", 1)]
    assert sorted(experiment.notes) == [
        f"copy-paste, seed 0 is left out; runs that are not finished: {missing[3]}.",
        f"nnU-Net, healthy too, seed 0 is left out; runs that are not finished: {missing[1]}.",
        f"nnU-Net, healthy too, seed 1 is left out; runs that are not finished: {missing[2]}.",
        f"nnU-Net, seed 1 is left out; runs that are not finished: {missing[0]}.",
    ]
    printed = capsys.readouterr().out
    assert all(f"3 annotated cases: {note}" in printed for note in experiment.notes)
    assert "all annotated cases: nnU-Net, seed 0 is left out" in printed
    assert experiments_of(runs) == []
    train_all(runs, run_command=FakeNnunet(failing=[missing[2], "annotated-all"]))
    (experiment,) = experiments_of(runs)
    assert len(experiment.notes) == 1
    assert len(experiment.models) == 5
    assert train_all(runs, run_command=FakeNnunet()) == {}
    assert [(len(each.models), each.notes) for each in experiments_of(runs)] == [(6, ())] * 2


def test_a_baseline_that_is_left_out_is_named(plan):
    _, _, runs = plan(annotated=[3], seeds=[0], arms=ARMS[:2])
    train_all(runs, run_command=FakeNnunet(failing=["nnU-Net.annotated-3.fold-0"]))
    (experiment,) = experiments_of(runs)
    assert experiment.baseline == "nnU-Net, healthy too"
    assert experiment.notes[1] == "The baseline is nnU-Net, healthy too: nnU-Net, that of the study, is left out."


def test_compare_trains_nothing(plan, tmp_path, capsys, monkeypatch):
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0, 1])
    words = ["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out"), "--compare"]
    assert main(words) == 1
    assert "Nothing was compared: no arm has a repetition" in capsys.readouterr().err
    runs[0].run_once(FakeNnunet())
    compared = []
    monkeypatch.setattr(comparing, "compare", lambda path, *_, **__: compared.append(path))
    assert main(words) == 0
    assert len(compared) == 1
    assert runs[1].state() == "not started"
    printed = capsys.readouterr().out
    assert f"all annotated cases: nnU-Net, healthy too, seed 1 is left out; {'runs that are not finished: '}" in printed
    assert main([*words, "--only", runs[0].name]) == 1
    assert "--compare compares what is finished and does nothing else. Remove --only." in capsys.readouterr().err


def count_comparisons(runs):
    """Compare as far as needed, without figures; gives how often there was something to do."""
    return len(experiments_of(runs))


def retrain(runs, **_):
    shutil.rmtree(runs[0].work_folder)
    assert train_all(runs, run_command=FakeNnunet()) == {}


def change_metadata(folder, **_):
    (folder / "patients.csv").write_text("case,patient\ntumor_0,x\n")


def change_a_reference(project, **_):
    for path in project.preprocessed.glob("gt_segmentations/*"):
        shutil.copy(path, f"{path}.new")
        os.replace(f"{path}.new", path)


def replace_an_image(project, **_):
    for path in project.raw.glob("imagesTr/*_0000.nii.gz"):
        shutil.copy(path, f"{path}.new")
        os.replace(f"{path}.new", path)


def remove_the_report(runs, **_):
    next(runs[0].root.glob("compare/*/report/report.html")).unlink()


@pytest.mark.parametrize("with_hospitals", [False, True])
@pytest.mark.parametrize("change", [retrain, change_metadata, change_a_reference, remove_the_report])
def test_a_report_is_made_again_when_its_inputs_change(plan, project, tmp_path, change, with_hospitals):
    (tmp_path / "patients.csv").write_text("case,patient\n")
    labels = project.preprocessed / "gt_segmentations"
    hospitals = {"hospitals": [{"name": "X", "images": str(project.raw / "imagesTr"), "labels": str(labels)}]}
    settings = {"metadata": "patients.csv", **(hospitals if with_hospitals else {})}
    _, _, runs = plan(arms=ARMS[:2], annotated=["all"], folds=[0], seeds=[0], compare=settings)
    assert train_all(runs, run_command=FakeNnunet()) == {}
    assert count_comparisons(runs) == 1
    assert count_comparisons(runs) == 0
    change(runs=runs, project=project, folder=tmp_path)
    assert count_comparisons(runs) == 1
    assert count_comparisons(runs) == 0


def test_a_report_is_made_again_when_images_of_a_hospital_are_replaced(plan, project):
    labels = project.preprocessed / "gt_segmentations"
    hospitals = [{"name": "X", "images": str(project.raw / "imagesTr"), "labels": str(labels)}]
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0], compare={"hospitals": hospitals})
    assert train_all(runs, run_command=FakeNnunet()) == {}
    assert count_comparisons(runs) == 1
    replace_an_image(project)
    assert count_comparisons(runs) == 1
    assert count_comparisons(runs) == 0


def test_a_comparison_that_failed_is_made_again(plan):
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    assert count_comparisons(runs) == 1
    retrain(runs)

    def fail(path, output, *, overwrite):
        raise DiffTumorError("no space left")

    with pytest.raises(DiffTumorError, match="no space left"):
        compare_with(fail, runs)
    assert count_comparisons(runs) == 1


@pytest.mark.parametrize("key", ["prediction", "hospitals", "statistics", "metadata", "labels"])
def test_a_key_of_compare_without_a_value_is_as_if_it_were_not_there(plan, key):
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0], compare={key: None})
    assert train_all(runs, run_command=FakeNnunet()) == {}
    assert count_comparisons(runs) == 1


def test_the_training_cases_of_every_arm_are_known_to_the_leak_guard(plan, project, monkeypatch):
    """nnU-Net's own trainers leave no list, and the splits that trained them are in the view alone."""
    hospitals = [{"name": "X", "images": str(project.raw / "imagesTr"), "labels": str(project.raw / "labelsTr")}]
    _, _, runs = plan(arms=ARMS[:2], annotated=[3], seeds=[0], compare={"hospitals": hospitals})
    assert train_all(runs, run_command=FakeNnunet()) == {}
    experiments = []
    compare_with(lambda path, *_, **__: experiments.append(path), runs)
    experiment = read_experiment(experiments[0])
    monkeypatch.delenv("nnUNet_preprocessed")
    for model in experiment.models:
        with pytest.raises(LeakError, match=r"was trained on cases of these names: X: "):
            refuse_training_cases(model, experiment.hospitals, acknowledged=False)
        (note,) = refuse_training_cases(model, experiment.hospitals, acknowledged=True)
        mine = [run for run in runs if run.arm.name == model.arm]
        known = {case for run in mine for case in (*run.split.train, *run.split.val)}
        assert note.endswith(f"({len(known)}).")
        assert all((model.trained / f"fold_{fold}" / "checkpoint_final.pth").is_file() for fold in model.folds)
        assert not any((run.fold_folder / "difftumor_split.json").exists() for run in mine)


ARM_NAMES = ("nnU-Net", "own")
HOSPITAL_CASES = [
    ("a_training_case", "the arm 'nnU-Net' is trained on cases of these names: X: {} \\(1\\)"),
    ("a_case_of_the_generator", "the arm 'own' is trained on cases of these names: X: {} \\(1\\)"),
    ("a_case_that_one_fold_validates_on", "the arm 'nnU-Net' is trained on cases of these names: X: {} \\(1\\)"),
    ("another", None),
]


@pytest.mark.parametrize(("case", "message"), HOSPITAL_CASES)
def test_hospitals_with_training_cases_are_refused_before_training(plan, project, tmp_path, capsys, case, message):
    folds = [0, 2] if case == "a_case_that_one_fold_validates_on" else [0]
    arms = [ARMS[0], {"name": "own", "trainer": "difftumor", "generator": "study"}]
    changes = {"arms": arms, "folds": folds, "annotated": [2], "seeds": [0], "generators": {"preset": "nano"}}
    _, _, runs = plan(**changes)
    trains = {name: {each for run in runs for each in run.split.train if run.arm.name == name} for name in ARM_NAMES}
    validates = {each for run in runs for each in run.split.val}
    of_generators = {each for run in runs for stage in run.generator_stages for each in stage.split.train}
    name = {
        "a_training_case": min(trains["nnU-Net"] - validates),
        "a_case_of_the_generator": min(of_generators - trains["own"] - validates),
        "a_case_that_one_fold_validates_on": min(validates - trains["nnU-Net"]),
        "another": "elsewhere_1",
    }[case]
    (tmp_path / "labels").mkdir()
    shutil.copy(next(project.raw.glob("labelsTr/*")), tmp_path / "labels" / f"{name}.nii.gz")
    hospital = {"name": "X", "images": str(project.raw / "imagesTr"), "labels": "labels"}
    words = ["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out"), "--dry-run"]
    plan(**changes, compare={"hospitals": [hospital]})
    assert main(words) == (0 if message is None else 1)
    if message is not None:
        assert re.search(message.format(name), capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    plan(**changes, compare={"hospitals": [hospital], "acknowledge_identifier_matches": True})
    assert main(words) == 0


def test_a_hospital_without_labels_is_refused_before_training(plan, project, tmp_path, capsys):
    (tmp_path / "labels").mkdir()
    plan(compare={"hospitals": [{"name": "X", "images": str(project.raw / "imagesTr"), "labels": "labels"}]})
    assert main(["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out"), "--dry-run"]) == 1
    assert "holds no label map" in capsys.readouterr().err


def test_validation_predictions_are_scored_and_compared(plan, project):
    """No hospital is named: what every fold predicted of its validation cases goes through the real scorer."""
    settings = {"statistics": {"draws": 1000}, "prediction": {"processes": 1}}
    values = {"annotated": ["all"], "arms": ARMS[:2], "seeds": [0], "baseline": "nnU-Net, healthy too"}
    _, data, runs = plan(**values, compare=settings)
    assert train_all(runs, run_command=FakeNnunet()) == {}
    dice = {"nnU-Net": [], "nnU-Net, healthy too": []}
    for number, one in enumerate(runs):
        shutil.copy(project.raw / "dataset.json", one.model_folder)
        for case in one.split.val:
            image = nibabel.load(project.raw / "labelsTr" / f"{case}.nii.gz")
            reference = np.asarray(image.dataobj)
            made = np.where(np.roll(reference == 2, 1 + number, axis=0), 2, np.minimum(reference, 1))
            nibabel.save(nibabel.Nifti1Image(made, image.affine), one.fold_folder / "validation" / f"{case}.nii.gz")
            both = ((made == 2) & (reference == 2)).sum()
            dice[one.arm.name].append(2 * both / ((made == 2).sum() + (reference == 2).sum()))
    (report,) = comparing.compare_all(runs)
    arms = pd.read_csv(report.parent / "arms.csv").query("group_kind == 'all'").set_index(["measure", "arm"])
    validated = [case for fold in (0, 2) for case in data.folds[fold].split.val]
    for arm, values in dice.items():
        assert arms.loc[("dice", arm), "value"] == pytest.approx(np.mean(values))
        assert arms.loc[("dice", arm), "patients"] == len(values) == len(validated)
        assert arms.loc[("specificity", arm), "items"] == 0  # healthy cases train, none validates
    assert len({round(float(np.mean(values)), 6) for values in dice.values()}) == 2
    page = report.read_text(encoding="utf-8")
    assert "Specificity</td>" not in page
    assert "empty" not in re.sub(r"<style>.*?</style>", "", page.split('id="tumor_size"')[0], flags=re.DOTALL)


def test_hospitals_are_predicted_by_the_folds_together(plan, project):
    hospitals = [{"name": "X", "images": str(project.raw / "imagesTr"), "labels": str(project.raw / "labelsTr")}]
    changes = {"arms": ARMS[:2], "compare": {"hospitals": hospitals, "prediction": {"processes": 1}}}
    _, _, runs = plan(annotated=[3], seeds=[0], **changes)
    assert train_all(runs, run_command=FakeNnunet()) == {}
    calls = []
    compare_with(lambda path, *_, **__: calls.append(read_experiment(path)), runs)
    assert [model.folds for model in calls[0].models] == [(0, 2), (0, 2)]
    assert (calls[0].prediction.device, calls[0].prediction.processes) == ("cpu", 1)


def test_the_example_is_a_study():
    study = read_study(Path(__file__).resolve().parents[3] / "docs" / "how-to" / "study.yaml")
    assert study.annotated == (0, 10, "all")
    assert [arm.epochs for arm in study.arms if arm.wall_clock_factor] == [600]


def arm(**values):
    return {"arms": [{"name": "a", **values}]}


WRONG = [
    ({"fold": [0]}, "Unknown setting 'fold'.*Did you mean 'folds'"),
    ({"folds": "0"}, r"folds must be a list of different whole numbers of 0 or more, got '0'"),
    ({"folds": [7]}, "fold"),
    ({"seeds": [0, 0]}, "seeds must be a list of different"),
    ({"exposure": "even"}, "exposure must be one of iterations, equal, got 'even'"),
    ({"exposure": "equal"}, r"wall_clock_factor 1\.5 and exposure: equal both say how long"),
    (arm(trainer="healthy-only", length="long"), "length must be one of longest, got 'long'"),
    (arm(trainer="healthy-only", length="longest"), "length: longest needs another arm with annotated: 0"),
    (
        arm(trainer="healthy-only", length="longest", wall_clock_factor=2),
        "wall_clock_factor 2 and length: longest both say",
    ),
    (arm(trainer="nnUNetTrainerDA5", healthy=True, length="longest"), "exposure: equal and length: longest cannot be"),
    ({"annotated": [-1]}, "annotated must be a list"),
    ({"annotated": [50]}, "fewer than 50"),
    ({"schedule": {"epochs": 0}}, "epochs must be a whole number of 1 or more"),
    ({"schedule": {"epoch": 5}}, "Did you mean 'epochs'"),
    ({"baseline": "z"}, "baseline must be one of the arms"),
    ({"dataset": 999}, "999"),
    ({"configuration": "4d"}, "configuration"),
    ({"plans": "others"}, "others.json does not exist"),
    ({"settings": {"num_epochs": 3}}, "settings must not hold num_epochs"),
    ({"settings": {"stepz": 3}}, "Unknown setting 'stepz'"),
    ({"compare": {"models": []}}, "Unknown setting 'models'"),
    ({"compare": {"primary": "dicee"}}, "primary must be one of"),
    ({"compare": {"primary": "auroc"}}, "primary is auroc, which needs probabilities"),
    ({"compare": {"primary": "specificity"}}, "primary is specificity.*all 3 validation cases .* have a tumour"),
    ({"arms": []}, "arms must list at least one.*difftumor experiment --help"),
    (arm(trainer="difftumor", steps=[]), r"arms\[0\]: steps must be a value or a list of at least one, got \[\]"),
    (arm(trainer="difftumor", backbone=[]), "backbone must be a value or a list of at least one"),
    (arm(trainer="difftumour"), "finds no trainer difftumour"),
    (arm(trainer="diff-tumor"), "Did you mean 'difftumor'"),
    (arm(trainer="nnUNetTrainerNotThere"), "finds no trainer nnUNetTrainerNotThere"),
    (arm(trainer="nnUNetTrainerDA5", healthy=True), "cannot be matched with 4 epochs"),
    (arm(trainer="stock"), "healthy: true or healthy: false"),
    (arm(trainer="difftumor", healthy=False), "works on healthy cases"),
    (arm(trainer="stock", healthy=False), "leaves fold 0 without a training case"),
    (arm(trainer="copy-paste"), "no real tumour to copy"),
    (arm(trainer="difftumor", steps=0), "steps must be a whole number of 1 or more"),
    (arm(trainer="difftumor", steps="two"), "steps must be a whole number"),
    (arm(trainer="difftumor", backbone="vit"), "backbone must be one of"),
    (arm(trainer="nnUNetTrainerDA5", healthy=True, backbone="unet"), "backbone goes with the short names"),
    (arm(trainer="difftumor", generater="x"), "Did you mean 'generator'"),
    (arm(trainer="difftumor", generator="study"), r"Write for example generators: \{preset: base\}"),
    ({"generators": {"preset": "nano"}}, "but no arm uses them"),
    ({"generators": {}, **arm(trainer="difftumor", generator="study")}, "preset must be one of nano, .*, got None"),
    ({"generators": {"preset": "huge"}}, "preset must be one of nano, tiny, base, large"),
    ({"generators": {"preset": "nano", "steps": 3}}, "Unknown setting 'steps'"),
    ({"generators": {"preset": "nano", "diffusion_steps": 0}}, "diffusion_steps must be a whole number of 1 or more"),
    ({"generators": {"preset": "nano", "spacing_mm": [3, 2]}}, "spacing_mm must be the finest"),
    ({"generators": {"preset": "nano"}, **arm(trainer="difftumor", generator="study")}, "with 0 annotated cases"),
    ({"arms": [STUDY["arms"][1], {**STUDY["arms"][4], "settings": {"healthy_holdout": 0.5}}]}, "same healthy cases"),
    (
        {"arms": [{"name": "control", "trainer": "hand-crafted"}, STUDY["arms"][5]]},
        r"arm 'control': it names no generator.*Write generator: .*generators/\{fold\}_of_\{annotated\} into it",
    ),
]


@pytest.mark.parametrize(
    ("user", "control"),
    [
        ({"generator": GENERATOR}, {"generator": "builtin:soft-tissue-tiny"}),  # written, so meant
        ({}, {}),  # both have that of difftumor.json beside the plans
        ({"generator": GENERATOR, "annotated": [3]}, {"annotated": ["all"]}),  # never beside one another
    ],
)
def test_a_control_may_have_looks_of_its_own_only_if_they_are_written(plan, user, control):
    arms = [{"name": "user", "trainer": "difftumor", **user}, {"name": "control", "trainer": "hand-crafted", **control}]
    _, _, runs = plan(arms=arms, baseline="user")
    assert {run.arm.name for run in runs} == {"user", "control"}


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_errors_name_what_is_wrong(plan, changes, message):
    if "arms" in changes and changes["arms"] and "baseline" not in changes:
        changes = {**changes, "baseline": changes["arms"][0]["name"]}
    with pytest.raises(DiffTumorError, match=message):
        plan(**changes)


def test_a_primary_measure_that_can_be_measured_is_taken(plan, project):
    hospitals = [{"name": "X", "images": str(project.raw / "imagesTr"), "labels": str(project.raw / "labelsTr")}]
    with pytest.raises(ConfigurationError, match=r"write prediction: \{probabilities: true\}"):
        plan(compare={"primary": "auroc", "hospitals": hospitals})
    plan(compare={"primary": "auroc", "hospitals": hospitals, "prediction": {"probabilities": True}})
    plan(compare={"primary": "specificity", "hospitals": hospitals})


def test_specificity_is_measured_where_healthy_cases_validate(plan, project):
    """Without any annotated tumour, healthy cases are not moved to the training lists."""
    for path in [*project.preprocessed.glob("gt_segmentations/*"), *project.raw.glob("labelsTr/*")]:
        image = nibabel.load(path)
        without = np.minimum(np.asarray(image.dataobj), 1)
        nibabel.save(nibabel.Nifti1Image(without, image.affine), path)
    settings = {"confirmed_healthy": True}
    arms = [{"name": "hand-crafted", "trainer": "hand-crafted", "settings": settings}]
    plan(arms=arms, annotated=[0], baseline="hand-crafted", compare={"primary": "specificity"})


def test_folds_that_share_validation_cases_are_refused_before_training(plan, project):
    folds = [{"train": ["tumor_0", "tumor_1", "healthy_0"], "val": ["tumor_2"]}] * 3
    (project.preprocessed / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(ConfigurationError, match="the folds share validation cases"):
        plan(**ONE_ARM)


def test_a_generator_that_is_missing_stops_its_run_alone(plan, tmp_path):
    (tmp_path / "generators" / "0_of_3").rmdir()
    _, _, runs = plan(seeds=[0], annotated=[3], arms=ARMS[-1:])
    assert "not there yet: " in describe_plan(runs)
    with pytest.raises(ConfigurationError, match="0_of_3 does not exist"):
        runs[0].run_once(FakeNnunet())
    assert runs[0].state() == "not started"


def test_only_names_a_run_of_the_study(plan, tmp_path, capsys):
    plan(seeds=[0], annotated=["all"], folds=[0], arms=ARMS[:1])
    words = ["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    assert main([*words, "--dry-run", "--only", "nnU-Net.annotated-all.fold-0.seed-0"]) == 0
    assert main([*words, "--only", "x"]) == 1
    assert "has no run 'x'. Its runs: nnU-Net.annotated-all.fold-0.seed-0" in capsys.readouterr().err


GENERATORS = {
    "generators": {
        "preset": "nano",
        "autoencoder_steps": 5,
        "diffusion_steps": 7,
        "spacing_mm": [1, 4.5],
        "workers": 2,
        "early_only": True,
    },
    "annotated": [3, "all"],
    "arms": [
        {"name": "healthy only", "trainer": "healthy-only"},
        {"name": "DiffTumor", "trainer": "difftumor", "generator": "study"},
    ],
}


def test_generators_of_the_study_learn_from_the_cases_of_their_arm(plan, project, tmp_path):
    _, data, runs = plan(**GENERATORS)
    nnunet = FakeNnunet()
    assert train_all(runs, run_command=nnunet) == {}
    root = tmp_path / "out" / "generators"
    names = ["fold-0.autoencoder", "fold-0.annotated-3", "fold-2.autoencoder", "fold-2.annotated-3"]
    names += ["fold-0.annotated-all", "fold-2.annotated-all"]
    assert [options.output for options in nnunet.generator_starts] == [root / name for name in names]
    for options in nnunet.generator_starts:
        assert (options.data, options.preset, options.workers) == ([str(project.raw)], "nano", 2)
        split = read_splits(options.splits)[options.fold]
        assert split.val == data.folds[options.fold].split.val
        annotated = options.output.name.rsplit("-", 1)[1]
        number = 3 if annotated == "3" else "all"
        assert split == data.split(options.fold, number, healthy=True)
        if options.command == "train-diffusion":
            assert (options.steps, options.spacing_mm, options.tumor_label) == (7, [1.0, 4.5], "tumor")
            assert options.early_only
            assert options.autoencoder == root / f"fold-{options.fold}.autoencoder"
        else:
            assert options.steps == 5
    for run in runs:
        own = str(root / f"fold-{run.fold}.annotated-{run.annotated}" / "generator")
        is_user = run.arm.name == "DiffTumor"
        assert (run.settings.get("generator") == own) == is_user == bool(run.generator_stages)
    assert train_all(runs, run_command=nnunet) == {}
    assert len(nnunet.generator_starts) == len(names)


@pytest.mark.parametrize("killed_at", [(1,), (1, 2, 4)])
def test_a_killed_generator_goes_on_and_is_trained_once(plan, killed_at):
    _, _, runs = plan(**{**GENERATORS, "seeds": [0], "folds": [0], "annotated": [3]})
    nnunet = FakeNnunet()
    nnunet.killed_at = set(killed_at)
    for _ in killed_at:
        with pytest.raises(KeyboardInterrupt):
            runs[1].run_once(nnunet)
        nnunet.starts.clear()
    nnunet.killed_at = set()
    assert runs[1].run_once(nnunet)
    seen = [(options.command, options.resume) for options in nnunet.generator_starts]
    autoencoder = [resume for command, resume in seen if command == "train-autoencoder"]
    diffusion = [resume for command, resume in seen if command == "train-diffusion"]
    assert [*autoencoder, *diffusion] == [resume for _, resume in seen]
    for resumed in (autoencoder, diffusion):
        assert resumed == [False, *[True] * (len(resumed) - 1)]
    assert len(seen) == 2 + len([number for number in killed_at if number <= len(seen)])
    assert [stage.state() for stage in runs[1].generator_stages] == ["finished"] * 2


def test_a_generator_that_fails_stops_its_runs_alone(plan):
    _, _, runs = plan(**{**GENERATORS, "seeds": [0], "annotated": [3]})
    nnunet = FakeNnunet(failing=["fold-2.autoencoder"])
    errors = train_all(runs, run_command=nnunet)
    assert list(errors) == ["DiffTumor.annotated-3.fold-2.seed-0"]
    assert "difftumor train-autoencoder ended with status 1" in str(next(iter(errors.values())))


def test_a_generator_that_another_process_trains_is_waited_for(plan, capsys):
    _, _, runs = plan(**{**GENERATORS, "folds": [0], "annotated": [3]})
    first, second = (run for run in runs if run.arm.name == "DiffTumor")
    nnunet = FakeNnunet()
    stage = first.generator_stages[0]
    stage.work_folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(stage.work_folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"locked\n"
    thread = threading.Thread(target=stage.run_once, args=(nnunet,))
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    assert nnunet.generator_starts == []
    holder.communicate(b"go\n", timeout=30)
    thread.join(30)
    assert "fold-0.autoencoder: another process trains it at the moment; waiting" in capsys.readouterr().out
    assert len(nnunet.generator_starts) == 1
    assert first.run_once(nnunet)
    assert second.run_once(nnunet)
    assert len(nnunet.generator_starts) == 2


HOLD_LOCK = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_changed_generator_does_not_mix_with_what_was_trained(plan):
    one = {"seeds": [0], "folds": [2], "annotated": [3]}
    _, _, runs = plan(**{**GENERATORS, **one})
    runs[1].run_once(FakeNnunet())
    changed = {**GENERATORS["generators"], "diffusion_steps": 8}
    _, _, others = plan(**{**GENERATORS, **one, "generators": changed})
    others[1].generator_stages[0].check()
    with pytest.raises(OutputExistsError, match=r"'--steps', '7'.* was used, now .*'--steps', '8'"):
        others[1].generator_stages[1].check()
    working = {**GENERATORS["generators"], "workers": 5}
    _, _, more = plan(**{**GENERATORS, "folds": [0, 2], "seeds": [0, 1], "generators": working})
    for run in more:
        for stage in run.generator_stages:
            stage.check()


def test_finished_generators_may_be_copied_to_another_study(plan, tmp_path):
    one = {**GENERATORS, "seeds": [0], "folds": [0], "annotated": [3]}
    _, _, runs = plan(**one)
    runs[1].run_once(FakeNnunet())
    shutil.copytree(tmp_path / "out" / "generators", tmp_path / "other" / "generators")
    _, _, runs = plan("other", **one)
    nnunet = FakeNnunet()
    assert runs[1].run_once(nnunet)
    assert nnunet.generator_starts == []


@pytest.mark.parametrize("with_hospitals", [False, True])
@pytest.mark.parametrize("is_copied", [False, True])
def test_a_study_goes_on_where_its_folder_was_moved_to(plan, project, tmp_path, is_copied, with_hospitals):
    """Nothing is trained or compared again, nothing refused, and what was interrupted continues."""
    images, labels = project.raw / "imagesTr", project.preprocessed / "gt_segmentations"
    hospitals = {"hospitals": [{"name": "X", "images": str(images), "labels": str(labels)}]}
    targets = [{"organ_label": "liver", "tumor_label": "tumor", "generator": "study"}]
    arms = [*GENERATORS["arms"], {"name": "targets", "trainer": "difftumor", "settings": {"targets": targets}}]
    changes = {**GENERATORS, "arms": arms, "seeds": [0], "folds": [0], "compare": hospitals if with_hospitals else {}}
    _, _, runs = plan("first", **changes)
    assert len(train_all(runs, run_command=FakeNnunet(failing=[runs[-1].name]))) == 1
    runs[-1].fold_folder.mkdir(parents=True)
    (runs[-1].fold_folder / "checkpoint_latest.pth").touch()
    _, _, runs = plan("first", **changes)
    assert len(experiments_of(runs)) == 2
    if is_copied:
        subprocess.run(["cp", "-a", str(tmp_path / "first"), str(tmp_path / "second")], check=True)
        shutil.move(tmp_path / "first", tmp_path / "gone")
    else:
        shutil.move(tmp_path / "first", tmp_path / "second")
    _, _, runs = plan("second", **changes)
    for run in runs:
        run.check()
    nnunet = FakeNnunet()
    assert experiments_of(runs) == []
    assert train_all(runs, run_command=nnunet) == {}
    assert nnunet.generator_starts == []
    assert nnunet.starts == [(str(runs[-1].settings_file), True)]
    settings = json.loads(runs[-1].settings_file.read_text())
    generator = tmp_path / "second" / "generators" / "fold-0.annotated-all" / "generator"
    assert settings["targets"][0]["generator"] == str(generator)
    record = (runs[-1].work_folder / "run.json").read_text()
    assert "generators/fold-0.annotated-all/generator" in record
    assert str(tmp_path) not in record


def test_records_with_full_paths_in_the_folder_of_the_study_are_read(plan):
    _, _, runs = plan(**{**GENERATORS, "seeds": [0], "folds": [0], "annotated": [3]})
    assert train_all(runs, run_command=FakeNnunet()) == {}
    path = runs[1].work_folder / "run.json"
    record = json.loads(path.read_text())
    assert record["settings"]["generator"] == "generators/fold-0.annotated-3/generator"
    path.write_text(json.dumps({**record, "settings": dict(runs[1].settings)}))
    runs[1].check()
    record["settings"]["generator"] = "/elsewhere/generators/fold-0.annotated-3/generator"
    path.write_text(json.dumps(record))
    with pytest.raises(OutputExistsError, match="generator: '/elsewhere/"):
        runs[1].check()


def test_a_folder_that_the_study_did_not_train_is_refused(plan, tmp_path):
    _, _, runs = plan(**{**GENERATORS, "seeds": [0], "folds": [0], "annotated": [3]})
    (tmp_path / "out" / "generators" / "fold-0.autoencoder" / "autoencoder").mkdir(parents=True)
    nnunet = FakeNnunet()
    with pytest.raises(OutputExistsError, match="not of this study"):
        runs[1].run_once(nnunet)
    assert nnunet.generator_starts == nnunet.starts == []


def test_explicit_paths_to_the_same_generators_are_no_change(plan, tmp_path):
    path = str(tmp_path / "out" / "generators" / "fold-{fold}.annotated-{annotated}" / "generator")
    explicit = {**GENERATORS, "arms": [{**GENERATORS["arms"][1], "generator": path}]}
    del explicit["generators"]
    for fold in (0, 2):
        for annotated in (3, "all"):
            Path(path.format(fold=fold, annotated=annotated)).mkdir(parents=True)
    _, _, runs = plan(**explicit)
    assert all(run.generator_stages == () for run in runs)
    nnunet = FakeNnunet()
    assert train_all(runs, run_command=nnunet) == {}
    _, _, others = plan(**GENERATORS)
    others = [run for run in others if run.arm.name == "DiffTumor"]
    assert [run.to_json() for run in others] == [run.to_json() for run in runs]
    assert train_all(others, run_command=nnunet) == {}
    assert nnunet.generator_starts == []


def test_targets_may_name_the_generator_of_the_study(plan, tmp_path):
    labels = {"organ_label": "liver", "tumor_label": "tumor"}
    arms = [
        {"name": name, "trainer": "difftumor", "settings": {"targets": [{**labels, "generator": generator}]}}
        for name, generator in (("a", "study"), ("b", "elsewhere"))
    ]
    _, _, runs = plan(**{**GENERATORS, "arms": arms, "annotated": [3], "seeds": [0], "folds": [0]})
    own, other = (run.settings["targets"][0]["generator"] for run in runs)
    assert own == str(tmp_path / "out" / "generators" / "fold-0.annotated-3" / "generator")
    assert [len(run.generator_stages) for run in runs] == [2, 0]
    assert other == str(tmp_path / "elsewhere")
    assert runs[1].missing_generators == (other,)


def test_the_path_of_a_generator_may_hold_environment_variables(plan, tmp_path, monkeypatch):
    arm = {"name": "a", "trainer": "difftumor", "generator": "$GENERATORS/fold-{fold}"}
    values = {**ONE_ARM, "arms": [arm], "annotated": [3], "baseline": "a"}
    with pytest.raises(ConfigurationError, match=r"study.yaml: generator names an environment variable .* not set"):
        plan(**values)
    monkeypatch.setenv("GENERATORS", str(tmp_path / "elsewhere"))
    _, _, runs = plan(**values)
    assert {run.settings["generator"] for run in runs} == {
        str(tmp_path / "elsewhere" / f"fold-{run.fold}") for run in runs
    }


def test_a_dry_run_says_that_generators_come_first(plan, tmp_path):
    _, _, runs = plan(**{**GENERATORS, "seeds": [0], "folds": [0]})
    printed = describe_plan(runs)
    lines = [line for line in printed.splitlines() if not line.startswith("#")]
    assert [next(word for word in line.split() if word.startswith(("train-", "nnUNetv2"))) for line in lines] == [
        *("train-autoencoder", "train-diffusion", "train-diffusion"),
        *["nnUNetv2_train"] * 4,
    ]
    assert "# Generators: 3 trainings, 3 of them left. Each comes before the first run that needs it" in printed
    assert all(line.startswith("ACCELERATE_USE_CPU=1 difftumor") for line in lines[:3])
    assert not (tmp_path / "out").exists()
    runs[1].run_once(FakeNnunet())
    assert "# Generators: 3 trainings, 1 of them left" in describe_plan(runs)
    write_slurm_script(tmp_path / "array.sh", runs, overwrite=False)
    assert "others that need the same one wait" in (tmp_path / "array.sh").read_text()


def test_ray_that_is_missing_names_the_extra(plan, tmp_path, monkeypatch, capsys):
    plan(seeds=[0], annotated=["all"], folds=[0], arms=ARMS[:1])
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["experiment", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out"), "--ray"]
    assert main(words) == 1
    assert "pip install 'nnunet-difftumor[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words[:-1], "--ray", "--gpus-per-run", "-1"]) == 1
    assert "--gpus-per-run must be 0 or more, got -1" in capsys.readouterr().err


class FakeRay:
    """Runs tasks at once, in the order in which they are started."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self):
        self.results = []

    def remote(self, function):
        return self._Starter(self, function)

    class _Starter:
        def __init__(self, ray, function):
            self.ray, self.function = ray, function

        def options(self, **resources):
            assert resources == {"num_cpus": 1}
            return self

        def remote(self, *arguments):
            values = [self.ray.results[each] if isinstance(each, int) else each for each in arguments]
            self.ray.results.append(self.function(*values))
            return len(self.ray.results) - 1

    def wait(self, pending, num_returns):
        return pending[:num_returns], pending[num_returns:]

    def get(self, task):
        return self.results[task]


def test_ray_trains_each_generator_once_and_before_its_runs(plan, monkeypatch, capsys):
    _, _, runs = plan(**{**GENERATORS, "seeds": [0], "annotated": [3]})
    nnunet = FakeNnunet(failing=["fold-2.autoencoder"])

    def run(words, environment, log, *, is_told_to_end):
        assert not is_told_to_end  # a task has no terminal
        return nnunet(words, environment, log)

    monkeypatch.setattr(on_ray, "run_logged", run)
    errors = on_ray.RaySession(FakeRay(), {"num_cpus": 1}).train_all(runs)
    assert list(errors) == ["DiffTumor.annotated-3.fold-2.seed-0"]
    message = "what it is trained with failed: fold-2.autoencoder: difftumor train-autoencoder ended with status 1"
    assert message in str(errors["DiffTumor.annotated-3.fold-2.seed-0"])
    names = [options.output.name for options in nnunet.generator_starts]
    assert names == ["fold-0.autoencoder", "fold-0.annotated-3", "fold-2.autoencoder"]
    assert {run.name for run in runs if run.state() != "finished"} == set(errors)
    printed = capsys.readouterr().out
    assert f"{len(runs)} runs, 0 done before, {len(runs)} to train on Ray" in printed
    assert f"=== 1/8 fold-0.autoencoder: done, see {runs[1].root / 'generators' / 'fold-0.autoencoder'}" in printed


def test_ray_compares_as_one_task(plan, monkeypatch):
    _, _, runs = plan(**ONE_ARM, folds=[0], seeds=[0])
    assert train_all(runs, run_command=FakeNnunet()) == {}
    session = on_ray.RaySession(FakeRay(), {"num_cpus": 1})

    def fail(path, output, *, overwrite):
        raise DiffTumorError("no space left")

    monkeypatch.setattr(comparing, "compare", fail)
    with pytest.raises(DiffTumorError, match="no space left"):
        session.compare_all(runs)
    monkeypatch.setattr(comparing, "compare", lambda *_, **__: None)
    assert session.compare_all(runs) == (runs[0].root / "compare" / "annotated-all" / "report" / "report.html",)


def test_importing_the_command_does_not_import_ray():
    script = "import sys, nnunet_difftumor.study.on_ray; print('ray' in sys.modules)"
    words = [sys.executable, "-c", script]
    assert subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("is_told", [False, True])
def test_an_interrupted_command_is_told_to_end_where_no_terminal_does(is_told, tmp_path):
    """Silent as it is, the command is interrupted: nobody waits for its next line."""
    log, ended = tmp_path / "log", tmp_path / "ended"
    lines = ["import os, time", "print('up', flush=True)", f"while not os.path.exists({str(ended)!r}): time.sleep(0.1)"]

    def interrupt():
        while not log.is_file() or b"up" not in log.read_bytes():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        if is_told:
            ended.touch()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_logged([sys.executable, "-c", "\n".join(lines)], {}, log, is_told_to_end=is_told)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert time.monotonic() - start < 45  # without being told it would have been killed after 60 s
