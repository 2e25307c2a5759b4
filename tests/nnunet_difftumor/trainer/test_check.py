"""`difftumor check`: a planted fault each is told in one line with what to do; a sound set-up has nothing but ticks."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusion.generator.provenance import Provenance, save_provenance
from nnunet_difftumor.cli import main
from nnunet_difftumor.commands.training import check as command
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.trainer.check import environment, training
from nnunet_difftumor.trainer.check.findings import Check, fault, ok, run_checks
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

MARKS = {"✓": "ok", "!": "warning", "✗": "fault"}


@dataclass
class Outcome:
    """What the command printed: level and line by check, and its last line."""

    status: int
    found: dict[str, tuple[str, str]]
    last: str

    def of_level(self, level: str) -> list[str]:
        return [name for name, (each, _) in self.found.items() if each == level]


@dataclass
class Place:
    """Where faults are planted."""

    project: Any
    monkeypatch: pytest.MonkeyPatch
    folder: Path
    make: Callable[..., Any]
    fingerprint: Callable[..., Any]

    def take(self, **cases: Any) -> None:
        """Go on with another data set, without splits."""
        self.project = self.make(**cases)
        self.project.activate(self.monkeypatch)
        (self.project.root / "results").mkdir()

    def edit(self, file: str, change: Callable[[Any], Any]) -> None:
        path = self.project.preprocessed / file
        content = json.loads(path.read_text())
        path.write_text(json.dumps(change(content) or content))

    def copy_generator(self) -> Path:
        copy = self.folder / "generator"
        shutil.copytree(self.project.generator, copy)
        self.project.configure(generator=str(copy))
        return copy


@pytest.fixture
def place(make_nnunet_project, monkeypatch, tmp_path, fingerprint_case, capsys):
    place = Place(None, monkeypatch, tmp_path, make_nnunet_project, fingerprint_case)
    place.take()
    assert main(["splits", "-d", "905"]) == 0
    capsys.readouterr()
    gpu = SimpleNamespace(name="A GPU", total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=80e9))
    monkeypatch.setattr(environment, "free_memory_gb", lambda: 60.0)
    return place


@pytest.fixture
def look(capsys):
    def look(*words: str) -> Outcome:
        status = main(["check", *words])
        lines = [line for line in capsys.readouterr().out.splitlines() if line]
        found = [line.partition(": ") for line in lines if line[:2].strip() in MARKS]
        return Outcome(status, {name[2:]: (MARKS[name[0]], text) for name, _, text in found}, lines[-1])

    return look


def test_a_sound_set_up_has_ticks_alone_and_ends_with_the_command_that_trains(place, look):
    before = sorted(place.project.root.rglob("*"))
    outcome = look("-d", "905", "-f", "1")
    assert outcome.of_level("warning") + outcome.of_level("fault") == []
    assert len(outcome.found) == len(environment.ENVIRONMENT_CHECKS) + len(training.TRAINING_CHECKS)
    assert outcome.last == "Next: nnUNetv2_train 905 3d_fullres 1 -tr nnUNetTrainerDiffTumor"
    assert outcome.status == 0
    assert outcome.found["cases"][1].startswith("3 with annotated tumour, 8 healthy, 0 neither; 11 patients")
    assert outcome.found["fold"][1] == "2 annotated and 6 healthy cases train, 1 validate, 2 healthy held out"
    assert "preset nano, trained on 1 cases: untrained weights for tests" in outcome.found["generator"][1]
    assert "organ 'liver' (1), tumour 'tumor' (2)" in outcome.found["labels"][1]
    assert sorted(place.project.root.rglob("*")) == before  # nothing is written but what is known of cases


def test_the_environment_alone_is_looked_at_without_a_data_set(place, look):
    outcome = look("-f", "3", "-p", "mine")
    assert list(outcome.found) == [check.name for check in environment.ENVIRONMENT_CHECKS]
    assert (outcome.status, outcome.last) == (0, "Next: difftumor check -d ID -f 3 -p mine")


def no_raw(place):
    place.monkeypatch.delenv("nnUNet_raw")


def no_preprocessed(place):
    place.monkeypatch.delenv("nnUNet_preprocessed")


def empty_results(place):
    place.monkeypatch.setenv("nnUNet_results", "")


def folder_is_missing(place):
    place.monkeypatch.setenv("nnUNet_preprocessed", str(place.folder / "not mounted"))


def folder_is_not_writable(place):
    results = place.project.root / "results"
    place.monkeypatch.setattr(environment.os, "access", lambda path, _: path != results)


def no_ext_trainer(place):
    place.monkeypatch.delenv("nnUNet_extTrainer")


def ext_trainer_elsewhere(place):
    place.monkeypatch.setenv("nnUNet_extTrainer", str(place.folder))


def foreign_package(place):
    (place.folder / "diffusion").mkdir()
    (place.folder / "diffusion" / "__init__.py").write_text("raise RuntimeError('foreign code was run')\n")
    place.monkeypatch.syspath_prepend(str(place.folder))
    for name in [name for name in sys.modules if name == "diffusion" or name.startswith("diffusion.")]:
        place.monkeypatch.delitem(sys.modules, name)


def old_nnunet(place):
    version = metadata.version
    place.monkeypatch.setattr(metadata, "version", lambda name: "2.5.1" if name == "nnunetv2" else version(name))


def disk_is_full(place):
    place.monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0.3e9))


def workers_are_no_number(place):
    place.monkeypatch.setenv("nnUNet_n_proc_DA", "many")


def planned_in_2d(place):
    place.project.edit_plans(patch_size=[40, 40])


def never_preprocessed(place):
    shutil.rmtree(place.project.preprocessed)


def planned_only(place):
    shutil.rmtree(place.project.preprocessed / "nnUNetPlans_3d_fullres")


def preprocessing_interrupted(place):
    (place.project.preprocessed / "nnUNetPlans_3d_fullres" / "healthy_3.pkl").unlink()


def case_not_preprocessed(place):
    for path in (place.project.preprocessed / "nnUNetPlans_3d_fullres").glob("healthy_3*"):
        path.unlink()


def settings_broken(place):
    (place.project.preprocessed / "difftumor.json").write_text('{"seed": 1')


def setting_unknown(place):
    place.project.configure(injektion_probability=0.5)


def setting_out_of_range(place):
    place.project.configure(injection_probability=1.5)


def label_unknown(place):
    place.project.configure(tumor_label="lesion")


def region_hides_the_tumor(place):
    regions = {"labels": {"background": 0, "all": [1, 2]}, "regions_class_order": [1]}
    place.edit("dataset.json", lambda content: {**content, **regions})
    place.project.configure(organ_label=1, tumor_label=2)


def label_file_missing(place):
    (place.project.preprocessed / "gt_segmentations" / "healthy_3.nii.gz").unlink()


def no_annotated_case(place):
    place.take(tumor_cases=0)


def no_healthy_case(place):
    place.take(healthy_cases=0)


def old_splits(place):
    tumor_only = [{"train": ["tumor_1", "tumor_2"], "val": ["tumor_0"]}]
    place.edit("splits_final.json", lambda _: tumor_only)


def splits_of_other_cases(place):
    place.edit("splits_final.json", lambda folds: [{**fold, "val": ["patient_7"]} for fold in folds])


def one_patient_and_no_splits(place):
    place.take(tumor_cases=1)


def no_generator_there(place):
    place.project.configure(generator="/nowhere/dm_fold{fold}")


def generator_lacks_a_file(place):
    (place.copy_generator() / "denoiser" / "diffusion_pytorch_model.safetensors").unlink()


def generator_cut_off(place):
    weights = place.copy_generator() / "denoiser" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def plant_leak(place, name_of):
    folds = json.loads((place.project.preprocessed / "splits_final.json").read_text())
    seen = []
    for name in folds[0]["val"]:
        files = (
            place.project.raw / "imagesTr" / f"{name}_0000.nii.gz",
            place.project.raw / "labelsTr" / f"{name}.nii.gz",
        )
        seen.append(place.fingerprint(Case(name_of(name), *files), [2]))
    save_provenance(place.copy_generator() / "provenance.json", Provenance(diffusion=tuple(seen), autoencoder=()))


def generator_of_another_fold(place):
    plant_leak(place, lambda name: name)


def generator_of_renamed_cases(place):
    plant_leak(place, lambda name: f"renamed_{name}")


def generator_of_another_window(place):
    def set_lung(plans):
        plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = -820.0

    place.edit("nnUNetPlans.json", set_lung)


def output_of_another_training(place):
    trainer = place.project.make_trainer(nnUNetTrainerDiffTumor)
    trainer._prepare_training()
    (place.project.output() / "checkpoint_latest.pth").touch()
    place.project.configure(seed=7)


FAULTS = {
    "packages": [(foreign_package, "diffusion.*another distribution.*pip install --force-reinstall")],
    "versions": [(old_nnunet, r"nnunetv2 2\.5\.1 \(>=2\.8 is needed\): pip install --upgrade 'nnunetv2>=2\.8'$")],
    "nnUNet_raw": [(no_raw, "not set: export nnUNet_raw=")],
    "nnUNet_preprocessed": [
        (no_preprocessed, "not set: export nnUNet_preprocessed="),
        (folder_is_missing, "not mounted is no folder.*mkdir -p '.*not mounted'"),
    ],
    "nnUNet_results": [
        (empty_results, "not set: export nnUNet_results="),
        (folder_is_not_writable, "cannot be written to: chmod"),
    ],
    "nnUNet_extTrainer": [
        (no_ext_trainer, r"not set.*export nnUNet_extTrainer=\$\(difftumor ext-trainer\)"),
        (ext_trainer_elsewhere, r"does not hold.*export nnUNet_extTrainer=\$\(difftumor ext-trainer\)"),
    ],
    "disk": [(disk_is_full, r"0\.3 GB free in nnUNet_results.*du -sh")],
    "workers": [(workers_are_no_number, "whole number, got 'many': export nnUNet_n_proc_DA=8")],
    "plans": [
        (planned_in_2d, "2D configuration '3d_fullres'.*train 3d_fullres"),
        (never_preprocessed, "is missing. Run nnUNetv2_plan_and_preprocess -d 905 -c 3d_fullres"),
    ],
    "preprocessed": [
        (planned_only, "no preprocessed case: nnUNetv2_preprocess -d 905 -plans_name nnUNetPlans -c 3d_fullres$"),
        (preprocessing_interrupted, "Interrupted at healthy_3. Start it again: nnUNetv2_preprocess -d 905 "),
        (case_not_preprocessed, r"1 of 11 cases.*not preprocessed \(healthy_3\): nnUNetv2_preprocess -d 905 "),
    ],
    "settings": [
        (settings_broken, r"difftumor\.json is no valid JSON"),
        (setting_unknown, "Unknown setting 'injektion_probability'.*Did you mean 'injection_probability'"),
        (setting_out_of_range, "injection_probability.*from 0 to 1.*1.5"),
        (label_unknown, "tumor_label.*'lesion'.*liver"),
    ],
    "labels": [(region_hides_the_tumor, "None of the regions.*Add a region")],
    "cases": [
        (label_file_missing, "1 cases have no label file: healthy_3.*nnUNetv2_plan_and_preprocess again"),
        (no_annotated_case, "No case of this data set has a voxel of the tumour label 2.*confirmed_healthy"),
    ],
    "fold": [
        (no_healthy_case, "No healthy case is among the 2 training cases.*difftumor add-healthy -d 905"),
        (
            old_splits,
            "splits_final.json leaves out the 6 healthy cases.*difftumor splits -d 905 --overwrite$",
        ),
        (splits_of_other_cases, "patient_7.*difftumor splits -d 905 --overwrite"),
        (one_patient_and_no_splits, "Cross-validation needs.*2 patients.*fold 'all'"),
    ],
    "generator": [
        (no_generator_there, "/nowhere/dm_fold0.*does not exist. Train it"),
        (generator_lacks_a_file, "lacks denoiser/diffusion_pytorch_model.safetensors. Copy the whole folder again"),
        (generator_cut_off, "denoiser/diffusion_pytorch_model.safetensors is cut off.*Copy the whole folder again"),
        (generator_of_another_window, "labelled tissue.*-820 HU.*-175 to 250 HU only. Train one"),
    ],
    "leak": [
        (generator_of_another_fold, "trained on 1 validation case.*difftumor train-diffusion -d"),
        (generator_of_renamed_cases, "trained on 1 validation case.*under another identifier"),
    ],
    "output": [(output_of_another_training, "holds a training with other settings: seed: 0 was used, now 7.*move")],
}


@pytest.mark.parametrize(
    ("name", "plant", "says"),
    [pytest.param(name, *each, id=each[0].__name__) for name, faults in FAULTS.items() for each in faults],
)
def test_a_planted_fault_is_found_alone_and_told_in_one_line(place, look, name, plant, says):
    plant(place)
    outcome = look("-d", "905", "-f", "0")
    assert outcome.of_level("fault") == [name]
    assert re.search(says, outcome.found[name][1])
    assert outcome.status == 1
    assert outcome.last == f"Faults: {name}. Correct them, then: difftumor check -d 905 -f 0"


@pytest.mark.parametrize(
    ("words", "name", "says"),
    [
        (("-d", "8"), "plans", r"no data set '8'.*there is Dataset905_Test\. Give the number or the full name"),
        (("-d", "905", "-p", "nnUNetResEncUNetMPlans"), "plans", r"there are: nnUNetPlans\)"),
        (("-d", "905", "-c", "3d_lowres"), "plans", r"no configuration '3d_lowres', but 3d_fullres\. Name one"),
        (("-d", "905", "-f", "9"), "fold", "Fold 9 does not exist.*folds 0 to 2"),
    ],
    ids=["id", "plans", "configuration", "fold"],
)
def test_a_wrong_argument_is_told_with_what_there_is(place, look, words, name, says):
    outcome = look(*words)
    assert outcome.of_level("fault") == [name]
    assert re.search(says, outcome.found[name][1])


def no_gpu(place):
    place.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def no_splits(place):
    (place.project.preprocessed / "splits_final.json").unlink()


def splits_lack_a_case(place):
    place.edit("splits_final.json", lambda folds: [{**fold, "train": fold["train"][1:]} for fold in folds])


def disk_gets_full(place):
    place.monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3e9))


def more_workers_than_memory(place):
    place.monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    place.monkeypatch.setattr(environment, "usable_cores", lambda: 8)
    place.monkeypatch.setattr(environment, "free_memory_gb", lambda: 2.2)


def training_finished(place):
    place.project.make_trainer(nnUNetTrainerDiffTumor)._prepare_training()
    for name in ("best", "final"):
        (place.project.output() / f"checkpoint_{name}.pth").touch()


def validation_ct_missing(place):
    folds = json.loads((place.project.preprocessed / "splits_final.json").read_text())
    (place.project.raw / "imagesTr" / f"{folds[0]['val'][0]}_0000.nii.gz").unlink()


def all_confirmed_healthy(place):
    place.take(tumor_cases=0)
    assert main(["splits", "-d", "905"]) == 1
    place.project.configure(confirmed_healthy=True)
    assert main(["splits", "-d", "905"]) == 0


@pytest.mark.parametrize(
    ("name", "plant", "says"),
    [
        ("GPU", no_gpu, "none that PyTorch can use.*-device cpu"),
        ("fold", no_splits, "no splits_final.json.*difftumor splits -d 905$"),
        ("fold", splits_lack_a_case, "leaves out 1 further cases.*difftumor splits -d 905 --overwrite$"),
        ("disk", disk_gets_full, r"3\.0 GB free.*may take 5 GB"),
        ("workers", more_workers_than_memory, "export nnUNet_n_proc_DA=1$"),
        ("output", training_finished, "finished training.*move it away"),
        ("leak", validation_ct_missing, "is not in nnUNet_raw"),
        ("cases", all_confirmed_healthy, "0 with annotated tumour, 8 healthy.*how many real tumours"),
    ],
    ids=lambda each: each.__name__ if callable(each) else None,
)
def test_what_is_doubtful_is_a_warning_that_stops_nothing(place, look, capsys, name, plant, says):
    plant(place)
    capsys.readouterr()
    outcome = look("-d", "905", "-f", "0")
    assert (outcome.of_level("warning"), outcome.of_level("fault")) == ([name], [])
    assert re.search(says, outcome.found[name][1])
    assert outcome.status == 0
    assert outcome.last.endswith("-tr nnUNetTrainerDiffTumor" + " -device cpu" * (name == "GPU"))


def test_an_unfinished_training_with_these_settings_is_gone_on_with(place, look):
    place.project.make_trainer(nnUNetTrainerDiffTumor)._prepare_training()
    (place.project.output() / "checkpoint_latest.pth").touch()
    outcome = look("-d", "905")
    assert outcome.found["output"][0] == "ok"
    assert outcome.last == "Next: nnUNetv2_train 905 3d_fullres 0 -tr nnUNetTrainerDiffTumor --c"


def test_fold_all_is_looked_at_without_a_claim_about_validation(place, look):
    generator_of_another_fold(place)
    outcome = look("-d", "Dataset905_Test", "-f", "all")
    assert outcome.of_level("fault") == []
    assert outcome.found["leak"] == ("ok", "fold 'all' makes no claim about validation")
    assert "nnUNetv2_train Dataset905_Test 3d_fullres all " in outcome.last


def test_content_is_compared_until_time_is_up_and_namesakes_come_first(place, look, monkeypatch):
    monkeypatch.setattr(training, "LEAK_SECONDS", 0.0)
    outcome = look("-d", "905")
    assert "knows none of 0 of 1 validation cases; the trainer compares the rest" in outcome.found["leak"][1]


def test_without_injection_no_generator_is_needed(place, look):
    place.project.configure(injection_probability=0.0, generator="/nowhere")
    outcome = look("-d", "905")
    assert outcome.of_level("fault") == []
    assert outcome.found["generator"] == ("ok", "none is needed, as no case carries tumours")


def test_what_a_fault_takes_along_is_not_told_twice():
    def fail(_):
        raise ValueError("missing:\n  a file")

    def crash(_):
        raise AssertionError("of nnU-Net")

    checks = [Check("a", fail), Check("b", fail), Check("c", crash), Check("d", lambda _: ok("well"))]
    found = list(run_checks(checks, None))
    assert found == [("a", fault("missing: a file")), ("c", fault("AssertionError: of nnU-Net")), ("d", ok("well"))]


@pytest.mark.parametrize(("encoding", "mark"), [("ascii", "X "), ("utf-8", "✗")])
def test_a_terminal_without_ticks_gets_letters(monkeypatch, encoding, mark):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert list(command._show([("disk", fault("full"))])) == [("disk", fault("full"))]
    assert terminal.buffer.getvalue().decode(encoding) == f"{mark} disk: full\n"


def test_fold_is_a_number_or_all(capsys):
    with pytest.raises(SystemExit):
        main(["check", "-d", "905", "-f", "first"])
    assert "'first' is no fold; give a number such as 0, or all" in capsys.readouterr().err


HEAVY = """
import sys
from nnunet_difftumor.cli import main
assert main(["check", "-d", "905"]) == 0
heavy = [name for name in ("diffusers", "matplotlib", "nnunetv2.training.nnUNetTrainer") if name in sys.modules]
assert not heavy, heavy
"""


def test_neither_diffusers_nor_the_trainer_is_imported(place):
    subprocess.run([sys.executable, "-c", HEAVY], env=place.project.environment(), check=True, timeout=120)
