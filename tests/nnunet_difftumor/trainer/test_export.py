"""A trained model rewritten for stock nnU-Net: what is in it, what is not, and that it predicts the same."""

import hashlib
import json
import shutil
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import ConfigurationError, ModelExportError, OutputExistsError
from nnunet_difftumor.injection.log import COUNTS_FILE_NAME
from nnunet_difftumor.trainer.export import model_export
from nnunet_difftumor.trainer.export.model_export import MANIFEST_NAME, export_model
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

STOCK_NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
SECRET = "patient_4711"


def train_nothing(project, fold):
    """What nnU-Net leaves of a training, with weights as they were drawn, and a patient's name wherever one may be."""
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    dataset_json |= {"difftumor": {"healthy_cases": [SECRET]}, "description": SECRET}
    plans |= {"continue_training": False, "made_from": [SECRET]}
    trainer = nnUNetTrainerDiffTumor(plans, "3d_fullres", fold, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer._best_ema = np.float64(0.5)
    for key, value in (("train_losses", np.float32(0.1)), ("mean_fg_dice", np.float64(0.5))):
        trainer.logger.log(key, value, 0)
    output = Path(trainer.output_folder)
    trainer.save_checkpoint(str(output / "checkpoint_final.pth"))
    for name in ("plans.json", "dataset.json"):
        (output.parent / name).write_text(json.dumps(plans if name == "plans.json" else dataset_json))
    (output.parent / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1, 1]]}))
    (output / COUNTS_FILE_NAME).write_text("epoch,healthy_samples,carrying,injected\n0,3,2,1\n")
    (output / "validation").mkdir()
    (output / "validation" / f"{SECRET}.nii.gz").write_bytes(b"")
    return output.parent


@pytest.fixture(scope="module")
def trained(make_nnunet_project):
    """The folder of a model with folds 0 and 1."""
    project = make_nnunet_project()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in project.environment().items():
            if key.startswith("nnUNet_"):
                patch.setenv(key, value)
        for fold in (0, 1):
            folder = train_nothing(project, fold)
    return folder


@pytest.fixture(autouse=True)
def no_nnunet_folders(monkeypatch):
    """Export needs none of nnU-Net's environment variables."""
    for part in ("raw", "preprocessed", "results", "extTrainer"):
        monkeypatch.delenv(f"nnUNet_{part}", raising=False)


def edit_plans(folder, output, **changes):
    """Copy a trained folder with changed entries of 3d_fullres in its plans."""
    shutil.copytree(folder, output)
    plans = json.loads((output / "plans.json").read_text())
    plans["configurations"]["3d_fullres"].update(changes)
    (output / "plans.json").write_text(json.dumps(plans))
    return output


def test_it_holds_what_nnunet_reads_and_nothing_of_patients(trained, tmp_path):
    output = tmp_path / "Dataset905_Test" / STOCK_NAME
    model, _ = export_model(trained, output)
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    checkpoints = {f"fold_{fold}/checkpoint_final.pth" for fold in (0, 1)}
    assert files == {"plans.json", "dataset.json", "README.md", MANIFEST_NAME} | checkpoints
    assert not [name for name in files if SECRET.encode() in (output / name).read_bytes()]
    assert [path.name for path in output.parent.iterdir()] == [STOCK_NAME]
    assert set(model.left_out) == {
        "plans.json[made_from]",
        "dataset.json[difftumor]",
        "dataset.json[description]",
    }
    manifest = json.loads((output / MANIFEST_NAME).read_text())
    assert manifest["trained_with"] == "nnUNetTrainerDiffTumor"
    assert (manifest["folds"], manifest["trainer"]) == (["0", "1"], "nnUNetTrainer")
    hashes = {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in files - {MANIFEST_NAME}}
    assert manifest["sha256"] == hashes
    assert "real and synthetic tumours" in (output / "README.md").read_text()


@pytest.mark.parametrize("keep_optimizer_state", [False, True])
def test_checkpoints_are_read_without_running_code_and_keep_the_weights(trained, tmp_path, keep_optimizer_state):
    output = tmp_path / STOCK_NAME
    export_model(trained, output, folds=["1"], keep_optimizer_state=keep_optimizer_state)
    before = torch.load(trained / "fold_1" / "checkpoint_final.pth", weights_only=False)
    after = torch.load(output / "fold_1" / "checkpoint_final.pth", weights_only=True)
    assert not (output / "fold_0").exists()
    assert after["trainer_name"] == "nnUNetTrainer"
    assert after["init_args"]["configuration"] == "3d_fullres"
    assert after["inference_allowed_mirroring_axes"] == (0, 1, 2)
    assert list(after["network_weights"]) == list(before["network_weights"])
    assert all(
        torch.equal(after["network_weights"][key], before["network_weights"][key]) for key in after["network_weights"]
    )
    assert ("optimizer_state" in after) == keep_optimizer_state


def test_stock_nnunet_trains_on_from_a_kept_optimizer_state(trained, tmp_path, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    output = tmp_path / "results" / "Dataset905_Test" / STOCK_NAME
    export_model(trained, output, folds=["0"], keep_optimizer_state=True)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    plans = {**json.loads((output / "plans.json").read_text()), "continue_training": True}
    dataset_json = json.loads((output / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer.dataset_class = object
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.infer_dataset_class", lambda folder: object)
    trainer.load_checkpoint(str(output / "fold_0" / "checkpoint_final.pth"))
    assert Path(trainer.output_folder) == output / "fold_0"
    assert (trainer.current_epoch, trainer._best_ema) == (1, 0.5)


def test_a_given_image_is_predicted_alike(trained, tmp_path, make_nnunet_project):
    image = make_nnunet_project().raw / "imagesTr" / "tumor_0_0000.nii.gz"
    _, verification = export_model(trained, tmp_path / STOCK_NAME, verify_with=[image])
    assert verification["image"] == "given by the exporter"
    assert verification["shape"] == (40, 40, 40)
    assert sum(verification["predicted_voxels_by_label"].values()) == 40**3
    assert "tumor_0" not in (tmp_path / STOCK_NAME / MANIFEST_NAME).read_text()


@pytest.mark.parametrize("damage", ["weights", "axes", "precision"])
def test_another_prediction_fails_and_leaves_nothing(trained, tmp_path, monkeypatch, damage):
    def damaged(*arguments, **options):
        content = original(*arguments, **options)
        weights = content["network_weights"]
        key = [key for key in weights if "seg_layers" in key and key.endswith("weight")][-1]
        if damage == "weights":
            weights[key] = weights[key] * 1.01
        elif damage == "precision":
            weights.update({name: value.half().float() for name, value in weights.items()})
        else:
            content["inference_allowed_mirroring_axes"] = (0, 1)
        return content

    original = model_export._stock_checkpoint
    monkeypatch.setattr(model_export, "_stock_checkpoint", damaged)
    with pytest.raises(ModelExportError, match="does not predict what the original predicts"):
        export_model(trained, tmp_path / STOCK_NAME)
    assert list(tmp_path.iterdir()) == []


OWN_NETWORK = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunet_difftumor.trainer.mixin import DiffTumorMixin

class nnUNetTrainerOwnNetwork(DiffTumorMixin, nnUNetTrainer):
    @staticmethod
    def build_network_architecture(*arguments, **options):
        return nnUNetTrainer.build_network_architecture(*arguments, **options)

class nnUNetTrainerOwnSchedule(DiffTumorMixin, nnUNetTrainer):
    pass
"""


def rename_trainer(folder, output, name):
    shutil.copytree(folder, output)
    for path in output.glob("fold_*/checkpoint_final.pth"):
        torch.save({**torch.load(path, weights_only=False), "trainer_name": name}, path)
    return output


def test_a_trainer_that_builds_its_own_network_is_refused(trained, tmp_path, monkeypatch):
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "own.py").write_text(OWN_NETWORK)
    own = rename_trainer(trained, tmp_path / "own", "nnUNetTrainerOwnNetwork")
    with pytest.raises(ConfigurationError, match=r"nnUNetTrainerOwnNetwork.*nnUNet_extTrainer"):
        export_model(own, tmp_path / STOCK_NAME)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    with pytest.raises(ModelExportError, match=r"nnUNetTrainerOwnNetwork builds its network itself"):
        export_model(own, tmp_path / STOCK_NAME)
    assert not (tmp_path / STOCK_NAME).exists()
    export_model(rename_trainer(trained, tmp_path / "schedule", "nnUNetTrainerOwnSchedule"), tmp_path / STOCK_NAME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
        (
            {
                "architecture": {
                    "network_class_name": "hospital.nets.Net",
                    "arch_kwargs": {"norm_op": "hospital.Norm", "nonlin": "torch.nn.ReLU", "dropout_op": None},
                    "_kw_requires_import": ["norm_op", "nonlin", "dropout_op"],
                }
            },
            "hospital.nets.Net, hospital.Norm, which does not come with nnU-Net",
        ),
    ],
    ids=["cascade", "foreign network"],
)
def test_plans_that_stock_nnunet_cannot_use_are_refused(trained, tmp_path, changes, message):
    with pytest.raises(ModelExportError, match=message):
        export_model(edit_plans(trained, tmp_path / "model", **changes), tmp_path / STOCK_NAME)


def break_checkpoint(folder):
    (folder / "fold_1" / "checkpoint_final.pth").write_bytes(b"no pickle")


def mix_trainers(folder):
    path = folder / "fold_1" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "trainer_name": "nnUNetTrainer"}, path)


def remove_plans(folder):
    (folder / "plans.json").unlink()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (break_checkpoint, {}, r"fold_1.checkpoint_final.pth cannot be read"),
        (mix_trainers, {}, r"not trained alike \(fold 0: nnUNetTrainerDiffTumor 3d_fullres, fold 1: nnUNetTrainer "),
        (remove_plans, {}, r"plans.json cannot be read.*--model needs the folder"),
        (None, {"folds": ["0", "3"]}, r"no checkpoint_final.pth for fold 3; it has fold 0, 1"),
        (None, {"checkpoint": "checkpoint_best.pth"}, r"checkpoint_best.pth. There is checkpoint_final.pth: name one"),
        (None, {"verify_with": [Path("a.nii.gz"), Path("b.nii.gz")]}, r"takes 1 channels \(CT\).*names 2 files"),
        (None, {"verify_with": [Path("a.nii.gz")]}, r"a.nii.gz does not exist"),
    ],
)
def test_what_cannot_be_exported_is_told_and_nothing_is_left(trained, tmp_path, change, options, message):
    folder = trained
    if change is not None:
        folder = tmp_path / "model"
        shutil.copytree(trained, folder)
        change(folder)
    with pytest.raises(ModelExportError, match=message):
        export_model(folder, tmp_path / "export" / STOCK_NAME, **options)
    assert not list((tmp_path / "export").glob("*"))


def test_one_fold_in_place_of_the_model_is_told(trained, tmp_path):
    with pytest.raises(ModelExportError, match="is one fold; give the folder above it"):
        export_model(trained / "fold_0", tmp_path / STOCK_NAME)


def test_the_output_needs_nnunets_name_and_is_never_overwritten(trained, tmp_path, capsys):
    words = ["export-model", "--model", str(trained), "--output"]
    assert main([*words, str(tmp_path / "export")]) == 1
    assert f"Give {tmp_path / 'export' / STOCK_NAME}" in capsys.readouterr().err
    (tmp_path / STOCK_NAME).mkdir()
    (tmp_path / STOCK_NAME / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        export_model(trained, tmp_path / STOCK_NAME)
    assert [path.name for path in tmp_path.rglob("*")] == [STOCK_NAME, "mine.txt"]


def test_the_command_says_how_to_predict(trained, tmp_path, capsys):
    words = ["export-model", "--model", str(trained), "--output", str(tmp_path / STOCK_NAME), "--folds", "0"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "Same predictions as the original, to the bit, on a synthetic volume of 40 x 40 x 40 voxels." in printed
    assert "nnUNetv2_predict -d Dataset905_Test -c 3d_fullres -p nnUNetPlans -f 0 -chk checkpoint_final.pth" in printed
    assert "Left out: plans.json[made_from], dataset.json[" in printed


OWN_DISTRIBUTION = ("nnunet_difftumor", "nnunet-difftumor", "autoencoder", "diffusion")
PREDICT = """
import importlib.util
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
if __name__ == "__main__":
    assert importlib.util.find_spec("nnunet_difftumor") is None, "this package is installed here"
    predict_entry_point()
"""


def make_stock_environment(folder):
    """A virtual environment with every installed distribution but this one; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for source in site.getsitepackages():
        for entry in Path(source).iterdir():
            is_own = any(name in entry.name.lower() for name in OWN_DISTRIBUTION[:2]) or entry.name in OWN_DISTRIBUTION
            if not is_own and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_stock_nnunet_predicts_the_same_files_without_this_package(make_nnunet_project, tmp_path):
    project = make_nnunet_project()
    environment = project.environment()
    binaries = Path(sys.executable).parent

    def run(program, *words, **variables):
        done = subprocess.run(
            [str(program), *map(str, words)],
            env={**environment, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run(binaries / "nnUNetv2_train", "905", "3d_fullres", "0", "-tr", "nnUNetTrainerDiffTumor", "-device", "cpu")
    model = project.output().parent
    results = tmp_path / "results"
    exported = results / project.raw.name / STOCK_NAME
    run(binaries / "difftumor", "export-model", "--model", model, "--output", exported)
    names = {path.name.removesuffix(".nii.gz") for path in (project.raw / "labelsTr").iterdir()}
    assert not [(path, name) for path in exported.rglob("*.*") for name in names if name.encode() in path.read_bytes()]

    (tmp_path / "images").mkdir()
    for name in ("tumor_0", "healthy_0"):
        shutil.copy(project.raw / "imagesTr" / f"{name}_0000.nii.gz", tmp_path / "images")
    words = ("-d", "905", "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "-i", "images")
    words = (*words, "--save_probabilities")
    run(binaries / "nnUNetv2_predict", *words, "-tr", "nnUNetTrainerDiffTumor", "-o", "original")
    stock = make_stock_environment(tmp_path / "stock")
    environment.pop("PYTHONPATH", None)
    (tmp_path / "predict.py").write_text(PREDICT)
    run(stock, "predict.py", *words, "-o", "stock_predictions", nnUNet_results=str(results), nnUNet_extTrainer="")
    for name in ("tumor_0", "healthy_0"):
        segmentations = [tmp_path / folder / f"{name}.nii.gz" for folder in ("original", "stock_predictions")]
        assert segmentations[0].read_bytes() == segmentations[1].read_bytes()
        probabilities = [np.load(path.with_name(f"{name}.npz"))["probabilities"] for path in segmentations]
        assert np.array_equal(*probabilities)
        assert probabilities[0].std() > 0
        assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(segmentations[0]))).shape == (40, 40, 40)
