"""What synthetic tumours cost: measured on a small data set, summarised from pairs that one can compute by hand."""

import json
import os

import numpy as np
import pytest
import torch

from nnunet_difftumor.cli import main
from nnunet_difftumor.commands.training.benchmark_overhead import RESULT_NAME
from nnunet_difftumor.errors import ConfigurationError, DatasetError
from nnunet_difftumor.support.processes.environment import temporary_environment
from nnunet_difftumor.trainer.overhead import measurement
from nnunet_difftumor.trainer.overhead.measurement import measure_loaders, summarise_epochs, summarise_pairs
from nnunet_difftumor.trainer.overhead.surroundings import TrainingChoice, make_trainers, surroundings


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
    assert figures["workers"] == 0
    assert str(tmp_path) not in json.dumps(figures)
    printed = capsys.readouterr().out
    assert "patch 40 x 40 x 40, batch 2" in printed
    assert "ratio" in printed
    assert "waited for batches" in printed


def test_another_probability_is_taken_without_touching_the_settings(project, tmp_path, monkeypatch, capsys):
    settings = tmp_path / "mine.json"
    settings.write_text(json.dumps({"generator": os.path.relpath(project.generator, tmp_path), "seed": 3}))
    monkeypatch.setenv("nnUNet_difftumor", str(settings))
    assert main([*COMMAND, "--iterations", "0", "--injection-probability", "0"]) == 0
    assert "no sample was injected" in capsys.readouterr().out
    with surroundings():
        _, trainer = make_trainers(TrainingChoice(dataset="905", injection_probability=0.25), "cpu")
        resolved = trainer._resolve_config()  # type: ignore[attr-defined]
    assert (resolved.config.injection_probability, resolved.config.seed) == (0.25, 3)
    assert resolved.generator_folder(0).resolve() == project.generator.resolve()


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


def test_both_trainers_get_the_same_cases_and_the_same_batches_without_injection(project):
    project.configure(injection_probability=0.0)
    with surroundings():
        baseline, trainer = make_trainers(TrainingChoice(dataset="905"), "cpu")
        assert baseline.do_split() == trainer.do_split()
        batches = []
        for each in (baseline, trainer):
            train, _ = each.get_dataloaders()
            measurement._seed_everything(5)
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
    monkeypatch.setattr(measurement.time, "process_time", lambda: clock[0])
    measured = [measurement._measure_pair(pair, 4, 2, repeat) for repeat in range(3)]
    assert pair[0].drawn == pair[1].drawn
    assert len(set(pair[0].drawn)) == 12
    assert [each["trainer_s"] / each["baseline_s"] for each in measured] == pytest.approx([3.0, 3.0, 3.0])
    assert {(each["samples"], each["injected"], each["carrying"]) for each in measured} == {(8, 4, 8)}


def pair_of(*, baseline_s=10.0, trainer_s=20.0, injected=25):
    seconds = {"baseline_s": baseline_s, "trainer_s": trainer_s}
    return {"samples": 100, **seconds, "healthy": 50, "carrying": 30, "injected": injected}


def spread_of(median, lowest, highest):
    return {"median": median, "lowest": lowest, "highest": highest}


def test_figures_follow_from_the_pairs():
    costs = summarise_pairs([pair_of(), pair_of(trainer_s=40.0, injected=20)])
    assert costs["baseline_cpu_seconds_per_sample"] == spread_of(0.1, 0.1, 0.1)
    assert costs["trainer_cpu_seconds_per_sample"] == spread_of(pytest.approx(0.3), 0.2, 0.4)
    assert costs["ratio"] == spread_of(3.0, 2.0, 4.0)
    assert costs["cpu_seconds_per_injected_sample"] == spread_of((10 / 25 + 30 / 20) / 2, 10 / 25, 30 / 20)
    assert (costs["injected_share"], costs["carrying_share"]) == (45 / 200, 60 / 200)
    assert summarise_pairs([pair_of(injected=0)])["cpu_seconds_per_injected_sample"] is None


def test_figures_follow_from_the_epochs():
    costs = summarise_epochs(10, [(1.0, 1.0), (3.0, 1.0), (2.0, 2.0)])
    assert (costs["iterations"], costs["epochs"]) == (10, 3)
    assert costs["epoch_seconds"] == spread_of(4.0, 2.0, 4.0)
    assert costs["waited_seconds"] == spread_of(1.0, 1.0, 2.0)
    assert (costs["waited_share"], costs["step_seconds"]) == (0.4, 0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "0"], "--samples must be 1 or more, got 0"),
        (["-tr", "nnUNetTrainer"], "nnUNetTrainer has no synthetic tumours"),
        (["-tr", "nnUNetTrainerUnheard"], "has a trainer 'nnUNetTrainerUnheard'"),
        (["-p", "nnUNetOtherPlans"], "nnUNetOtherPlans.json is missing"),
        (["-c", "3d_other"], "no configuration '3d_other', but 3d_fullres"),
        (["-d", "77"], "Could not find a dataset with the ID 77"),
        (
            ["--injection-probability", "2"],
            "--injection-probability: injection_probability must be a number from 0 to 1, got 2",
        ),
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
    assert (figures["epoch"], figures["machine"]["device"]) == (None, None)
    assert figures["loader"]["ratio"]["median"] > 0


def test_missing_folders_are_told(monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with surroundings(), pytest.raises(ConfigurationError, match="nnUNet_preprocessed must be set"):
        make_trainers(TrainingChoice(dataset="905"), "cpu")


def test_variables_are_restored_even_after_an_error(monkeypatch):
    monkeypatch.setenv("DIFFTUMOR_TEST_A", "before")
    monkeypatch.delenv("DIFFTUMOR_TEST_B", raising=False)

    def fail():
        with temporary_environment(DIFFTUMOR_TEST_A="within", DIFFTUMOR_TEST_B="within"):
            assert os.environ["DIFFTUMOR_TEST_A"] == "within"
            assert os.environ["DIFFTUMOR_TEST_B"] == "within"
            raise DatasetError("an error")

    with pytest.raises(DatasetError):
        fail()
    assert os.environ["DIFFTUMOR_TEST_A"] == "before"
    assert "DIFFTUMOR_TEST_B" not in os.environ


def test_one_thread_is_used_and_given_back(project, monkeypatch):
    threads = torch.get_num_threads()
    seen = []
    original = measurement._measure_pair
    monkeypatch.setattr(
        measurement, "_measure_pair", lambda *words: seen.append(torch.get_num_threads()) or original(*words)
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
