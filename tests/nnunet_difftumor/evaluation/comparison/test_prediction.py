"""Prediction and scoring inside `difftumor compare`: resumed, never mixed, never on training cases."""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml

from nnunet_difftumor.cli import main
from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.errors import DatasetError, DiffTumorError, LeakError, OutputExistsError
from nnunet_difftumor.evaluation.comparison.inputs import scoring
from nnunet_difftumor.evaluation.comparison.inputs.plan import Hospital, Model, PredictionSettings
from nnunet_difftumor.evaluation.comparison.inputs.prediction import (
    cases_to_predict,
    predict_missing,
    prediction_command,
)
from nnunet_difftumor.evaluation.comparison.inputs.scoring import score_once
from nnunet_difftumor.evaluation.comparison.inputs.trained_models import dataset_of, refuse_training_cases
from nnunet_difftumor.evaluation.scoring.run import FolderScores, KilledProcessError, ScoringRequest
from nnunet_difftumor.support.processes.steps import RunError

CASES = ("c1", "c2", "c3")
SETTINGS = PredictionSettings(device="cpu", processes=1)


def write_labels(path, value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), value, np.uint8), np.eye(4)), path)


@pytest.fixture
def hospital(tmp_path):
    for case in CASES:
        write_labels(tmp_path / "labels" / f"{case}.nii.gz")
        write_labels(tmp_path / "images" / f"{case}_0000.nii.gz", 40)
    return Hospital(name="X", images=tmp_path / "images", labels=tmp_path / "labels")


@pytest.fixture
def model(tmp_path):
    trained = tmp_path / "trained"
    for fold in (0, 1):
        (trained / f"fold_{fold}").mkdir(parents=True)
        (trained / f"fold_{fold}" / "checkpoint_final.pth").write_text("weights")
    dataset = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "labels": {"background": 0, "tumor": 1}}
    (trained / "dataset.json").write_text(json.dumps(dataset))
    return Model(name="m", arm="m", trained=trained, folds=(0, 1))


class FakeNnunet:
    """Stands in for nnU-Net's command: writes a label map for each image; stops after `stop_after` with status 1."""

    def __init__(self, stop_after=None):
        self.stop_after, self.calls = stop_after, []

    def __call__(self, words, environment, log):
        images, output = (Path(words[words.index(option) + 1]) for option in ("-i", "-o"))
        names = sorted(path.name for path in images.iterdir())
        self.calls.append([name.removesuffix("_0000.nii.gz") for name in names])
        self.environment = environment
        log.write_text("nnU-Net says: out of memory\n")
        output.mkdir()
        shutil.copyfile(Path(words[words.index("-m") + 1]) / "dataset.json", output / "dataset.json")
        for number, name in enumerate(names):
            assert (images / name).resolve().is_file()
            if number == self.stop_after:
                (output / name.replace("_0000", "")).write_bytes(b"\x1f\x8b torn")
                return 1
            write_labels(output / name.replace("_0000", ""))
        return 0


def test_missing_scans_are_predicted_and_appear_whole(hospital, model, tmp_path):
    nnunet = FakeNnunet()
    assert cases_to_predict(model, hospital, tmp_path / "p") == CASES
    assert predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet) == CASES
    assert set(find_label_maps(tmp_path / "p")) == set(CASES)
    assert (tmp_path / "p" / "dataset.json").is_file()
    assert not [path for path in (tmp_path / "p").iterdir() if path.name.startswith(".")]
    assert Path(nnunet.environment["nnUNet_extTrainer"].split(os.pathsep)[-1]).name == "ext"


def test_predictions_that_are_there_are_kept(hospital, model, tmp_path):
    nnunet = FakeNnunet()
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    (tmp_path / "p" / "c2.nii.gz").unlink()
    kept = (tmp_path / "p" / "c1.nii.gz").stat().st_mtime_ns
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    assert nnunet.calls == [list(CASES), ["c2"]]
    assert (tmp_path / "p" / "c1.nii.gz").stat().st_mtime_ns == kept
    assert predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet) == ()
    assert len(nnunet.calls) == 2


def test_an_interrupted_prediction_goes_on_and_torn_files_are_made_again(hospital, model, tmp_path):
    with pytest.raises(RunError, match=r"status 1(.|\n)*out of memory(.|\n)*what is done is kept"):
        predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=FakeNnunet(stop_after=1))
    nnunet = FakeNnunet()
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    assert nnunet.calls == [["c2", "c3"]]
    assert all(nibabel.load(path).get_fdata().max() == 1 for path in find_label_maps(tmp_path / "p").values())


def test_a_case_that_nnunet_left_out_is_named(hospital, model, tmp_path):
    def run(words, environment, log):
        return 0

    with pytest.raises(RunError, match="left out 3 cases of X: c1, c2, c3"):
        predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=run)


@pytest.mark.parametrize("change", ["checkpoint", "folds", "step_size"])
def test_predictions_of_another_model_are_not_mixed_in(hospital, model, tmp_path, change):
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=FakeNnunet())
    settings = SETTINGS
    if change == "checkpoint":
        (model.trained / "fold_1" / "checkpoint_final.pth").write_text("other weights")
    elif change == "folds":
        model = Model(name="m", arm="m", trained=model.trained, folds=(0,))
    else:
        settings = PredictionSettings(device="cpu", processes=1, step_size=0.75)
    with pytest.raises(OutputExistsError, match=f"another model or other settings:\n  {change}"):
        predict_missing(model, hospital, settings, tmp_path / "p", run=FakeNnunet())


def test_predictions_of_a_model_that_was_moved_are_kept(hospital, model, tmp_path):
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=FakeNnunet())
    moved = Model(name="m", arm="m", trained=tmp_path / "moved", folds=model.folds)
    model.trained.rename(moved.trained)
    assert predict_missing(moved, hospital, SETTINGS, tmp_path / "p", run=FakeNnunet()) == ()


def test_a_missing_image_is_named_before_anything_is_predicted(hospital, model, tmp_path):
    (hospital.images / "c2_0000.nii.gz").unlink()
    nnunet = FakeNnunet()
    with pytest.raises(DatasetError, match=r"lacks 1 of the 3 images that m needs: c2_0000\.nii\.gz"):
        predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    assert not nnunet.calls


def replace_image(hospital, case):
    write_labels(hospital.images / f"{case}_0000.nii.gz", 41)


def test_only_replaced_images_are_predicted_again(hospital, model, tmp_path):
    nnunet = FakeNnunet()
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    kept = (tmp_path / "p" / "c1.nii.gz").stat().st_mtime_ns
    replace_image(hospital, "c2")
    (tmp_path / "p" / "c2.npz").write_bytes(b"of the other image")
    assert cases_to_predict(model, hospital, tmp_path / "p") == ("c2",)
    assert predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet) == ("c2",)
    assert nnunet.calls == [list(CASES), ["c2"]]
    assert (tmp_path / "p" / "c1.nii.gz").stat().st_mtime_ns == kept
    assert not (tmp_path / "p" / "c2.npz").exists()
    assert predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet) == ()


def test_an_image_that_is_replaced_while_a_prediction_is_interrupted_is_noticed(hospital, model, tmp_path):
    with pytest.raises(RunError):
        predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=FakeNnunet(stop_after=2))
    replace_image(hospital, "c1")  # predicted, but still where nnU-Net wrote it
    nnunet = FakeNnunet()
    assert predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet) == ("c1", "c3")
    assert nnunet.calls == [["c1", "c3"]]


def test_predictions_that_do_not_say_their_images_are_refused(hospital, model, tmp_path):
    nnunet = FakeNnunet()
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    (tmp_path / "p" / "images.json").unlink()
    (tmp_path / "p" / "c3.nii.gz").unlink()
    with pytest.raises(OutputExistsError, match=r"which images 2 of its predictions were made from: c1, c2\. Move"):
        predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    assert nnunet.calls == [list(CASES)]


def test_predictions_of_images_that_are_gone_are_kept(hospital, model, tmp_path):
    nnunet = FakeNnunet()
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    (hospital.images / "c1_0000.nii.gz").unlink()
    assert predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet) == ()
    assert (tmp_path / "p" / "c1.nii.gz").is_file()


def test_nothing_is_removed_while_an_image_is_missing(hospital, model, tmp_path):
    nnunet = FakeNnunet()
    predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    replace_image(hospital, "c1")
    (tmp_path / "p" / "c2.nii.gz").unlink()
    (hospital.images / "c2_0000.nii.gz").unlink()
    with pytest.raises(DatasetError, match="lacks 1 of the 2 images"):
        predict_missing(model, hospital, SETTINGS, tmp_path / "p", run=nnunet)
    assert (tmp_path / "p" / "c1.nii.gz").is_file()
    assert cases_to_predict(model, hospital, tmp_path / "p") == ("c1", "c2")


def test_the_command_says_all_that_was_asked(model):
    settings = PredictionSettings(device="mps", mirroring=False, step_size=0.75, processes=2, probabilities=True)
    words = prediction_command(model, settings, Path("in"), Path("out"))
    assert Path(words[0]).name == "nnUNetv2_predict_from_modelfolder"
    expected = f"-i in -o out -m {model.trained} -f 0 1 -chk checkpoint_final.pth -device mps -step_size 0.75"
    assert words[1:] == [*expected.split(), *"-npp 2 -nps 2 --disable_tta --save_probabilities".split()]


def test_bfloat16_is_for_cpus_alone(model):
    for device, in_bfloat16 in (("cpu", True), ("cuda", False)):
        settings = PredictionSettings(device=device, cpu_bfloat16=True)
        words = prediction_command(model, settings, Path("in"), Path("out"))
        assert ("nnunet_difftumor.evaluation.comparison.inputs.cpu_prediction" in words) == in_bfloat16
        assert words[words.index("-i") :][:2] == ["-i", "in"]


def test_predictions_that_do_not_say_a_setting_are_refused(hospital, model, tmp_path):
    nnunet, folder = FakeNnunet(), tmp_path / "p"
    predict_missing(model, hospital, SETTINGS, folder, run=nnunet)
    record = json.loads((folder / "source.json").read_text())
    del record["cpu_bfloat16"]
    (folder / "source.json").write_text(json.dumps(record))
    with pytest.raises(OutputExistsError, match="cpu_bfloat16: None, now False"):
        predict_missing(model, hospital, SETTINGS, folder, run=nnunet)


def test_training_cases_are_refused(hospital, model):
    refuse_training_cases(model, [hospital], acknowledged=False)
    (model.trained / "fold_0" / "difftumor_split.json").write_text(json.dumps({"train": ["c3", "other"], "val": []}))
    with pytest.raises(LeakError, match=r"m was trained on cases of these names: X: c3 \(1\)"):
        refuse_training_cases(model, [hospital], acknowledged=False)
    (note,) = refuse_training_cases(model, [hospital], acknowledged=True)
    assert "as was acknowledged" in note


def test_training_cases_of_a_stock_trainer_are_those_of_the_data_sets_splits(hospital, model, tmp_path, monkeypatch):
    dataset = tmp_path / "preprocessed" / model.trained.parent.name
    dataset.mkdir(parents=True)
    splits = [{"train": ["c1", "c2"], "val": ["c3"]}, {"train": ["c2", "c3"], "val": ["c1"]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    alone = Model(name="m", arm="m", trained=model.trained, folds=(0,))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert refuse_training_cases(alone, [hospital], acknowledged=False) == ()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    with pytest.raises(LeakError, match=r"X: c1, c2 \(2\)"):
        refuse_training_cases(alone, [hospital], acknowledged=False)
    everything = Model(name="m", arm="m", trained=model.trained, folds=("all",))
    with pytest.raises(LeakError, match=r"X: c1, c2, c3 \(3\)"):
        refuse_training_cases(everything, [hospital], acknowledged=False)
    recorded = model.trained / "fold_0" / "difftumor_split.json"  # what the fold itself recorded is what counts
    recorded.write_text(json.dumps({"train": ["elsewhere"], "val": []}))
    assert refuse_training_cases(alone, [hospital], acknowledged=False) == ()


def write_splits(folder, train):
    folder.mkdir(parents=True)
    (folder / "splits_final.json").write_text(json.dumps([{"train": train, "val": []}]))


@pytest.mark.parametrize("is_link", [False, True])
def test_the_splits_are_those_of_the_data_set_that_the_plans_name(hospital, model, tmp_path, monkeypatch, is_link):
    """Wherever the model's folder lies, and whether it is a folder of links or a link itself."""
    (model.trained / "plans.json").write_text(json.dumps({"dataset_name": "Dataset007_Pancreas"}))
    linked = tmp_path / "elsewhere" / "m"
    if is_link:
        linked.parent.mkdir()
        linked.symlink_to(model.trained)
    else:
        linked.mkdir(parents=True)
        for path in model.trained.iterdir():
            (linked / path.name).symlink_to(path)
    write_splits(tmp_path / "preprocessed" / "Dataset007_Pancreas", ["c1"])
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert dataset_of(linked) == "Dataset007_Pancreas"
    moved = model.model_copy(update={"trained": linked, "folds": (0,)})
    with pytest.raises(LeakError, match=r"X: c1 \(1\)"):
        refuse_training_cases(moved, [hospital], acknowledged=False)


def test_without_plans_the_data_set_is_the_folder_that_a_link_leads_to(model, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "m").symlink_to(model.trained)
    assert dataset_of(tmp_path / "elsewhere" / "m") == tmp_path.name


def test_the_splits_are_found_where_nnunet_noted_that_it_trained_from(hospital, model, tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    write_splits(tmp_path / "data" / "Dataset007_Pancreas", ["c2"])
    noted = {"preprocessed_dataset_folder_base": str(tmp_path / "data" / "Dataset007_Pancreas")}
    (model.trained / "fold_0" / "debug.json").write_text(json.dumps(noted))
    with pytest.raises(LeakError, match=r"X: c2 \(1\)"):
        refuse_training_cases(model.model_copy(update={"folds": (0,)}), [hospital], acknowledged=False)


def test_validation_cases_of_one_fold_trained_the_others(hospital, model):
    write_labels(model.trained / "fold_1" / "validation" / "c1.nii.gz")
    with pytest.raises(LeakError, match="X: c1"):  # fold 0 was trained on it
        refuse_training_cases(model, [hospital], acknowledged=False)
    alone = Model(name="m", arm="m", trained=model.trained, folds=(1,))
    assert refuse_training_cases(alone, [hospital], acknowledged=False) == ()


def test_fold_all_validates_on_its_training_cases(hospital, model):
    (model.trained / "fold_all").mkdir()
    write_labels(model.trained / "fold_all" / "validation" / "c1.nii.gz")
    refuse_training_cases(model, [hospital], acknowledged=False)  # fold "all" does not predict here
    everything = Model(name="m", arm="m", trained=model.trained, folds=("all",))
    with pytest.raises(LeakError, match="X: c1"):
        refuse_training_cases(everything, [hospital], acknowledged=False)


def write_dataset(path, labels, **more):
    path.write_text(json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "labels": labels, **more}))


@pytest.fixture
def scored(hospital, tmp_path, monkeypatch):
    """A function that scores the hospital's labels as predictions with a scorer that only counts its calls."""
    calls = []

    def call(request, output, **_):
        calls.append(request.prediction)
        output.mkdir()
        (output / "cases.csv").write_text("made\n")
        return FolderScores((), (), (), {})

    monkeypatch.setattr(scoring, "score_folders", call)
    predictions = tmp_path / "predictions"
    shutil.copytree(hospital.labels, predictions)
    write_dataset(tmp_path / "dataset.json", {"background": 0, "tumor": 1, "organ": 2})

    def score(labels=(), probabilities=False):
        request = ScoringRequest(
            reference=hospital.labels,
            prediction=predictions,
            labels=tmp_path / "dataset.json",
            probabilities=predictions if probabilities else None,
            tumor_labels=tuple(labels),
        )
        return score_once(request, tmp_path / "scores")

    return score, predictions, calls


def test_scores_are_made_once_and_again_after_a_change(scored, tmp_path):
    score, predictions, calls = scored
    assert score()
    assert not score()
    assert len(calls) == 1
    write_labels(predictions / "c1.nii.gz", 0)
    assert score()
    assert (tmp_path / "scores" / "cases.csv").read_text() == "made\n"


def test_scores_are_made_again_when_dataset_json_means_other_labels(scored, tmp_path):
    score, _, calls = scored
    score()
    write_dataset(tmp_path / "dataset.json", {"background": 0, "tumor": 1, "organ": 2}, numTraining=7)
    assert not score()
    write_dataset(tmp_path / "dataset.json", {"background": 0, "organ": 1, "tumor": 2})
    assert score()
    assert score(labels=["organ"])
    assert not score(labels=["organ"])
    assert len(calls) == 3


def test_scores_are_made_again_when_probabilities_change(scored):
    score, predictions, _ = scored
    for case in CASES:
        (predictions / f"{case}.npz").write_bytes(b"one")
    score()
    assert score(probabilities=True)
    assert not score(probabilities=True)
    (predictions / "c2.npz").write_bytes(b"another")
    assert score(probabilities=True)
    (predictions / "c2.npz").unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 cases .* could not be scored:\n  c2: .*holds no probabilities"):
        score(probabilities=True)


@pytest.mark.parametrize(("name", "value"), [("__version__", "0.0.0"), ("SUMMARY_FORMAT", 0)])
def test_scores_of_another_version_are_made_again(scored, monkeypatch, name, value):
    score, _, _ = scored
    score()
    monkeypatch.setattr(scoring, name, value)
    assert score()


def test_scores_that_do_not_say_what_they_were_made_from_are_made_again(scored, tmp_path):
    score, _, _ = scored
    score()
    (tmp_path / "scores" / "inputs.json").write_text('{"labels": [], "probabilities": false}')
    assert score()


def test_a_killed_process_is_advised_by_the_key_of_the_experiment(hospital, tmp_path, monkeypatch):
    def kill(*_, **__):
        raise KilledProcessError(4)

    write_dataset(tmp_path / "dataset.json", {"background": 0, "tumor": 1})
    monkeypatch.setattr(scoring, "score_folders", kill)
    with pytest.raises(DiffTumorError, match=r"prediction: \{processes: 2\} in the experiment") as caught:
        score_once(
            ScoringRequest(reference=hospital.labels, prediction=hospital.labels, labels=tmp_path / "dataset.json"),
            tmp_path / "scores",
            workers=4,
        )
    assert "--workers" not in str(caught.value)


def test_a_case_without_prediction_is_named(scored):
    score, predictions, calls = scored
    (predictions / "c2.nii.gz").unlink()
    with pytest.raises(DatasetError, match="no prediction of 1 of 3 cases: c2"):
        score()
    assert not calls


def test_a_folder_that_holds_something_else_is_left_alone(scored, tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "precious.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds no scores of a comparison"):
        scored[0]()
    assert (tmp_path / "scores" / "precious.txt").read_text() == "mine"


def test_check_says_what_is_to_predict_and_writes_nothing(hospital, model, tmp_path, capsys):
    write_labels(tmp_path / "out" / "predictions" / "m" / "X" / "c1.nii.gz")
    content = {
        "hospitals": [{"name": "X", "images": "images", "labels": "labels"}],
        "models": [{"arm": "m", "trained": "trained"}],
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", str(path), "--output", str(tmp_path / "out"), "--check"]) == 0
    assert "m, X: 2 scans to predict (c2, c3)" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_check_counts_replaced_images(hospital, model, tmp_path, capsys):
    predict_missing(model, hospital, SETTINGS, tmp_path / "out" / "predictions" / "m" / "X", run=FakeNnunet())
    replace_image(hospital, "c2")
    hospitals = [{"name": "X", "images": "images", "labels": "labels"}]
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"hospitals": hospitals, "models": [{"arm": "m", "trained": "trained"}]}))
    assert main(["compare", str(path), "--output", str(tmp_path / "out"), "--check"]) == 0
    assert "m, X: 1 scans to predict (c2)" in capsys.readouterr().out


@pytest.fixture
def given_predictions(tmp_path):
    """An experiment of one arm with predictions and nnU-Net's probabilities of two ill and two healthy scans."""
    for number in range(4):
        labels = np.zeros((12, 12, 12), np.uint8)
        labels[3:8, 3:8, 3:8] = number % 2
        for folder in ("labels", "given"):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / folder / f"c{number}.nii.gz")
        tumor = np.where(labels.T == 1, 0.9, 0.1 + 0.01 * number).astype(np.float32)
        np.savez_compressed(tmp_path / "given" / f"c{number}.npz", probabilities=np.stack([1 - tumor, tumor]))
    write_dataset(tmp_path / "dataset.json", {"background": 0, "tumor": 1})
    content = {
        "dataset_json": "dataset.json",
        "hospitals": [{"name": "X", "labels": "labels"}],
        "models": [{"arm": "m", "predictions": "given"}],
        "prediction": {"probabilities": True, "processes": 1},
        "statistics": {"draws": 1000, "minimum_patients": 2, "minimum_tumors": 1},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def area_of(folder):
    assert main(["compare", str(folder / "experiment.yaml"), "--output", str(folder / "out")]) == 0
    arms = pd.read_csv(folder / "out" / "arms.csv").query("measure == 'auroc' and group_kind == 'all'")
    return float(arms["value"].iloc[0])


def test_probabilities_beside_given_predictions_give_an_auroc(given_predictions):
    assert area_of(given_predictions) == 1.0
    assert "No AUROC" not in (given_predictions / "out" / "report.html").read_text()


def test_given_predictions_without_probabilities_are_noted(given_predictions):
    for path in (given_predictions / "given").glob("*.npz"):
        path.unlink()
    assert np.isnan(area_of(given_predictions))
    assert "beside the predictions of m in X" in (given_predictions / "out" / "report.html").read_text()


def test_a_given_prediction_that_lacks_its_probabilities_is_named(given_predictions, capsys):
    (given_predictions / "given" / "c2.npz").unlink()
    words = ["compare", str(given_predictions / "experiment.yaml"), "--output", str(given_predictions / "out")]
    assert main(words) == 1
    assert "c2: " in capsys.readouterr().err


def save_untrained_checkpoint(project, fold):
    """A checkpoint of nnU-Net's stock trainer with untrained weights, as after a training."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans, dataset = (
        json.loads((project.preprocessed / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json")
    )
    trainer = nnUNetTrainer(
        {**plans, "continue_training": False}, "3d_fullres", fold, dataset, device=torch.device("cpu")
    )
    trainer.initialize()
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    for name, content in (("plans.json", plans), ("dataset.json", dataset)):
        (folder.parent / name).write_text(json.dumps(content))
    return folder.parent


@pytest.mark.slow
def test_nnunet_itself_predicts_what_is_missing(make_nnunet_project, tmp_path, monkeypatch):
    project = make_nnunet_project(tumor_cases=3, healthy_cases=3)
    for name, value in project.environment().items():
        monkeypatch.setenv(name, value)
    trained = save_untrained_checkpoint(project, 0)
    hospital = Hospital(name="X", images=project.raw / "imagesTr", labels=project.raw / "labelsTr")
    model = Model(name="m", arm="m", trained=trained, folds=(0,))
    predicted = predict_missing(model, hospital, SETTINGS, tmp_path / "p")
    assert len(predicted) == 6
    (tmp_path / "p" / f"{predicted[0]}.nii.gz").unlink()
    assert predict_missing(model, hospital, SETTINGS, tmp_path / "p") == predicted[:1]
    for case, path in find_label_maps(tmp_path / "p").items():
        reference = nibabel.load(hospital.labels / f"{case}.nii.gz")
        assert nibabel.load(path).shape == reference.shape


@pytest.mark.slow
def test_from_images_to_the_report(make_nnunet_project, tmp_path, monkeypatch):
    """An untrained nnU-Net against perfect predictions and against shifted ones, scored by `difftumor score`."""
    project = make_nnunet_project(tumor_cases=12, healthy_cases=10)
    for name, value in project.environment().items():
        monkeypatch.setenv(name, value)
    trained = save_untrained_checkpoint(project, 0)
    for path in (project.raw / "labelsTr").glob("*.nii.gz"):
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj).astype(np.uint8)
        for arm, made in (("perfect", labels), ("shifted", np.roll(labels, 1, axis=0))):
            write_labels(tmp_path / arm / path.name)
            nibabel.save(nibabel.Nifti1Image(made, image.affine), tmp_path / arm / path.name)
    content = {
        "baseline": "perfect",
        "hospitals": [{"name": "X", "images": str(project.raw / "imagesTr"), "labels": str(project.raw / "labelsTr")}],
        "models": [
            {"arm": "untrained", "trained": str(trained)},
            {"arm": "perfect", "predictions": "perfect"},
            {"arm": "shifted", "predictions": "shifted"},
        ],
        "prediction": {"device": "cpu", "processes": 1, "mirroring": False},
        "statistics": {"draws": 1000},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["compare", str(path), "--output", str(tmp_path / "out")]) == 0
    arms = pd.read_csv(tmp_path / "out" / "arms.csv").query("group_kind == 'all'").set_index(["measure", "arm"])
    assert arms.loc[("dice", "perfect"), "value"] == arms.loc[("sensitivity", "perfect"), "value"] == 1.0
    assert arms.loc[("specificity", "perfect"), "items"] == 10
    assert 0.3 < arms.loc[("dice", "shifted"), "value"] < 0.95
    assert arms.loc[("nsd_2mm", "shifted"), "value"] > arms.loc[("nsd_1mm", "shifted"), "value"]
    assert arms.loc[("dice", "untrained"), "value"] < 0.3
    text = (tmp_path / "out" / "methods.txt").read_text()
    assert "at least 8 voxels and 14 mm3" in text
    assert "without mirroring" in text
    scores = tmp_path / "out" / "scores" / "untrained" / "X" / "cases.csv"
    made = scores.stat().st_mtime_ns
    assert main(["compare", str(path), "--output", str(tmp_path / "out"), "--overwrite"]) == 0
    assert scores.stat().st_mtime_ns == made
