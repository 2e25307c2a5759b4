"""nnU-Net's own commands with the trainer, each in a process of its own."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
TRAIN = ["nnUNetv2_train", "905", "3d_fullres", "0", "-tr", "nnUNetTrainerDiffTumor", "-device", "cpu"]


def run(project, *words, **options):
    return project.run(*words, **options)


def read_counts(output):
    with (output / "injection_counts.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_injects_tumors_and_validates_on_real_ones(make_nnunet_project):
    project = make_nnunet_project()
    project.configure(num_iterations_per_epoch=12, healthy_share=0.5)  # enough that both kinds are drawn
    printed = run(project, *TRAIN, environment={"nnUNet_n_proc_DA": "1"})
    output = project.output()
    assert "Synthetic tumours: healthy samples" in printed
    log = next(output.glob("training_log_*.txt")).read_text()
    assert "Synthetic tumours: healthy samples" in log
    assert "injection_probability: 1.0" in log
    row = read_counts(output)[0]
    rejected = sum(int(value) for key, value in row.items() if key.startswith("rejected_"))
    assert int(row["carrying"]) == int(row["healthy_samples"]) > 0
    assert int(row["carrying"]) == int(row["injected"]) + int(row["out_of_view"]) + rejected
    assert "Expected before augmentation. Samples show: annotated cases" in log
    assert "Samples show: annotated cases" in log.split("Epoch 0", 1)[1]
    recorded = json.loads((output / "difftumor_config.json").read_text())
    assert recorded["settings"]["num_iterations_per_epoch"] == 12
    assert recorded["origins"]["generator"].endswith("difftumor.json")
    split = json.loads((output / "difftumor_split.json").read_text())
    assert all(case.startswith("tumor") for case in split["val"])
    assert not set(split["holdout"]) & {*split["train"], *split["val"]}
    records = (output / "difftumor_records.jsonl").read_text().splitlines()
    assert len(records) == int(row["injected"])
    summary = json.loads((output / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == len(split["val"])
    assert (output / "checkpoint_final.pth").is_file()


PREDICT = """
import sys
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
if __name__ == "__main__":
    predict_entry_point()
    print("heavy:", [name for name in ("diffusers", "monai", "accelerate", "diffusion") if name in sys.modules])
"""


@pytest.mark.slow
def test_from_raw_data_to_prediction(make_nnunet_project, tmp_path):
    project = make_nnunet_project(is_preprocessed=False)
    project.preprocessed.mkdir(parents=True)
    run(project, "difftumor", "splits", "-d", "905", "--folds", "3")
    planning = {"nnUNet_n_proc_DA": "1"}  # nnU-Net's planning does not take 0
    words = ("-d", "905", "-c", "3d_fullres", "-np", "1", "-npfp", "1", "--verify_dataset_integrity")
    run(project, "nnUNetv2_plan_and_preprocess", *words, environment=planning)
    project.shrink_plans()
    project.configure()
    output = project.output()
    run(project, *TRAIN, environment={"nnUNet_n_proc_DA": "2"})
    assert len(read_counts(output)) == 1
    splits = json.loads((project.preprocessed / "splits_final.json").read_text())
    assert json.loads((output / "difftumor_split.json").read_text())["val"] == splits[0]["val"]

    project.configure(num_epochs=2)
    printed = run(project, *TRAIN, "--c")
    assert "Epoch 1" in printed
    assert "Epoch 0" not in printed
    assert [row["epoch"] for row in read_counts(output)] == ["0", "1"]

    project.configure(num_epochs=2, injection_probability=0.25)
    assert "injection_probability: 1.0 was used, now 0.25" in run(project, *TRAIN, "--c", expected=1)

    (project.preprocessed / "difftumor.json").unlink()  # validation and prediction need no settings and no generator
    (output / "validation" / "summary.json").unlink()
    run(project, *TRAIN, "--val")
    assert (output / "validation" / "summary.json").is_file()

    (tmp_path / "predict.py").write_text(PREDICT)
    words = ["-i", str(project.raw / "imagesTr"), "-o", str(tmp_path / "predicted"), "-d", "905", "-c", "3d_fullres"]
    words += ["-f", "0", "-tr", "nnUNetTrainerDiffTumor", "-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1"]
    printed = run(project, "python", str(tmp_path / "predict.py"), *words)
    assert "heavy: []" in printed
    assert len(list((tmp_path / "predicted").glob("*.nii.gz"))) == 11


SPAWN = """
import multiprocessing
from nnunetv2.run.run_training import run_training_entry
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    run_training_entry()
"""


@pytest.mark.slow
def test_workers_can_be_spawned(make_nnunet_project, tmp_path):
    project = make_nnunet_project()
    (tmp_path / "train.py").write_text(SPAWN)
    run(project, "python", str(tmp_path / "train.py"), *TRAIN[1:], environment={"nnUNet_n_proc_DA": "1"})
    assert int(read_counts(project.output())[0]["injected"]) > 0


@pytest.mark.slow
def test_a_killed_training_continues(make_nnunet_project):
    project = make_nnunet_project()
    project.configure(num_epochs=3)
    process = subprocess.Popen(
        [str(BIN / TRAIN[0]), *TRAIN[1:]], env=project.environment(), stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout or ():
        if "Epoch 1" in line:
            process.kill()
            break
    process.wait()
    printed = run(project, *TRAIN, "--c")
    assert "Epoch 2" in printed
    assert [row["epoch"] for row in read_counts(project.output())] == ["0", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer",
    ["nnUNetTrainerHealthyOnly", "nnUNetTrainerCopyPaste", "nnUNetTrainerHandcrafted", "nnUNetTrainerMisplaced"],
)
def test_control_arms_train_and_predict(make_nnunet_project, tmp_path, trainer):
    project = make_nnunet_project()
    project.configure(generator=None)
    words = ["nnUNetv2_train", "905", "3d_fullres", "0", "-tr", trainer, "-device", "cpu"]
    printed = run(project, *words, environment={"nnUNet_n_proc_DA": "1"})
    output = project.output(trainer=trainer)
    row = read_counts(output)[0]
    if trainer == "nnUNetTrainerHealthyOnly":
        assert "Synthetic tumours: none in this arm" in printed
        assert int(row["control_samples"]) == int(row["healthy_samples"]) > 0
        assert int(row["injected"]) == 0
    else:
        assert int(row["injected"]) + int(row["out_of_view"]) >= 0.8 * int(row["carrying"]) > 0
        assert (output / "injection_histogram.csv").is_file()
    predicted = tmp_path / "predicted"
    names = ["-d", "905", "-c", "3d_fullres", "-tr", trainer, "-f", "0", "-device", "cpu"]
    run(project, "nnUNetv2_predict", "-i", str(project.raw / "imagesTr"), "-o", str(predicted), *names, "-npp", "1")
    assert len(list(predicted.glob("*.nii.gz"))) == len(list((project.raw / "labelsTr").glob("*.nii.gz")))
