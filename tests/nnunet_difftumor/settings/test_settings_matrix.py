"""nnU-Net's settings through the trainer: labels, networks, patches, start methods, numbers of workers."""

import json
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist

from nnunet_difftumor.injection.log import read_counts
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

LABELLINGS = ("plain", "regions", "ignore", "regions+ignore")
NETWORKS = ("isotropic", "dummy-2D", "ResEnc")
BIG_ENOUGH_FOR_COARSE_TARGETS = [{"name": "medium", "radius_mm": [8, 10], "probability": 1}]


def prepare(project, network, **settings):
    {"isotropic": lambda: None, "dummy-2D": project.use_dummy_2d, "ResEnc": project.use_residual_encoder}[network]()
    project.configure(size_classes=BIG_ENOUGH_FOR_COARSE_TARGETS, **settings)


def make_trainer(project):
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    plans["continue_training"] = False
    return nnUNetTrainerDiffTumor(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))


@pytest.fixture
def make_project(make_nnunet_project, monkeypatch):
    def make(**options):
        project = make_nnunet_project(**options)
        for key, value in project.environment().items():
            if key.startswith("nnUNet_"):
                monkeypatch.setenv(key, value)
        monkeypatch.delenv("nnUNet_difftumor", raising=False)
        return project

    return make


@pytest.mark.parametrize(
    ("labelling", "network"),
    [("regions", "isotropic"), ("ignore", "dummy-2D"), ("regions+ignore", "ResEnc")],
)
def test_every_kind_of_labels_trains_and_validates(make_project, labelling, network):
    project = make_project(labelling=labelling)
    prepare(project, network, num_iterations_per_epoch=3)
    make_trainer(project).run_training()
    counts = read_counts(project.output() / "injection_counts.csv")[0]
    assert counts["injected"] > 0
    assert counts["carrying"] == counts["healthy_samples"]
    assert (project.output() / "checkpoint_final.pth").is_file()


def test_without_deep_supervision_tumors_are_counted_as_well(make_project, monkeypatch):
    project = make_project()
    prepare(project, "isotropic", num_iterations_per_epoch=3)
    trainer = make_trainer(project)
    trainer.enable_deep_supervision = False
    trainer.run_training()
    assert read_counts(project.output() / "injection_counts.csv")[0]["injected"] > 0


def test_a_patch_larger_than_the_scan_is_padded(make_project):
    project = make_project()
    prepare(project, "isotropic", num_iterations_per_epoch=3)
    project.edit_plans(patch_size=[48, 56, 64])  # the scans have 40 voxels a side
    make_trainer(project).run_training()
    assert read_counts(project.output() / "injection_counts.csv")[0]["injected"] > 0


COMPARE = """
import json, multiprocessing, sys
from pathlib import Path

def check(start, labels, probability):
    import torch
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

    folder = Path(sys.argv[2])
    plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    trainer = nnUNetTrainerDiffTumor({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json,
                                     torch.device("cpu"))
    trainer.initialize()
    trainer._start_workers = lambda train, validation: (train, validation)
    ours, _ = trainer.get_dataloaders()
    stock = nnUNetTrainer.get_dataloaders(trainer)[0].data_loader

    def take(loader, count):
        workers = NonDetMultiThreadedAugmenter(loader, None, 1, 2, [1234], False, 0.002)
        try:
            return [next(workers) for _ in range(count)]
        finally:
            workers._finish()

    if probability == 0:
        for mine, theirs in zip(take(ours, 6), take(stock, 6), strict=True):
            assert list(mine["keys"]) == list(theirs["keys"])
            assert torch.equal(mine["data"], theirs["data"])
            assert len(mine["target"]) == len(theirs["target"]) >= 2
            assert all(torch.equal(a, b) for a, b in zip(mine["target"], theirs["target"], strict=True))
        return
    batches = take(ours, 8)
    counts = [batch["difftumor"]["counts"] for batch in batches]
    injected = sum(each.get("injected", 0) for each in counts)
    healthy = [(batch, i) for batch in batches for i, key in enumerate(batch["keys"]) if key.startswith("healthy")]
    assert sum(each.get("carrying", 0) for each in counts) == len(healthy)
    assert injected >= len(healthy) / 2  # a random crop may miss its case's tumours
    downsample = DownsampleSegForDSTransform(ds_scales=trainer._get_deep_supervision_scales())
    targets = [[scale[i] for scale in batch["target"]] for batch, i in healthy]
    assert sum(bool(t[1].any() if "regions" in labels else (t[0] == 2).any()) for t, *_ in targets) == injected
    for scales in targets:
        coarser = downsample(segmentation=scales[0])["segmentation"]
        assert len(scales) == len(coarser) >= 2
        assert all(torch.equal(a, b) for a, b in zip(scales, coarser, strict=True))

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    check(sys.argv[1], sys.argv[3], float(sys.argv[4]))
    print("equal" if float(sys.argv[4]) == 0 else "in every scale")
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("labelling", LABELLINGS)
def test_matrix(make_project, tmp_path, labelling, network, start):
    """Probability 0 equals stock nnU-Net in a worker that has its seed; at 1, coarse targets are the finest one's."""
    project = make_project(labelling=labelling)
    (tmp_path / "compare.py").write_text(COMPARE)
    for probability, expected in ((0, "equal"), (1, "in every scale")):
        prepare(project, network, injection_probability=probability)
        words = [sys.executable, str(tmp_path / "compare.py"), start, str(project.preprocessed), labelling]
        process = subprocess.run(
            [*words, str(probability)],
            env=project.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        assert process.stdout.strip().endswith(expected)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "3", "8"])
def test_any_number_of_workers(make_project, monkeypatch, workers):
    project = make_project()
    prepare(project, "isotropic")
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    make_trainer(project).run_training()
    assert read_counts(project.output() / "injection_counts.csv")[0]["injected"] > 0


def _load_on_rank(rank, project, rendezvous, found):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    trainer = make_trainer(project)
    trainer._set_batch_size_and_oversample()  # the first step of initialize, which would ask for a GPU under DDP
    trainer._prepare_training()
    train, _ = trainer.get_dataloaders()
    batches = [next(train) for _ in range(4)]
    for batch in batches:
        trainer._prepared.log.add(batch["difftumor"])
    trainer._log_injections()
    reports = [batch["difftumor"] for batch in batches]
    seeds = [drawn["seed"] for report in reports for record in report["records"] for drawn in record["drawn"]]
    injected = sum(report["counts"].get("injected", 0) for report in reports)
    found.put((rank, len(batches[0]["keys"]), injected, seeds))
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_share_the_batch_and_draw_tumors_of_their_own(make_project, tmp_path):
    """As far as nnU-Net goes without GPUs: two processes under gloo load what they would train on."""
    project = make_project()
    project.configure()
    context = mp.get_context("fork")
    found = context.Queue()
    ranks = [
        context.Process(target=_load_on_rank, args=(rank, project, tmp_path / "rendezvous", found)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    results = sorted(found.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    _, sizes, injected, seeds = zip(*results, strict=True)
    assert sizes == (1, 1)  # batch size 2, divided by nnU-Net
    assert min(injected) > 0
    assert len({*seeds[0], *seeds[1]}) == len(seeds[0]) + len(seeds[1])
    assert read_counts(project.output() / "injection_counts.csv")[0]["injected"] == sum(injected)
