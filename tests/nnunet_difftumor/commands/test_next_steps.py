"""Commands that are printed as the next ones run as they stand, in the shell that printed them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_difftumor.cases.extra.requirements import ExtraDataset, TargetDataset
from nnunet_difftumor.cases.splits import read_splits
from nnunet_difftumor.cli import _build_parser, main
from nnunet_difftumor.commands.dataset_arguments import find_dataset
from nnunet_difftumor.commands.training import next_steps
from nnunet_difftumor.trainer.discovery import ext_trainer_folder, find_trainer


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    """A planned and preprocessed data set with folds, and no settings."""
    project = make_nnunet_project(tumor_cases=6, healthy_cases=5)
    project.activate(monkeypatch)
    (project.preprocessed / "difftumor.json").unlink()
    assert main(["splits", "-d", "905", "--folds", "3"]) == 0
    return project


@pytest.fixture
def nnunet(monkeypatch):
    """Parse a command of nnU-Net by its own parser, strictly, and return what its entry point would run with."""
    from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as planning
    from nnunetv2.run import run_training

    called = []
    parse = argparse.ArgumentParser.parse_known_args

    def parse_all(*arguments, **named):
        options, rest = parse(*arguments, **named)
        assert not rest
        return options, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_all)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)
    for module, name in (
        (run_training, "run_training"),
        (planning, "preprocess"),
        (planning, "extract_fingerprints"),
        (planning, "plan_experiments"),
    ):
        monkeypatch.setattr(module, name, lambda *values, **named: called.append(values))
    entries = {
        "nnUNetv2_train": run_training.run_training_entry,
        "nnUNetv2_preprocess": planning.preprocess_entry,
        "nnUNetv2_plan_and_preprocess": planning.plan_and_preprocess_entry,
    }

    def call(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        called.clear()
        entries[sys.argv[0]]()
        return list(called)

    return call


def next_lines(printed):
    lines = printed.split("Next:\n")[1].splitlines()
    return [line.strip() for line in lines if line.startswith("  ")]


def options_of(*words):
    options = _build_parser([str(words[0])]).parse_args(list(map(str, words)))
    if words[0] in ("train-autoencoder", "train-diffusion"):
        find_dataset(options, needs_splits=options.fold is not None)
    return options


def autoencoder_options(*data, output="ae_fold0", more=()):
    return options_of("train-autoencoder", "-d", *data, "--output", output, "--preset", "nano", *more)


def diffusion_options(project, output, *, splits=None, fold=1):
    """Options of a finished training."""
    output.mkdir(parents=True)
    (output / "cases.json").write_text(json.dumps({"heldout": ["tumor_1"], "training": ["tumor_0"]}))
    held = () if fold is None else ("--splits", splits or project.preprocessed / "splits_final.json", "-f", fold)
    words = ("-d", project.raw, "--autoencoder", "ae", "--output", output, "--preset", "nano", *held)
    return options_of("train-diffusion", *words)


def test_a_user_who_types_what_is_printed_gets_to_stage_three(project, nnunet, tmp_path, capsys, monkeypatch):
    splits = project.preprocessed / "splits_final.json"
    runs = tmp_path / "my runs"
    first = ["-d", 905, "--output", runs / "ae_fold1", "-f", 1]
    assert main(["train-autoencoder", *map(str, first), "--preset", "nano", "--steps", "2", "--seed", "3"]) == 0
    (second,) = next_lines(capsys.readouterr().out)
    words = shlex.split(second)
    assert words[:2] == ["difftumor", "train-diffusion"]
    assert main([*words[1:], "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    generator = runs / "dm_fold1" / "generator"
    assert json.loads((runs / "dm_fold1" / "cases.json").read_text())["heldout"] == list(read_splits(splits)[1].val)

    (look,) = [line.removeprefix("Look at it: ") for line in printed.splitlines() if line.startswith("Look")]
    options = options_of(*shlex.split(look)[1:])
    held_out = json.loads((project.preprocessed / "healthy_holdout.json").read_text())["holdout"]
    assert options.ct.name.removesuffix("_0000.nii.gz") in held_out  # a healthy case that trains nothing
    assert options.ct.is_file()
    assert options.organ_mask.is_file()
    assert options.organ_label == 1
    assert Path(options.generator) == generator
    assert main(shlex.split(look)[1:]) == 0
    assert (options.output / "montage.png").is_file()

    write, small = next_lines(printed)
    subprocess.run(["bash", "-c", write], check=True)
    setting = json.loads((project.preprocessed / "difftumor.json").read_text())["generator"]
    assert "{fold}" in setting
    assert Path(setting.format(fold=1)) == generator
    assert main(shlex.split(small)[1:]) == 0
    preprocess, train = next_lines(capsys.readouterr().out)
    assert nnunet(preprocess)[0][:2] == ([905], "nnUNetPlansSmall")
    dataset, configuration, fold, trainer, plans = nnunet(train)[0][:5]
    assert (dataset, configuration, fold, plans) == ("905", "3d_fullres", "1", "nnUNetPlansSmall")
    assert find_trainer(trainer)
    assert (project.preprocessed / f"{plans}.json").is_file()


def test_stage_two_gets_what_was_chosen_for_stage_one(project, tmp_path):
    listed = tmp_path / "my cases.txt"
    listed.write_text("tumor_0")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "ct.nii.gz").symlink_to(project.raw / "imagesTr" / "tumor_1_0000.nii.gz")
    chosen = {"exclude_cases": listed, "workers": 2, "precision": "bf16", "seed": 5, "cache": tmp_path / "a cache"}
    more = [word for key, value in chosen.items() for word in (f"--{key.replace('_', '-')}", value)]
    output = tmp_path / "autoencoder"
    options = autoencoder_options(plain, project.raw, output=output, more=[*more, "--skip-bad", "--steps", "7"])
    (line,) = next_lines(next_steps.after_autoencoder(options))
    parsed = options_of(*shlex.split(line)[1:])
    assert {key: getattr(parsed, key) for key in chosen} == chosen
    assert parsed.skip_bad
    assert parsed.preset == "nano"
    assert parsed.data == [project.raw]  # stage two needs tumours
    assert parsed.autoencoder == output
    assert parsed.output == tmp_path / "autoencoder_dm"
    assert parsed.steps is None  # those of stage one say nothing about stage two


def test_the_next_folder_is_a_new_one(project, tmp_path):
    (tmp_path / "dm_fold0").mkdir()
    (line,) = next_lines(next_steps.after_autoencoder(autoencoder_options(project.raw, output=tmp_path / "ae_fold0")))
    assert options_of(*shlex.split(line)[1:]).output == tmp_path / "dm_fold0_2"


def test_no_command_is_printed_where_none_would_run(project, tmp_path):
    printed = next_steps.after_autoencoder(autoencoder_options(project.raw / "imagesTr", output=tmp_path / "my ae"))
    assert "Next:\n" not in printed
    assert f"--autoencoder '{tmp_path / 'my ae'}'" in printed


@pytest.mark.parametrize("is_planned", [True, False])
@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_way_to_stage_three_follows_the_machine_and_the_data(
    project, nnunet, tmp_path, monkeypatch, is_planned, has_gpu
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.delenv("nnUNet_extTrainer")
    if not is_planned:
        (project.preprocessed / "nnUNetPlans.json").unlink()
        (project.preprocessed / "nnUNetPlans_3d_fullres").rename(project.preprocessed / "elsewhere")
    lines = next_lines(next_steps.after_diffusion(diffusion_options(project, tmp_path / "dm")))[1:]
    if not is_planned:
        line = lines.pop(0)
        steps = nnunet(line)
        assert [step[0] for step in steps] == [[905]] * (3 if has_gpu else 2)  # the small plans preprocess themselves
    if not has_gpu:
        assert lines == ["difftumor small-plans -d 905 -f 1"]
        return
    assert lines[0] == f"export nnUNet_extTrainer={ext_trainer_folder()}"
    assert nnunet(lines[1])[0][:5] == ("905", "3d_fullres", "1", "nnUNetTrainerDiffTumor", "nnUNetPlans")


def test_settings_that_are_there_are_not_overwritten(project, tmp_path):
    (project.preprocessed / "difftumor.json").write_text('{"healthy_share": 0.25}')
    printed = next_steps.after_diffusion(diffusion_options(project, tmp_path / "dm"))
    assert "echo" not in printed
    assert (
        f'Its setting, for {project.preprocessed / "difftumor.json"}: {{"generator": "{tmp_path}/dm/generator"}}'
        in (printed)
    )


@pytest.mark.parametrize("fold", [None, 0])
def test_without_a_data_set_of_nnunet_the_setting_alone_is_printed(project, tmp_path, fold):
    copy = tmp_path / "splits.json"
    copy.write_bytes((project.preprocessed / "splits_final.json").read_bytes())
    printed = next_steps.after_diffusion(diffusion_options(project, tmp_path / "dm", splits=copy, fold=fold))
    assert "Next:\n" not in printed
    assert f'Next: {{"generator": "{tmp_path}/dm/generator"}}' in printed


def test_a_data_set_without_an_organ_has_nothing_to_look_at(project, tmp_path):
    content = json.loads((project.raw / "dataset.json").read_text())
    (project.raw / "dataset.json").write_text(json.dumps({**content, "labels": {"background": 0, "tumor": 2}}))
    printed = next_steps.after_diffusion(diffusion_options(project, tmp_path / "dm"))
    assert "Look at it" not in printed
    assert next_lines(printed)


def test_the_variable_of_the_trainer_is_printed_only_where_it_lacks(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/my trainers")
    export, train = next_steps.stage_three(7, "3d_fullres", 0)
    value = f"/my trainers{os.pathsep}{ext_trainer_folder()}"
    assert shlex.split(export) == ["export", f"nnUNet_extTrainer={value}"]
    monkeypatch.setenv("nnUNet_extTrainer", value)
    assert next_steps.stage_three(7, "3d_fullres", 0) == [train]


def test_the_command_for_an_extra_data_set_parses(tmp_path):
    target = TargetDataset(
        name="Dataset901_A",
        folder=tmp_path,
        plans={"plans_name": "my plans v2"},
        configuration="3d_fullres",
        dataset_json={},
        identifiers=(),
    )
    options = options_of(*shlex.split(ExtraDataset("Dataset802_B", target).command)[1:])
    assert (options.dataset, options.extra, options.plans) == ("Dataset901_A", "Dataset802_B", "my plans v2")
    assert options.confirmed_healthy


QUICK_SCHEDULE = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


@pytest.mark.slow
def test_the_commands_of_small_plans_train_on_a_cpu(project):
    (project.preprocessed / "difftumor.json").write_text(
        json.dumps({"generator": str(project.generator), **QUICK_SCHEDULE})
    )
    printed = project.run("difftumor", "small-plans", "-d", "905", "-f", "2")
    for line in next_lines(printed):
        project.run(*shlex.split(line))
    trained = project.root / "results" / project.dataset / "nnUNetTrainerDiffTumor__nnUNetPlansSmall__3d_fullres"
    assert (trained / "fold_2" / "checkpoint_final.pth").is_file()
