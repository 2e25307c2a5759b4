from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusion.generator.provenance import CaseFingerprint, hash_identifier, load_provenance
from diffusion.generator_folder import check_generator_folder
from nnunet_difftumor.cli import main
from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.generator_training import batches as training_data
from nnunet_difftumor.generator_training import tumor_statistics
from nnunet_difftumor.generator_training.batches import AutoencoderCrops, TumorCrops
from nnunet_difftumor.generator_training.runs import claimed_output

CASES = ("case_1", "case_2", "case_3", "case_4", "healthy_1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An nnU-Net raw data set: a block of tissue, in four cases with a ball of another density."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset999_Blocks"
    d, h, w = np.indices((32, 32, 32)) - 16
    for number, name in enumerate(CASES):
        rng = np.random.default_rng(number)
        image = np.full((32, 32, 32), -1000.0)
        image[3:29, 3:29, 3:29] = 60 + rng.normal(0, 10, size=(26, 26, 26))
        labels = (image > -500).astype(np.uint8)
        if name.startswith("case"):
            tumor = d**2 + h**2 + w**2 < (3 + number) ** 2
            image[tumor] -= 40
            labels[tumor] = 2
        for part, array in (("imagesTr", image.astype(np.int16)), ("labelsTr", labels)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            suffix = "_0000" if part == "imagesTr" else ""
            nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 2, 1])), folder / part / f"{name}{suffix}.nii.gz")
    options = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1, "tumor": 2},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(options))
    splits = [{"train": ["case_1", "case_2", "case_3", "healthy_1"], "val": ["case_4"]}]
    (folder.parent / "splits_final.json").write_text(json.dumps(splits))
    torch.set_num_threads(1)
    return folder


def split_arguments(dataset: Path) -> list[str]:
    return ["--splits", str(dataset.parent / "splits_final.json"), "-f", "0"]


def train_autoencoder(dataset: Path, output: Path, *extra: str, steps: int = 2) -> int:
    words = ["-d", str(dataset), "--output", str(output), "--preset", "nano", "--steps", str(steps)]
    return main(["train-autoencoder", *words, "--cache", str(dataset.parent / "cache"), *extra])


def train_diffusion(dataset: Path, autoencoder: Path, output: Path, *extra: str, steps: int = 2) -> int:
    words = ["-d", str(dataset), "--autoencoder", str(autoencoder), "--output", str(output)]
    words += ["--preset", "nano", "--steps", str(steps), "--cache", str(dataset.parent / "cache")]
    return main(["train-diffusion", *words, *extra])


@pytest.fixture(scope="module")
def autoencoder(dataset: Path) -> Path:
    output = dataset.parent / "ae"
    assert train_autoencoder(dataset, output, *split_arguments(dataset)) == 0
    return output


@pytest.fixture(scope="module")
def diffusion(dataset: Path, autoencoder: Path) -> Path:
    output = dataset.parent / "dm"
    assert train_diffusion(dataset, autoencoder, output, *split_arguments(dataset), "--data-note", "blocks") == 0
    return output


def hashes(*names: str) -> list[str]:
    return sorted(hash_identifier(name) for name in names)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def test_both_stages_leave_a_generator_that_loads(diffusion: Path) -> None:
    from diffusion.generator_folder import load_generator

    loaded = load_generator(diffusion / "generator")
    assert loaded.info.preset == "nano"
    assert loaded.info.data_note == "blocks"
    assert loaded.info.roi_sides == (16, 32)
    assert len(loaded.info.training_tumors) == 3
    assert np.mean([tumor.contrast_hu for tumor in loaded.info.training_tumors]) == pytest.approx(-40, abs=8)


@pytest.fixture
def twice(dataset: Path, tmp_path: Path) -> Path:
    """The same data set with the intercept applied twice to one case, and another one's labels on another grid."""
    folder = shutil.copytree(dataset, tmp_path / "raw" / dataset.name)
    ct, labels = folder / "imagesTr" / "case_1_0000.nii.gz", folder / "labelsTr" / "case_2.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(nibabel.load(ct).dataobj) - 1024, np.diag([2.0, 2, 2, 1])), ct)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(nibabel.load(labels).dataobj), np.diag([3.0, 3, 3, 1])), labels)
    return folder


def test_a_case_that_is_not_in_hu_is_named_and_never_trains(twice: Path, capsys: pytest.CaptureFixture) -> None:
    output = twice.parent / "ae"
    assert train_autoencoder(twice, output) == 1
    printed = capsys.readouterr().err
    assert "case_1_0000.nii.gz" in printed
    assert "subtracted twice" in printed
    assert not (output / "autoencoder").exists()
    assert train_autoencoder(twice, output, "--skip-bad") == 0  # labels are not needed here
    printed = capsys.readouterr().out
    assert "Left out as bad, 1" in printed
    assert "case_2" in printed
    listed = json.loads((output / "cases.json").read_text())
    assert "case_1" in listed["left_out"]
    assert sorted(listed["training"] + listed["heldout"]) == ["case_2", "case_3", "case_4", "healthy_1"]


def test_a_tumour_of_another_grid_never_trains(twice: Path, autoencoder: Path, capsys: pytest.CaptureFixture) -> None:
    assert train_diffusion(twice, autoencoder, twice.parent / "dm") == 1
    printed = capsys.readouterr().err
    assert "case_1_0000.nii.gz" in printed
    assert "case_2.nii.gz" in printed
    assert train_diffusion(twice, autoencoder, twice.parent / "dm", "--skip-bad") == 0
    listed = json.loads((twice.parent / "dm" / "cases.json").read_text())
    assert sorted(listed["left_out"]) == ["case_1", "case_2"]
    assert sorted(listed["training"] + listed["heldout"]) == ["case_3", "case_4"]


def test_provenance_names_exactly_the_cases_that_trained(autoencoder: Path, diffusion: Path) -> None:
    first = load_provenance(autoencoder / "provenance.json")
    second = load_provenance(diffusion / "generator" / "provenance.json")
    with_healthy = hashes("case_1", "case_2", "case_3", "healthy_1")
    assert [case.identifier_hash for case in first.autoencoder] == with_healthy
    assert first.diffusion == ()
    assert second.autoencoder == first.autoencoder
    assert [case.identifier_hash for case in second.diffusion] == hashes("case_1", "case_2", "case_3")
    assert all(case.tumor_mask_hash for case in second.diffusion)
    assert (second.fold, second.splits_hash) == (0, first.splits_hash)
    assert load_provenance(diffusion / "provenance.json") == second


def test_the_leak_guard_knows_the_cases_from_their_files(
    dataset: Path, diffusion: Path, fingerprint_case: Callable[..., CaseFingerprint]
) -> None:
    by_name = {case.identifier: fingerprint_case(case, (2,)) for case in load_raw_dataset(dataset).cases}
    trained = set(load_provenance(diffusion / "provenance.json").diffusion)
    assert trained == {by_name[name] for name in ("case_1", "case_2", "case_3")}


def test_held_out_cases_are_listed_and_measured(diffusion: Path, autoencoder: Path) -> None:
    assert json.loads((diffusion / "cases.json").read_text())["heldout"] == ["case_4"]
    assert set(json.loads((autoencoder / "heldout.json").read_text())) == {"all", "body", "tumor"}
    assert "synthetic" in json.loads((diffusion / "heldout.json").read_text())


def test_the_spacing_reaches_all_crops_around_tumours(
    dataset: Path, autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finest, ranges = [], []
    centred, pasted = tumor_statistics.centred_tumor_crop, training_data.draw_pasted_lesion

    def cut(case: Any, tumor: Any, side: int, finest_mm: float) -> Any:
        finest.append(finest_mm)
        return centred(case, tumor, side, finest_mm)

    def paste(case: Any, tumor: Any, host: Any, side: int, spacing_range_mm: Any, rng: Any) -> Any:
        ranges.append(spacing_range_mm)
        return pasted(case, tumor, host, side, spacing_range_mm, rng)

    for module in (training_data, tumor_statistics):
        monkeypatch.setattr(module, "centred_tumor_crop", cut)
    monkeypatch.setattr(training_data, "draw_pasted_lesion", paste)
    words = [*split_arguments(dataset), "--spacing-mm", "2.5", "4"]
    assert train_diffusion(dataset, autoencoder, tmp_path / "dm", *words, steps=1) == 0
    assert len(finest) >= 4  # three training tumours that are measured, and a held-out one
    assert set(finest) == {2.5}
    assert set(ranges) == {(2.5, 4.0)}


def test_early_tumours_are_measured_on_early_tumours(
    dataset: Path, autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The held-out tumour has 12 mm radius, those that train 6 to 10 mm."""
    measured = []
    cut = training_data.heldout_tumor_crops

    def keep(cases: Any, side: int, **options: Any) -> Any:
        measured.append([case.identifier for case in cases])
        return cut(cases, side, **options)

    monkeypatch.setattr(training_data, "heldout_tumor_crops", keep)
    words = [*split_arguments(dataset), "--early-only"]
    assert train_diffusion(dataset, autoencoder, tmp_path / "late", *words, steps=1) == 0
    printed = capsys.readouterr().out
    assert "No held-out case has an early tumour" in printed
    assert "training cases, no compositing" in printed
    (tmp_path / "exclude.txt").write_text("case_1\ncase_4\n")
    words = ["--exclude-cases", str(tmp_path / "exclude.txt"), "--early-only"]
    assert train_diffusion(dataset, autoencoder, tmp_path / "early", *words, steps=1) == 0
    printed = capsys.readouterr().out
    assert "held-out cases, no compositing" in printed
    assert "trained on the CT of 1 case (case_1)" in printed
    assert measured == [["case_1", "case_2", "case_3"], ["case_1"]]


def test_cases_without_labels_train_the_autoencoder(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "Dataset998_NoLabels"))
    for name in ("case_2", "healthy_1"):
        (copy / "labelsTr" / f"{name}.nii.gz").unlink()
    assert train_autoencoder(copy, tmp_path / "ae", *split_arguments(dataset), steps=1) == 0
    listed = json.loads((tmp_path / "ae" / "cases.json").read_text())
    assert listed["training"] == ["case_1", "case_2", "case_3", "healthy_1"]
    assert train_diffusion(copy, tmp_path / "ae", tmp_path / "dm", *split_arguments(dataset)) == 1
    assert "lacks the labels of 2 of 5 cases" in capsys.readouterr().err


def test_why_nothing_is_held_out_is_told(
    dataset: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "splits.json").write_text(json.dumps([{"train": list(CASES[:4]), "val": ["healthy_1"]}]))
    words = ["--splits", str(tmp_path / "splits.json"), "-f", "0"]
    assert train_diffusion(dataset, autoencoder, tmp_path / "dm", *words, steps=1) == 0
    assert "No case is held out (none of those listed can be used)" in capsys.readouterr().out


def test_an_autoencoder_that_is_no_better_than_its_start_is_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train_autoencoder(dataset, tmp_path / "ae", *split_arguments(dataset), steps=1) == 0
    body = json.loads((tmp_path / "ae" / "heldout.json").read_text())["body"]
    assert ("does not beat 2x pooling" in capsys.readouterr().out) == (body["mae_hu"] > body["mae_pool2_hu"])
    assert body["mae_hu"] > body["mae_pool2_hu"]  # one step from the start, which is 2x pooling


def test_a_preset_too_small_for_the_perceptual_term_is_refused_before_training(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--perceptual-weights", str(tmp_path / "weights.safetensors")]
    assert train_autoencoder(dataset, tmp_path / "ae", *words) == 1
    assert "--preset nano has crops of 16" in capsys.readouterr().err
    assert not (tmp_path / "ae").exists()


def test_a_preset_with_a_discriminator_is_refused_before_training_where_monai_is_missing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    assert train_autoencoder(dataset, tmp_path / "ae", "--preset", "large") == 1
    assert 'pip install "nnunet-difftumor[adversarial]"' in capsys.readouterr().err
    assert not (tmp_path / "ae").exists()


def test_excluded_cases_do_not_train(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "exclude.txt").write_text("case_2\nhealthy_1\n")
    assert train_autoencoder(dataset, tmp_path / "ae", "--exclude-cases", str(tmp_path / "exclude.txt"), steps=1) == 0
    trained = load_provenance(tmp_path / "ae" / "provenance.json").autoencoder
    assert [case.identifier_hash for case in trained] == hashes("case_1", "case_3", "case_4")


def test_a_plain_folder_of_cts_trains_the_autoencoder(dataset: Path, tmp_path: Path) -> None:
    assert train_autoencoder(dataset / "imagesTr", tmp_path / "ae", steps=1) == 0
    listed = json.loads((tmp_path / "ae" / "cases.json").read_text())
    assert len(listed["training"]) == 4
    assert len(listed["heldout"]) == 1
    assert sorted(listed["training"] + listed["heldout"]) == sorted(CASES)


def test_interrupted_and_resumed_gives_the_same_weights(
    dataset: Path, autoencoder: Path, diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for crops, train, undisturbed, model in (
        (
            AutoencoderCrops,
            lambda *extra: train_autoencoder(dataset, tmp_path / "ae", *extra),
            autoencoder,
            "autoencoder",
        ),
        (
            TumorCrops,
            lambda *extra: train_diffusion(dataset, autoencoder, tmp_path / "dm", *extra),
            diffusion / "generator",
            "denoiser",
        ),
    ):
        original = crops.__getitem__
        running = ("ae",) if model == "autoencoder" else ("dm",)

        def interrupted(
            self: object, index: int, original: object = original, running: tuple[str, ...] = running
        ) -> object:
            if index == 1 and any((tmp_path / name / "fit.json").exists() for name in running):
                raise KeyboardInterrupt
            return original(self, index)  # pyright: ignore

        with monkeypatch.context() as patched:
            patched.setattr(crops, "__getitem__", interrupted)
            assert train(*split_arguments(dataset)) == 130
        assert train(*split_arguments(dataset)) == 1  # not without --c
        assert train(*split_arguments(dataset), "--c") == 0
        resumed = tmp_path / ("ae" if model == "autoencoder" else "dm/generator")
        expected, found = weights(undisturbed / model), weights(resumed / model)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


class TestRefusals:
    def test_a_filled_output_folder_is_left_alone(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "ae").mkdir()
        (tmp_path / "ae" / "thesis.txt").write_text("precious")
        assert train_autoencoder(dataset, tmp_path / "ae") == 1
        assert "the run in it (--c)" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "ae").iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize("extra", [[], ["--c"]])
    def test_a_folder_that_another_process_trains_in_is_left_alone(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
    ) -> None:
        output = tmp_path / "ae"
        with claimed_output(output, resume=False):  # flock holds between two openings of one process too
            assert train_autoencoder(dataset, output, *extra) == 1
            assert "another process trains in this folder" in capsys.readouterr().err
            (output / "fit.json").touch()
        assert [path.name for path in output.iterdir()] == ["fit.json"]

    def test_a_killed_training_leaves_no_lock(self, tmp_path: Path) -> None:
        words = "from pathlib import Path; import os, signal; from nnunet_difftumor.generator_training import runs"
        words += f"\nwith runs.claimed_output(Path({str(tmp_path / 'ae')!r}), resume=False):"
        words += "\n    os.kill(os.getpid(), signal.SIGKILL)"
        assert subprocess.run([sys.executable, "-c", words], timeout=300, check=False).returncode == -9
        with claimed_output(tmp_path / "ae", resume=False):
            pass

    def test_an_output_below_a_file_is_named_before_any_work(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        assert train_autoencoder(dataset, tmp_path / "file" / "ae", "--cache", str(tmp_path / "cache")) == 1
        assert "file/ae cannot be written to: Not a directory" in capsys.readouterr().err
        assert not (tmp_path / "cache").exists()

    def test_resuming_with_other_cases_is_refused(
        self, dataset: Path, autoencoder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = (autoencoder / "provenance.json").read_bytes()
        assert train_autoencoder(dataset, autoencoder, "--c") == 1
        assert "other settings" in capsys.readouterr().err
        assert (autoencoder / "provenance.json").read_bytes() == before

    def test_an_autoencoder_of_unknown_origin_is_refused(
        self, dataset: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import shutil

        shutil.copytree(autoencoder / "autoencoder", tmp_path / "found" / "autoencoder")
        assert train_diffusion(dataset, tmp_path / "found", tmp_path / "dm") == 1
        assert "provenance.json is missing" in capsys.readouterr().err
        assert train_diffusion(dataset, tmp_path / "nothing", tmp_path / "dm") == 1
        assert "holds no autoencoder" in capsys.readouterr().err
        assert not (tmp_path / "dm").exists()

    @pytest.mark.parametrize(
        ("extra", "says"),
        [
            (["--tumor-label", "cyst"], "no label 'cyst'"),
            (["--early-only", "--exclude-cases", "EXCLUDE"], "None of the 4 cases is left to train on"),
        ],
    )
    def test_missing_tumours_are_refused(
        self,
        dataset: Path,
        autoencoder: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        extra: list[str],
        says: str,
    ) -> None:
        (tmp_path / "exclude.txt").write_text("\n".join(CASES))
        words = [word.replace("EXCLUDE", str(tmp_path / "exclude.txt")) for word in extra]
        assert train_diffusion(dataset, autoencoder, tmp_path / "dm", *words) == 1
        assert says in capsys.readouterr().err
        assert not (tmp_path / "dm").exists()

    def test_a_label_without_a_voxel_is_refused(
        self, dataset: Path, autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import shutil

        copy = tmp_path / "Dataset998"
        shutil.copytree(dataset, copy)
        options = json.loads((copy / "dataset.json").read_text())
        options["labels"] |= {"vessel": options["labels"]["tumor"], "tumor": 7}
        (copy / "dataset.json").write_text(json.dumps(options))
        assert train_diffusion(copy, autoencoder, tmp_path / "dm", "--tumor-label", "tumor") == 1
        assert "None of the cases in the data sets (-d) has a tumour" in capsys.readouterr().err

    def test_a_picture_is_no_ct(self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "pictures"
        folder.mkdir()
        grey = np.arange(8**3, dtype=np.uint8).reshape(8, 8, 8)
        nibabel.save(nibabel.Nifti1Image(grey, np.eye(4)), folder / "a.nii.gz")
        assert train_autoencoder(folder, tmp_path / "ae", "--cache", str(tmp_path / "cache")) == 1
        assert "NotHounsfieldError" in capsys.readouterr().err
        assert not (tmp_path / "ae").exists()


def test_the_offered_presets_exist_in_both_stages() -> None:
    from autoencoder.presets import AUTOENCODER_PRESETS
    from diffusion.presets import DIFFUSION_PRESETS
    from nnunet_difftumor.generator_training import PRESETS

    assert set(PRESETS) == set(AUTOENCODER_PRESETS) == set(DIFFUSION_PRESETS)


@pytest.mark.slow
def test_two_processes_train_one_generator(dataset: Path, tmp_path: Path) -> None:
    """Under accelerate, on CPUs with gloo: other batches each, one writer, one folder."""

    def launch(*words: str) -> str:
        launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "-m", "nnunet_difftumor"]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launcher, *words], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    shared = ["-d", str(dataset), "--preset", "nano", "--steps", "4"]
    printed = launch("train-autoencoder", *shared, "--output", str(tmp_path / "ae"))
    assert printed.count("cases train;") == 1
    launch("train-diffusion", *shared, "--autoencoder", str(tmp_path / "ae"), "--output", str(tmp_path / "dm"))
    for run in ("ae", "dm"):
        assert json.loads((tmp_path / run / "fit.json").read_text())["processes"] == 2
        assert len((tmp_path / run / "history.csv").read_text().splitlines()) == 5
    check_generator_folder(tmp_path / "dm" / "generator")
