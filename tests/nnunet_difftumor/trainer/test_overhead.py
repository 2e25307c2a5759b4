"""What synthetic tumours cost: measured on a small data set, judged on figures that one can compute by hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import ConfigurationError, DatasetError
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.overhead import loaders as loaders_module
from nnunet_difftumor.trainer.overhead.epochs import Epoch, EpochCosts
from nnunet_difftumor.trainer.overhead.loaders import LoaderCosts, LoaderPair, Spread, measure_loaders
from nnunet_difftumor.trainer.overhead.run import RESULT_NAME
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, surroundings
from nnunet_difftumor.trainer.overhead.verdict import judge


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project()
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    monkeypatch.delenv("nnUNet_extTrainer")
    monkeypatch.delenv("nnUNet_difftumor", raising=False)
    return project


def nnunet_variables():
    return {key: value for key, value in os.environ.items() if key.startswith("nnUNet_")}


def files_below(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


COMMAND = ["benchmark-overhead", "-d", "905", "--samples", "2", "--repeats", "2", "--device", "cpu"]


def test_the_command_measures_both_trainers_and_leaves_nothing_behind(project, tmp_path, capsys):
    project.configure(injection_probability=1.0)
    before, environment = files_below(project.root), nnunet_variables()
    assert main([*COMMAND, "--iterations", "2", "--epochs", "1", "--output", str(tmp_path / "out")]) == 0
    written = set(files_below(project.root)) - set(before)
    assert {path.name for path in written} <= {"difftumor_cases.json"}  # what a training keeps of the cases too
    assert nnunet_variables() == environment
    assert not (project.preprocessed / "splits_final.json").exists()

    figures = json.loads((tmp_path / "out" / RESULT_NAME).read_text())
    loader = figures["loader"]
    assert len(loader["pairs"]) == 2
    assert all(pair["samples"] == 2 and pair["baseline_s"] > 0 for pair in loader["pairs"])
    assert loader["ratio"]["lowest"] > 1
    assert 0 < loader["injected_share"] <= loader["carrying_share"] <= 1
    assert loader["cpu_seconds_per_injected_sample"]["median"] > 0
    assert [epoch["iterations"] for epoch in figures["epoch"]] == [2, 2]
    assert all(epoch["epoch_seconds"]["median"] > epoch["waited_seconds"]["median"] > 0 for epoch in figures["epoch"])
    assert figures["verdict"]["lines"]
    assert figures["workers"] == 0
    assert str(tmp_path) not in json.dumps(figures)
    printed = capsys.readouterr().out
    assert "patch 40 x 40 x 40, batch 2" in printed
    assert "ratio" in printed
    assert "waited for batches" in printed


def test_another_probability_is_tried_without_touching_the_settings(project, tmp_path, monkeypatch, capsys):
    (tmp_path / "settings").mkdir()
    settings = tmp_path / "settings" / "mine.json"
    settings.write_text(json.dumps({"generator": os.path.relpath(project.generator, settings.parent), "seed": 3}))
    monkeypatch.setenv("nnUNet_difftumor", str(settings))
    assert main([*COMMAND, "--iterations", "0", "--injection-probability", "0"]) == 0
    assert "no sample was injected" in capsys.readouterr().out
    assert json.loads(settings.read_text())["seed"] == 3
    with surroundings(injection_probability=0.25):
        changed = json.loads(Path(os.environ[ENVIRONMENT_VARIABLE]).read_text())
    assert (changed["injection_probability"], changed["seed"]) == (0.25, 3)
    assert Path(changed["generator"]).resolve() == project.generator.resolve()
    assert os.environ[ENVIRONMENT_VARIABLE] == str(settings)


def test_extra_healthy_cases_are_in_both_trainings(project, capsys):
    project.add_extra(["donor_1", "donor_2"])
    project.configure(extra_healthy_datasets=[{"dataset": 906, "confirmed_healthy": True}])
    assert main([*COMMAND, "--iterations", "0"]) == 0
    with surroundings():
        baseline, trainer = make_trainers(TrainingChoice(dataset="905"), "cpu")
        (train, _), (same, _) = (each.get_tr_and_val_datasets() for each in (baseline, trainer))
    assert sorted(train.identifiers) == sorted(same.identifiers)
    assert {"donor_1", "donor_2"} <= set(train.identifiers)
    assert train.load_case("donor_1")[0].shape == same.load_case("donor_1")[0].shape


def test_a_named_generator_is_no_path_where_another_probability_is_tried(project, tmp_path, monkeypatch):
    settings = tmp_path / "mine.json"
    settings.write_text(json.dumps({"generator": "handcrafted"}))
    monkeypatch.setenv("nnUNet_difftumor", str(settings))
    with surroundings(injection_probability=0.25):
        content = json.loads(Path(os.environ[ENVIRONMENT_VARIABLE]).read_text())
    assert content == {"generator": "handcrafted", "injection_probability": 0.25}


def test_both_trainers_get_the_same_cases_and_the_same_batches_without_injection(project):
    project.configure(injection_probability=0.0)
    with surroundings():
        baseline, trainer = make_trainers(TrainingChoice(dataset="905"), "cpu")
        assert baseline.do_split() == trainer.do_split()
        batches = []
        for each in (baseline, trainer):
            train, _ = each.get_dataloaders()
            loaders_module._seed_everything(5)
            batches.append(next(train))
    assert list(batches[0]["keys"]) == list(batches[1]["keys"])
    assert torch.equal(batches[0]["data"], batches[1]["data"])


def test_each_pair_has_the_same_samples_and_the_first_one_is_not_counted(project, monkeypatch):
    class Loader:
        """Batches that cost what their random number says."""

        def __init__(self, factor):
            self.factor = factor
            self.drawn = []

        def __next__(self):
            self.drawn.append(np.random.random())  # noqa: NPY002
            clock[0] += self.factor * self.drawn[-1]
            return {"difftumor": {"counts": {"injected": 1, "carrying": 2}}} if self.factor > 1 else {}

    clock = [0.0]
    pair = Loader(1.0), Loader(3.0)
    monkeypatch.setattr(loaders_module.time, "process_time", lambda: clock[0])
    measured = [loaders_module._measure_pair(pair, 4, 2, repeat) for repeat in range(3)]
    assert pair[0].drawn == pair[1].drawn
    assert len(set(pair[0].drawn)) == 12
    assert [each.trainer_s / each.baseline_s for each in measured] == pytest.approx([3.0, 3.0, 3.0])
    assert {(each.samples, each.injected, each.carrying) for each in measured} == {(8, 4, 8)}


def costs(*, baseline=0.1, trainer=0.2, injected=25, batch_size=2):
    pair = LoaderPair(100, 100 * baseline, 100 * trainer, healthy=50, carrying=injected, injected=injected)
    return LoaderCosts(batch_size, (64, 64, 64), (pair, pair))


def epochs(*, step_s, waited_s, iterations=10):
    return EpochCosts(iterations, (Epoch(step_s * iterations, waited_s * iterations),) * 2)


def test_figures_follow_from_the_pairs():
    slow = LoaderPair(100, 10.0, 40.0, healthy=50, carrying=25, injected=20)
    both = LoaderCosts(2, (64, 64, 64), (costs().pairs[0], slow))
    assert (both.ratio.lowest, both.ratio.highest) == (2.0, 4.0)
    assert both.injected == Spread((10 / 25 + 30 / 20) / 2, 10 / 25, 30 / 20)
    assert both.injected_share == 45 / 200
    assert costs(injected=0).injected is None
    half = epochs(step_s=0.1, waited_s=0.1)
    assert (half.waited_share, half.step_s, half.epoch.median) == (0.5, pytest.approx(0.1), pytest.approx(2.0))


def test_workers_that_keep_up_need_no_change():
    verdict = judge(costs(), epochs(step_s=0.2, waited_s=0.0), epochs(step_s=0.2, waited_s=0.002), workers=12, cores=16)
    assert verdict.keeps_up
    assert verdict.workers_needed == 3  # 2 samples x 0.2 s x 1.2 in a step of 0.2 s
    assert verdict.lines == (
        "The workers keep up: the training loop waited for batches in 1% of its time (0% without synthetic tumours).",
    )


def test_steps_that_share_the_cpu_with_the_workers_are_told():
    fast, slow = epochs(step_s=0.2, waited_s=0.0), epochs(step_s=0.3, waited_s=0.0)
    assert judge(costs(), fast, slow, workers=1, cores=2).lines[1].startswith("But its steps took 50% longer")


def test_more_workers_are_advised_while_there_are_cores():
    verdict = judge(costs(), epochs(step_s=0.1, waited_s=0.0), epochs(step_s=0.1, waited_s=0.1), workers=3, cores=16)
    assert not verdict.keeps_up
    assert verdict.workers_needed == 5
    assert "export nnUNet_n_proc_DA=5 (now 3)" in verdict.lines[1]
    assert len(verdict.lines) == 2


def test_fewer_tumours_and_a_smaller_generator_are_advised_where_cores_are_few():
    slow = epochs(step_s=0.1, waited_s=0.1)
    verdict = judge(costs(), epochs(step_s=0.1, waited_s=0.0), slow, workers=4, cores=4)
    text = "\n".join(verdict.lines)
    assert "5 workers would be needed, and this machine has 4 cores." in text
    assert "about 67% of the present one for 4 workers" in text  # 4 x 0.1 / (1.2 x 2) = 0.167 = 0.1 + 0.667 x 0.1
    assert "an injected sample costs 0.40 CPU-seconds now" in text
    assert "Without synthetic tumours" not in text
    hopeless = judge(costs(), epochs(step_s=0.01, waited_s=0.1), epochs(step_s=0.01, waited_s=0.2), workers=4, cores=4)
    assert "Without synthetic tumours the workers would not keep up either" in "\n".join(hopeless.lines)
    assert "this alone will not do" in "\n".join(hopeless.lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "0"], "--samples must be 1 or more, got 0"),
        (["-tr", "nnUNetTrainer"], "nnUNetTrainer has no synthetic tumours"),
        (["-tr", "nnUNetTrainerUnheard"], "has a trainer 'nnUNetTrainerUnheard'"),
        (["-p", "nnUNetOtherPlans"], "nnUNetOtherPlans.json is missing"),
        (["-c", "3d_other"], "no configuration '3d_other', but 3d_fullres"),
        (["-d", "77"], "Could not find a dataset with the ID 77"),
        (["--injection-probability", "2"], "injection_probability must be from 0 to 1"),
    ],
)
def test_what_cannot_be_measured_is_told(project, capsys, words, message):
    assert main([*COMMAND, "--iterations", "0", *words]) == 1
    assert message in capsys.readouterr().err


def test_results_are_overwritten_on_request_only(project, tmp_path, capsys):
    (tmp_path / RESULT_NAME).write_text("mine")
    assert main([*COMMAND, "--iterations", "0", "--output", str(tmp_path)]) == 1
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / RESULT_NAME).read_text() == "mine"


def test_loaders_alone_need_no_gpu(project, tmp_path):
    words = ["benchmark-overhead", "-d", "905", "--samples", "1", "--repeats", "1", "--iterations", "0"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / RESULT_NAME).read_text())
    assert (figures["epoch"], figures["verdict"], figures["machine"]["device"]) == (None, None, None)
    assert figures["loader"]["ratio"]["median"] > 0


def test_missing_folders_are_told(monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with surroundings(), pytest.raises(ConfigurationError, match="nnUNet_preprocessed must be set"):
        make_trainers(TrainingChoice(dataset="905"), "cpu")


def test_variables_are_restored_even_after_an_error(monkeypatch):
    monkeypatch.setenv("DIFFTUMOR_TEST_A", "before")
    monkeypatch.delenv("DIFFTUMOR_TEST_B", raising=False)

    def fail():
        with temporary_environment(DIFFTUMOR_TEST_A=None, DIFFTUMOR_TEST_B="within"):
            assert "DIFFTUMOR_TEST_A" not in os.environ
            assert os.environ["DIFFTUMOR_TEST_B"] == "within"
            raise DatasetError("an error")

    with pytest.raises(DatasetError):
        fail()
    assert os.environ["DIFFTUMOR_TEST_A"] == "before"
    assert "DIFFTUMOR_TEST_B" not in os.environ


def test_one_thread_is_used_and_given_back(project, monkeypatch):
    threads = torch.get_num_threads()
    seen = []
    original = loaders_module._measure_pair
    monkeypatch.setattr(
        loaders_module, "_measure_pair", lambda *words: seen.append(torch.get_num_threads()) or original(*words)
    )
    torch.set_num_threads(2)
    try:
        with surroundings():
            measure_loaders(TrainingChoice(dataset="905"), samples=1, repeats=1)
        assert (set(seen), torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_background_workers_are_measured_and_stopped(project, tmp_path, monkeypatch):
    import multiprocessing

    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    project.configure(injection_probability=1.0)
    words = [*COMMAND, "--iterations", "5", "--epochs", "2", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    figures = json.loads((tmp_path / "out" / RESULT_NAME).read_text())
    assert figures["workers"] == 1
    assert all(epoch["waited_seconds"]["lowest"] > 0 for epoch in figures["epoch"])
    assert not multiprocessing.active_children()
