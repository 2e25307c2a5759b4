"""A study through nnU-Net's own commands: killed, given again, compared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml


@pytest.mark.slow
def test_a_killed_study_is_finished_by_the_same_command(make_nnunet_project, tmp_path):
    project = make_nnunet_project(tumor_cases=6, healthy_cases=5)
    study = {
        "dataset": 905,
        "device": "cpu",
        "annotated": [3],
        "exposure": "equal",
        "schedule": {"epochs": 1, "iterations": 2, "val_iterations": 1},
        "arms": [
            {"name": "nnU-Net", "trainer": "stock", "healthy": False},
            {"name": "DiffTumor", "trainer": "difftumor", "generator": "study", "healthy_share": 0.5},
        ],
        "generators": {"preset": "nano", "autoencoder_steps": 2, "diffusion_steps": 2},
        "compare": {
            "hospitals": [
                {"name": "X", "images": str(project.raw / "imagesTr"), "labels": str(tmp_path / "labels")},
            ],
            "prediction": {"mirroring": False, "processes": 1},
            "statistics": {"draws": 1000},
        },
    }
    runs = [f"{arm}.annotated-3.fold-0.seed-0" for arm in ("nnU-Net", "DiffTumor")]
    (tmp_path / "labels").mkdir()
    path, output = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump({**study, "compare": {}}))
    printed = project.run("difftumor", "experiment", str(path), "--output", str(output), "--dry-run")
    held_out = json.loads(_view_of(project, path, output, printed).read_text())[0]["val"]
    for case in held_out:
        (tmp_path / "labels" / f"{case}.nii.gz").symlink_to(project.raw / "labelsTr" / f"{case}.nii.gz")
    path.write_text(yaml.safe_dump(study))

    words = [str(Path(sys.executable).parent / "difftumor"), "experiment", str(path), "--output", str(output)]
    environment = {**project.environment(), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    second = output / "runs" / runs[1] / "results"
    while not any(second.rglob("training_log_*.txt")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
    done = [output / "runs" / name / "done.json" for name in runs]
    assert [file.is_file() for file in done] == [True, False]
    finished_at = done[0].stat().st_mtime_ns

    printed = project.run(*words[:0], "difftumor", *words[1:])
    assert f"{runs[0]}\n    done before, skipped" in printed
    assert [file.is_file() for file in done] == [True, True]
    assert done[0].stat().st_mtime_ns == finished_at
    assert len(list((output / "runs" / runs[0] / "logs").iterdir())) == 1
    for name in runs:
        results = output / "runs" / name / "results"
        (summary,) = results.rglob("validation/summary.json")
        cases = {Path(case["prediction_file"]).name for case in json.loads(summary.read_text())["metric_per_case"]}
        assert cases == {f"{case}.nii.gz" for case in held_out}
        (samples,) = results.rglob("samples_seen.csv")
        seen = pd.read_csv(samples).set_index("case")["samples"]
        train = json.loads((output / "runs" / name / "run.json").read_text())["train"]
        assert set(seen.index) <= set(train)
        assert seen.sum() == (4 if name.startswith("nnU-Net") else 8)  # of 2 iterations of 2, in 1 and 2 epochs
    check_generator(output, second)
    split = json.loads(next(second.rglob("difftumor_split.json")).read_text())
    assert len([case for case in split["train"] if case.startswith("tumor")]) == 3
    report = output / "compare" / "annotated-3" / "report"
    assert (report / "report.html").is_file()
    arms = pd.read_csv(report / "arms.csv").query("group_kind == 'all' and measure == 'dice'")
    assert set(arms["arm"]) == {"nnU-Net", "DiffTumor"}
    assert "done before, skipped" in project.run("difftumor", *words[1:])


def check_generator(output, results):
    """The generator that the trainer took is the study's, and learnt from the tumour cases of its arm alone."""
    root = output / "generators"
    settings = json.loads((results.parent / "settings.json").read_text())
    assert settings["generator"] == str(root / "fold-0.annotated-3" / "generator")
    used = json.loads((root / "fold-0.annotated-3" / "cases.json").read_text())
    split = json.loads(next(results.rglob("difftumor_split.json")).read_text())
    assert sorted(used["training"]) == sorted(case for case in split["train"] if case.startswith("tumor"))
    seen = json.loads((root / "fold-0.autoencoder" / "cases.json").read_text())["training"]
    assert len([case for case in seen if case.startswith("tumor")]) > 3
    assert set(split["train"]) <= set(seen)
    assert not set(split["val"]) & set(seen)
    for name in ("fold-0.autoencoder", "fold-0.annotated-3"):
        assert (root / name / "done.json").is_file()
        assert len(list((root / "training" / name / "logs").iterdir())) == 1


def _view_of(project, path, output, printed):
    """The lists of the study: the view is made by the first training, so the same lists are made here."""
    assert not output.exists()
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from nnunet_difftumor.study.data_views import make_view, open_data\n"
        "from nnunet_difftumor.study.plan import read_study\n"
        "data = open_data(read_study(Path(sys.argv[1])))\n"
        "make_view(data, Path(sys.argv[2]) / 'annotated-3', data.lists_of_view(3, healthy=True))\n"
    )
    words = [sys.executable, "-c", script, str(path), str(output / "data")]
    subprocess.run(words, env={**os.environ, **project.environment()}, check=True, timeout=120)
    assert "nnUNetTrainerScheduled" in printed
    return output / "data" / "annotated-3" / "Dataset905_Test" / "splits_final.json"
