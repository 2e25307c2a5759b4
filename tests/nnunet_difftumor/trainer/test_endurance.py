"""Long runs: memory of the loader's workers, a worker that dies, and the crop cache with many volumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_script(script, *words, environment, timeout=1500):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


LOADER = """
import json, os, signal, sys
from pathlib import Path
import torch
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

def resident_mb(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):  # shared pages are divided among the processes that share them
            return int(line.split()[1]) / 1024
    return 0.0

folder, batches, action = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
plans["continue_training"] = False
trainer = nnUNetTrainerDiffTumor(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.initialize()
train, validation = trainer.get_dataloaders()
validation._finish()
if action == "kill":
    next(train)
    os.kill(train._processes[0].pid, signal.SIGKILL)
    for _ in range(1000):
        next(train)
pids = [os.getpid(), *(process.pid for process in train._processes)]
injected, memory = 0, []
for number in range(batches):
    injected += next(train)["difftumor"]["counts"].get("injected", 0)
    if number % 50 == 0:
        memory.append(sum(resident_mb(pid) for pid in pids))
train._finish()
print(json.dumps({"injected": injected, "memory_mb": memory}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc")
def test_memory_is_steady_over_two_thousand_batches(make_nnunet_project):
    project = make_nnunet_project()
    done = run_script(LOADER, project.preprocessed, 2000, "load", environment=_four_workers(project))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["injected"] > 2000
    early = max(found["memory_mb"][4:12])  # after 200 batches every worker has loaded its generator
    assert max(found["memory_mb"][-8:]) < 1.05 * early, found


@pytest.mark.slow
def test_a_killed_worker_ends_training_with_nnunets_error(make_nnunet_project):
    project = make_nnunet_project()
    done = run_script(LOADER, project.preprocessed, 10, "kill", environment=_four_workers(project), timeout=300)
    assert done.returncode != 0
    assert "One or more background workers are no longer alive" in done.stderr


def _four_workers(project):
    return {**project.environment(), "nnUNet_n_proc_DA": "4"}


CACHE = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from autoencoder.presets import AUTOENCODER_PRESETS
from nnunet_difftumor.generator_training.crop_cache import build_crop_cache
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.generator_training.batches import AutoencoderCrops
import nibabel, numpy as np

folder, count = Path(sys.argv[1]), int(sys.argv[2])
image_hu = np.random.default_rng(0).normal(0, 60, (64, 96, 96)).astype(np.int16)
cases = []
for number in range(count):
    path = folder / f"{count}_{number:03d}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image_hu + number % 7, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    cases.append(Case(path.name[: -len(".nii.gz")], path))
cache = build_crop_cache(cases, folder / f"cache_{count}")
assert len(cache) == count
nano = replace(AUTOENCODER_PRESETS["nano"], crop_sides=(32,), crop_probabilities=(1.0,), voxels_per_batch=2 * 32**3)
batches = AutoencoderCrops(cache, nano, seed=0)
for index in range(300):
    batches[index]
pages = int(Path("/proc/self/statm").read_text().split()[1])
print(pages * resource.getpagesize() / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_two_hundred_volumes_take_no_more_memory_than_ten(tmp_path):
    resident_mb = {}
    for count in (10, 200):
        done = run_script(CACHE, tmp_path, count, environment={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        resident_mb[count] = float(done.stdout.splitlines()[-1])
    print(resident_mb)
    assert resident_mb[200] < 1.1 * resident_mb[10], resident_mb
