from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_difftumor.cli import main
from nnunet_difftumor.demo import steps
from nnunet_difftumor.demo.layout import DemoFolder
from nnunet_difftumor.demo.report import read_scores, read_training_logs, write_report
from nnunet_difftumor.demo.settings import demo_settings
from nnunet_difftumor.demo.steps import Demo, DemoStep
from nnunet_difftumor.errors import OutputExistsError
from nnunet_difftumor.phantom.dataset import write_phantom_dataset
from nnunet_difftumor.support.processes.steps import RunError

SETTINGS = demo_settings("phantom", is_quick=True)
TRAINING_LOG = """
2026-01-01 10:00:00.000000: Epoch 0
2026-01-01 10:00:09.000000: train_loss 0.5012
2026-01-01 10:00:09.000000: val_loss 0.4
2026-01-01 10:00:09.000000: Pseudo dice [np.float32(0.8123), np.float32(0.1)]
2026-01-01 10:00:20.000000: train_loss -0.1
2026-01-01 10:00:20.000000: val_loss -0.05
2026-01-01 10:00:20.000000: Pseudo dice [0.9, nan]
"""


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.open_tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.pictures += [value or "" for name, value in attrs if tag == "img" and name == "alt"]
        if tag not in ("img", "meta", "br"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


@pytest.fixture
def empty_demo(tmp_path: Path) -> DemoFolder:
    folder = DemoFolder(tmp_path / "demo", SETTINGS.dataset_folder_name)
    folder.open(SETTINGS, is_quick=True)
    return folder


def score(folder: DemoFolder) -> None:
    """What the last step of the demo runs."""
    assert main(DemoStep(Demo(folder, SETTINGS, "cpu"), 11, "score").words[1:]) == 0


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFolder:
    """What the stages leave behind, with made-up numbers and a real phantom."""
    folder = DemoFolder(tmp_path_factory.mktemp("demo"), SETTINGS.dataset_folder_name)
    folder.open(SETTINGS, is_quick=True)
    folder.raw.parent.mkdir()
    list(write_phantom_dataset(folder.raw, cases=2, healthy=1))
    for path in (folder.preprocessed, folder.training, folder.autoencoder, folder.diffusion, folder.evaluation):
        path.mkdir(parents=True)
    folder.synthetic.mkdir()
    folder.predictions.mkdir()
    splits = [{"train": ["phantom_tumor_000"], "val": ["phantom_tumor_001"]}]
    (folder.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    (folder.preprocessed / "healthy_holdout.json").write_text('{"holdout": ["phantom_healthy_000"]}')
    for run in (folder.autoencoder, folder.diffusion):
        rows = [f"{step},{2.0 / step},{1.0 / step},0.001,0.5" for step in range(1, 60)]
        (run / "history.csv").write_text("\n".join(["step,total,l1,learning_rate,gradient_norm", *rows]) + "\n")
    (folder.autoencoder / "heldout_history.csv").write_text("step,mae_hu_all,mae_hu_body\n30,14,15\n60,8.5,9\n")
    columns = "step,real_mean_hu,synthetic_mean_hu,real_wasserstein_hu,synthetic_wasserstein_hu"
    (folder.diffusion / "heldout_history.csv").write_text(f"{columns}\n60,70,75,0,6\n")
    errors = {"mae_hu": 8.5, "mae_pool2_hu": 10.0, "mae_pool4_hu": 20.0, "voxels": 1234}
    (folder.autoencoder / "heldout.json").write_text(json.dumps({"all": errors, "body": errors}))
    synthetic = {"tumors": [{}, {}], "rejected": {"too faint": 1}, "steps": 4, "ct": "phantom_healthy_000_0000.nii.gz"}
    (folder.synthetic / "tumors.json").write_text(json.dumps(synthetic))
    (folder.training / "injection_counts.csv").write_text(
        "epoch,healthy_samples,carrying,injected,out_of_view,rejected_too_faint\n0,10,6,6,0,0\n1,12,4,3,0,1\n"
    )
    (folder.training / "training_log_2026.txt").write_text(TRAINING_LOG)
    for identifier in ("phantom_tumor_001", "phantom_healthy_000"):
        label = nib.Nifti1Image.from_filename(folder.raw / "labelsTr" / f"{identifier}.nii.gz")
        nib.save(label, folder.predictions / f"{identifier}.nii.gz")
    score(folder)
    for path in (folder.synthetic / "montage.png", folder.training / "difftumor_samples.png"):
        Figure().savefig(path)
    folder.stages.mkdir()
    record = {"name": "data", "title": "Make <it>", "command": "difftumor phantom --output 'a b'", "seconds": 61.0}
    (folder.stages / "01-data.json").write_text(json.dumps(record))
    write_report(folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def html(finished_demo: DemoFolder) -> str:
    return finished_demo.report.read_text(encoding="utf-8")


def test_report_needs_nothing_beside_it(html: str) -> None:
    page = Page(html)
    assert page.pictures == [
        "synthetic tumours before, after and with their labels",
        "predictions beside the truth",
        "samples of the training before and after injection",
        "training curves",
    ]
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert page.open_tags == []
    assert "<script" not in html
    assert not re.search(r"url\(|@import", html)


def test_report_says_phantom_in_its_title_and_heading(html: str) -> None:
    assert "<title>CT phantom" in html
    assert "no patients" in html
    assert "real tumour" not in html.lower()


def test_report_of_real_data_says_that_it_is_not_the_papers(tmp_path: Path) -> None:
    settings = demo_settings("real")
    folder = DemoFolder(tmp_path / "real", settings.dataset_folder_name)
    folder.open(settings, is_quick=False)
    html = write_report(folder, settings).read_text(encoding="utf-8")
    assert re.search(r"<title>Real CT, not the paper&#39;s data", html)
    assert "10.7937/K9/TCIA.2015.7GO2GSKS" in html


def test_report_shows_the_numbers_of_every_stage(html: str) -> None:
    assert "8.5 HU" in html
    assert "90 %" in html  # 9 of 10
    assert re.search(
        r"Of 22 healthy crops in all epochs, 10 are of scans that were to carry tumours:\s+9 of them", html
    )
    assert "1 were rejected: too faint" in html
    assert "1 too faint" in html
    assert "phantom_tumor_001" in html
    assert "1.000" in html
    assert "difftumor phantom --output" in html


def test_text_from_files_is_escaped(html: str) -> None:
    assert "<it>" not in html
    assert "&lt;it&gt;" in html


def test_report_of_an_unfinished_demo_says_what_is_missing(empty_demo: DemoFolder) -> None:
    html = write_report(empty_demo, SETTINGS).read_text(encoding="utf-8")
    assert html.count("The stage that makes it has not run") == 4
    assert "counts of injected samples. The stage that makes them has not run" in html
    assert Page(html).open_tags == []


def test_healthy_case_has_no_tumor_dice_but_a_false_alarm_volume(empty_demo: DemoFolder) -> None:
    ill = np.ones((8, 8, 8), np.uint8)
    ill[2:6, 2:6, 2:6] = 2
    shifted = np.ones_like(ill)
    shifted[4:8, 2:6, 2:6] = 2  # half of it overlaps
    affine = np.diag([2.0, 5.0, 10.0, 1.0])
    for case, truth, prediction in (("ill", ill, shifted), ("well", np.ones_like(ill), shifted)):
        for folder, values in ((empty_demo.raw / "labelsTr", truth), (empty_demo.predictions, prediction)):
            folder.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(values, affine), folder / f"{case}.nii.gz")
    labels = {"labels": {"background": 0, "liver": 1, "tumor": 2}, "file_ending": ".nii.gz"}
    (empty_demo.raw / "dataset.json").write_text(json.dumps({**labels, "channel_names": {"0": "CT"}}))
    score(empty_demo)
    scores = read_scores(empty_demo).set_index("case")
    assert list(scores.index) == ["ill", "well"]
    assert scores.loc["ill", "dice"] == pytest.approx(0.5)
    assert scores.loc["well", "is_healthy"]
    assert np.isnan(scores.loc["well", "dice"])
    assert scores.loc["well", "reference_ml"] == 0.0
    assert scores.loc["well", "predicted_ml"] == pytest.approx(6.4)  # 64 voxels of 0.1 ml


def test_training_log_gives_one_value_per_epoch(tmp_path: Path) -> None:
    (tmp_path / "training_log_2026.txt").write_text(TRAINING_LOG)
    values = read_training_logs(tmp_path)
    assert list(values["training loss"]) == [0.5012, -0.1]
    assert list(values["validation loss"]) == [0.4, -0.05]
    assert list(values["Dice, label 1"]) == [0.8123, 0.9]
    assert values["Dice, label 2"][0] == 0.1
    assert np.isnan(values["Dice, label 2"][1])


def records_of(folder: DemoFolder) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.stages.glob("*.json"))]


def test_finished_stages_are_skipped_and_failed_ones_run_again(
    empty_demo: DemoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = {"good": f"open('{tmp_path}/count', 'a').write('x')", "bad": "print('the cause'); raise SystemExit(3)"}
    for name, code in codes.items():
        (tmp_path / f"{name}.py").write_text(code)
    commands = {name: (f"run {name}", f"{sys.executable} {tmp_path}/{name}.py") for name in codes}
    monkeypatch.setattr(steps, "COMMANDS", commands)
    for _ in range(2):
        with pytest.raises(
            RunError, match=r"'run bad' ended with status 3[\s\S]*the cause[\s\S]*finished stages are skip"
        ):
            Demo(empty_demo, SETTINGS, "cpu").run()
    assert (tmp_path / "count").read_text() == "x"
    assert [record["name"] for record in records_of(empty_demo)] == ["01-good"]


def test_command_is_recorded_as_it_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = DemoFolder(tmp_path / "my demo", SETTINGS.dataset_folder_name)
    folder.open(SETTINGS, is_quick=True)
    folder.preprocessed.mkdir(parents=True)
    (tmp_path / "say.py").write_text("import os, sys; print(os.environ['NAME'], sys.argv[1])")
    command = f"env NAME=a {sys.executable} {tmp_path}/say.py {{folder.root}}"
    monkeypatch.setattr(steps, "COMMANDS", {"train": ("say it", command)})
    Demo(folder, SETTINGS, "cpu").run()
    (record,) = records_of(folder)
    typed = f"env NAME=a {sys.executable} {tmp_path}/say.py '{folder.root}'"
    assert record["command"] == f"# difftumor.json: generator, size classes, short schedule\n{typed}"
    assert (folder.logs / "01-train.log").read_text() == f"a {folder.root}\n"
    assert json.loads((folder.preprocessed / "difftumor.json").read_text())["num_epochs"] == SETTINGS.epochs


def test_an_interrupted_training_is_told_to_resume(empty_demo: DemoFolder) -> None:
    demo = Demo(empty_demo, SETTINGS, "cpu")
    assert "--c" not in DemoStep(demo, 3, "autoencoder").words
    assert "--c" not in DemoStep(demo, 9, "train").words
    empty_demo.autoencoder.mkdir()
    empty_demo.training.mkdir(parents=True)
    (empty_demo.training / "checkpoint_latest.pth").touch()
    assert "--c" in DemoStep(demo, 3, "autoencoder").words
    assert "--c" in DemoStep(demo, 9, "train").words


def test_tumors_are_put_into_a_case_that_trains_nothing(finished_demo: DemoFolder) -> None:
    words = DemoStep(Demo(finished_demo, SETTINGS, "cpu"), 6, "synthesize").words
    assert words[words.index("--ct") + 1].endswith("imagesTr/phantom_healthy_000_0000.nii.gz")
    assert words[words.index("--organ-label") + 1] == "1"
    assert words[words.index("--radius-mm") + 1 :][:2] == ["5", "16"]


def test_fresh_removes_what_the_demo_made_and_nothing_else(finished_demo: DemoFolder, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished_demo.root, tmp_path / "demo")
    folder = DemoFolder(tmp_path / "demo", SETTINGS.dataset_folder_name)
    mine = [folder.root / "notes.txt", folder.root / "nnUNet_raw" / "Dataset001_Mine" / "dataset.json"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    folder.remove()
    assert sorted(path for path in folder.root.rglob("*") if path.is_file()) == sorted(mine)


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for words in (["--fresh"], []):
        assert main(["demo", "--output", str(tmp_path), "--quick", *words]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_demo_of_another_kind_is_refused(empty_demo: DemoFolder) -> None:
    with pytest.raises(OutputExistsError, match="--fresh"):
        empty_demo.open(demo_settings("real"), is_quick=False)


@pytest.mark.parametrize("data", ["phantom", "real"])
@pytest.mark.parametrize("is_quick", [False, True])
def test_patch_can_be_halved_as_often_as_the_network_does(data: str, is_quick: bool) -> None:
    settings = demo_settings(data, is_quick=is_quick)
    assert len(settings.strides) == len(settings.features)
    reduction = np.prod(settings.strides, axis=0)
    assert all(size % step == 0 for size, step in zip(settings.patch_size, reduction, strict=True))
