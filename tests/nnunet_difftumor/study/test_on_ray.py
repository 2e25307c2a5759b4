"""A study on a Ray of its own on this machine, through the command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml


def terminate_while_training(words, project, output):
    """Start the study, end it in the middle of a training, and see that no training is left behind."""
    program = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    process = subprocess.Popen(program, env=project.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not any((output / "runs").rglob("training_log_*.txt")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    assert processes_of(output, b"nnUNet_difftumor_cpu_threads=1\0") == processes_of(output) != []
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 143, printed
    assert b"Ending the trainings on Ray" in printed
    assert processes_of(output) == []


def processes_of(output, variable=b""):
    """Command lines of processes whose results would go to a folder, of those only that have the variable too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes()
            if os.fsencode(f"nnUNet_results={output}") in variables and variable in variables:
                found.append((folder / "cmdline").read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_study_is_trained_and_compared_on_ray(make_nnunet_project, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    project = make_nnunet_project(tumor_cases=6, healthy_cases=5)
    arms = [
        {"name": "nnU-Net", "trainer": "stock", "healthy": False},
        {"name": "DiffTumor", "trainer": "difftumor", "generator": "study"},
        {"name": "no generator", "trainer": "difftumor", "generator": "nowhere"},
    ]
    study = {
        "dataset": 905,
        "device": "cpu",
        "annotated": [3],
        "schedule": {"epochs": 1, "iterations": 2, "val_iterations": 1},
        "generators": {"preset": "nano", "autoencoder_steps": 2, "diffusion_steps": 2},
        "arms": arms,
        "compare": {"statistics": {"draws": 1000}},
    }
    path, output = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(study))
    words = ["difftumor", "experiment", str(path), "--output", str(output), "--ray", "--cpus-per-run", "1"]

    terminate_while_training(words, project, output)
    printed = project.run(*words, expected=1)
    runs = [output / "runs" / f"{name}.annotated-3.fold-0.seed-0" for name in ("nnU-Net", "DiffTumor")]
    done = [run / "done.json" for run in runs]
    assert all(file.is_file() for file in done), printed
    finished_at = [file.stat().st_mtime_ns for file in done]
    assert "1 of 3 runs failed: no_generator" in printed
    assert "nowhere does not exist" in printed
    generator = output / "generators" / "fold-0.annotated-3"
    assert json.loads((runs[1] / "settings.json").read_text())["generator"] == str(generator / "generator")
    order = [output / "generators" / "fold-0.autoencoder", generator, runs[1]]
    times = [(folder / "done.json").stat().st_mtime_ns for folder in order]
    assert times == sorted(times)

    path.write_text(yaml.safe_dump({**study, "arms": arms[:2]}))
    printed = project.run(*words)
    assert "2 runs, 2 done before, 0 to train on Ray" in printed
    assert [file.stat().st_mtime_ns for file in done] == finished_at
    assert (output / "compare" / "annotated-3" / "report" / "report.html").is_file()
