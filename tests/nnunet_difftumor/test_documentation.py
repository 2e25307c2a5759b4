"""The documentation against the code: settings, commands, JSON, links; README's commands are run."""

import argparse
import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_difftumor.cli import COMMANDS, _build_parser
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.demo.soft_tissue import TRAINING_CASES, make_real_dataset
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGURATION = ROOT / "docs" / "reference" / "configuration.md"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def table_rows(text):
    rows = [line.strip().strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set(row[0]) <= set("-|")]


def test_every_setting_is_in_the_reference_with_its_default():
    rows = {row[0].strip("`"): row[1] for row in table_rows(CONFIGURATION.read_text()) if row[0].startswith("`")}
    rows = {key: value for key, value in rows.items() if not key.startswith("{")}
    assert list(rows) == list(DiffTumorConfig.model_fields)
    defaults = resolve_config({"background": 0, "spleen": 1, "tumor": 2}, []).config.to_json()
    written = {key: json.loads(value.strip("`")) for key, value in rows.items() if value.startswith("`")}
    assert set(rows) - set(written) == {"organ_label", "tumor_label", "size_classes", "exophytic", "target"}
    assert written == {key: defaults[key] for key in written}


def test_labels_of_the_reference_are_understood_as_written():
    text = CONFIGURATION.read_text().split("## Labels")[1]
    rows = [row for row in table_rows(text) if row[0].startswith("`{")]
    assert len(rows) >= 5
    for labels, organ, tumor in rows:
        mapping = json.loads(re.findall(r"`(.*?)`", labels)[0])
        assert resolve_label_roles(mapping) == (int(organ), int(tumor))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else page.parent.name)
def test_links_and_json_are_right(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"
    for content in blocks(page, "json"):
        json.loads(content)


def test_every_judgement_of_files_names_a_test_that_there_is():
    page = (ROOT / "docs" / "reference" / "input.md").read_text(encoding="utf-8")
    rows = [row for row in table_rows(page) if row[0] != "what"]
    named = [re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1]) for row in rows]
    assert len(rows) > 30
    assert [row[0] for row, tests in zip(rows, named, strict=True) if not tests] == []
    sources = {file: (Path(__file__).parent / file).read_text(encoding="utf-8") for each in named for file, _ in each}
    assert {f"{file}::{test}" for each in named for file, test in each if f"def {test}(" not in sources[file]} == set()


def commands_of(page):
    """The shell lines of a page, continued lines joined, comments and assignments left out."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def test_every_difftumor_command_of_the_documentation_parses(monkeypatch):
    def refuse(self, message):
        raise AssertionError(message)

    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    seen = set()
    for page in PAGES:
        for words in commands_of(page):
            if words[0] == "difftumor" and words[1] in COMMANDS:
                assert _build_parser(words[1:]).parse_args(words[1:]).command == words[1], words
                seen.add(words[1])
    assert {"synthesize", "train-autoencoder", "train-diffusion", "splits", "evaluate-generator"} <= seen


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit):
        _build_parser([name]).parse_args([name, "--help"])
    printed = capsys.readouterr().out
    example = printed.split("example:\n")[1].replace("\\\n", " ")
    words = shlex.split(example.partition("difftumor ")[2].splitlines()[0].split(")")[0])
    assert _build_parser(words).parse_args(words).command == name


@pytest.mark.parametrize(("number", "base"), enumerate(["nnUNetTrainerDA5", "nnUNetTrainerDiceTopK10Loss"]))
def test_the_documented_trainers_are_found_by_nnunet(tmp_path, monkeypatch, number, base):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_difftumor.trainer.discovery import ext_trainer_folder

    examples = blocks(ROOT / "docs" / "how-to" / "backbones.md", "python")
    assert len(examples) == 2
    example = examples[number]
    (tmp_path / "my_trainers.py").write_text(example)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(ext_trainer_folder()), str(tmp_path)]))
    name = re.findall(r"class (\w+)", example)[0]
    found = recursive_find_trainer_class_by_name(name)
    assert [base.__name__ for base in found.__bases__] == ["DiffTumorMixin", base]


def test_every_line_of_the_python_page_does_what_it_says():
    found = doctest.testfile(str(ROOT / "docs" / "getting-started" / "python.md"), module_relative=False)
    assert found.attempted > 20
    assert found.failed == 0


QUICK = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
SHORTER = (  # what the pages say for a GPU and hours, for a CPU and minutes; the rest of a line stays as it is
    ("--preset base --precision bf16 --workers 4", "--preset nano --steps 4"),
    (" 3d_fullres 0 -tr nnUNetTrainerDiffTumor\n", " 3d_fullres 0 -tr nnUNetTrainerDiffTumor -device cpu\n"),
    ("nnUNetv2_predict", "nnUNetv2_predict -device cpu --disable_tta -npp 1 -nps 1"),
    ("nnUNetv2_plan_and_preprocess", "nnUNetv2_plan_and_preprocess -np 1 -npfp 1 -overwrite_target_spacing 8 6 6"),
    ("-plans_name nnUNetPlansSmall", "-plans_name nnUNetPlansSmall -np 1"),
    ("--output evaluation_fold0", "--output evaluation_fold0 --quick"),
    ("/data/", "$PWD/"),
    ("'^[a-z]+_[0-9]{2}'", "'^[A-Za-z_]+[0-9]{3}'"),
)


def shorten(script):
    for printed, shorter in SHORTER:
        script = script.replace(printed, shorter)
    return script


class Shell:
    """A user's shell in an empty folder: what is exported stays."""

    def __init__(self, folder):
        self.folder, self.history = folder, ""
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }

    def run(self, script):
        words = ["bash", "-euo", "pipefail", "-c", self.history + script]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1500, check=False
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0, script + printed[-6000:]
        assert "Traceback" not in printed, script + printed[-6000:]
        self.history += "".join(f"{line}\n" for line in script.splitlines() if line.startswith("export "))

    def make_dataset(self, data):
        """Make the data set number 7 of the pages, and the images that they predict."""
        dataset = self.folder / "nnUNet_raw" / "Dataset007_Pancreas"
        for part in ("raw", "preprocessed", "results"):
            (self.folder / f"nnUNet_{part}").mkdir()
        if data == "phantom":
            self.run(f"difftumor phantom --output {dataset} --cases 5 --healthy 3")
        else:
            source = Path(os.environ.get("DIFFTUMOR_REAL_CT") or "/nowhere")
            if not (source / "sts").is_dir():
                pytest.skip("DIFFTUMOR_REAL_CT names no folder that holds sts")
            few = {"training": TRAINING_CASES[:5], "validation": (), "healthy_count": 3}
            make_real_dataset(source, dataset.parent, name=dataset.name, **few)
        content = json.loads((dataset / "dataset.json").read_text())
        (dataset / "dataset.json").write_text(json.dumps({**content, "difftumor": QUICK}))
        (self.folder / "imagesTs").mkdir()
        image = min((dataset / "imagesTr").iterdir())
        (self.folder / "imagesTs" / image.name).symlink_to(image)
        return dataset


DATA = pytest.mark.parametrize("data", ["phantom", "soft tissue"])


@pytest.mark.slow
@DATA
def test_readme_commands_run(tmp_path, data):
    """README's block for the user's own data, line by line, with as little training as possible."""
    shell = Shell(tmp_path)
    shell.make_dataset(data)
    folders, stages, *_ = (block for block in blocks(ROOT / "README.md", "bash") if "nnUNet" in block)
    for part in ("raw", "preprocessed", "results"):
        folders = folders.replace(f"nnUNet_{part}=...", f"nnUNet_{part}=$PWD/nnUNet_{part}")
    shell.run(folders)
    shell.run(shorten(stages))
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 1


@pytest.mark.slow
@DATA
def test_getting_started_commands_run(tmp_path, data):
    """Every command of the page, in its order; the demo and the installation have tests of their own."""
    page = ROOT / "docs" / "getting-started" / "README.md"
    shell = Shell(tmp_path)
    dataset = shell.make_dataset(data)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir())
    healthy = next(case for case in cases if "healthy" in case)
    (tmp_path / "ct.nii.gz").symlink_to(dataset / "imagesTr" / f"{healthy}_0000.nii.gz")
    for mask in ("liver", "organ"):
        (tmp_path / f"{mask}.nii.gz").symlink_to(dataset / "labelsTr" / f"{healthy}.nii.gz")
    rows = [
        f"{case},0,p{number // 2},h2" if "healthy" in case else f"{case},1,p{number // 2},h{number % 2}"
        for number, case in enumerate(cases)
    ]
    (tmp_path / "cases.csv").write_text("\n".join(["case,lesions,patient,hospital", *rows]) + "\n")
    ran = []
    for block in blocks(page, "bash"):
        if "pip install" in block or "demo.sh" in block:
            continue
        shell.run("rm -rf look first_run.json")  # the page looks twice
        for line in block.splitlines():
            if line.startswith("difftumor splits"):  # one of them is a user's
                shell.run("rm -f nnUNet_preprocessed/Dataset007_Pancreas/{splits_final,healthy_holdout}.json")
            shell.run(shorten(f"{line}\n"))
            ran.append(line.split()[0])
        if "dm_fold0" in block and "train-diffusion" in block:
            settings = {"generator": "../../dm_fold{fold}/generator"}
            (tmp_path / "nnUNet_preprocessed" / dataset.name / "difftumor.json").write_text(json.dumps(settings))
    assert (ran.count("difftumor"), ran.count("nnUNetv2_train"), ran.count("nnUNetv2_predict")) >= (12, 2, 1)
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 1
