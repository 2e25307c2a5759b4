"""Plans that a CPU can train: nnU-Net builds and trains them, and nothing but patch and network is another."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import ConfigurationError, DatasetError, OutputExistsError
from nnunet_difftumor.trainer.small_plans import MOST_VOXELS, SmallNetwork, plan_small_network, write_small_plans

NETWORK = SmallNetwork(patch_size=(16, 32, 32), features=(8, 16), strides=((1, 1, 1), (2, 2, 2)))
CHANGED = {"patch_size", "batch_size", "batch_dice", "data_identifier", "architecture"}


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project(tumor_cases=3, healthy_cases=3)
    project.activate(monkeypatch)
    return project


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_everything_but_patch_and_network_is_kept(project):
    plans = read(project.preprocessed / "nnUNetPlans.json")
    path, network = write_small_plans(project.preprocessed, NETWORK)
    small = read(path)
    assert path.name == "nnUNetPlansSmall.json"
    assert network == NETWORK
    written, before = small["configurations"].pop("3d_fullres"), plans["configurations"].pop("3d_fullres")
    assert small == {**plans, "plans_name": "nnUNetPlansSmall"}
    assert {key for key in written if written[key] != before[key]} <= CHANGED
    assert written["patch_size"] == [16, 32, 32]
    assert written["batch_size"] == 2
    assert written["data_identifier"] == "nnUNetPlansSmall_3d_fullres"
    kwargs = written["architecture"]["arch_kwargs"]
    assert kwargs["features_per_stage"] == [8, 16]
    assert kwargs["norm_op"] == before["architecture"]["arch_kwargs"]["norm_op"]
    assert read(project.preprocessed / "nnUNetPlans.json")["configurations"] == {"3d_fullres": before}


@pytest.mark.parametrize("is_residual", [False, True])
def test_nnunet_builds_the_planned_network_and_a_patch_goes_through_it(project, is_residual):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(1)
    if is_residual:
        project.use_residual_encoder()
    path, planned = write_small_plans(project.preprocessed)
    configuration = PlansManager(str(path)).get_configuration("3d_fullres")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        3,
        deep_supervision=False,
    )
    assert configuration.patch_size == list(planned.patch_size) == [40, 40, 40]  # the whole of a case
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *planned.patch_size)).shape == (1, 3, 40, 40, 40)
    assert sum(each.numel() for each in network.parameters()) < 1e6


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.4, 8), min_size=3, max_size=3), st.lists(st.integers(8, 700), min_size=3, max_size=3))
def test_a_patch_is_limited_divisible_and_inside_the_median_scan(spacing_mm, shape):
    network = plan_small_network(spacing_mm, shape)
    reduction = np.prod(network.strides, axis=0)
    assert math.prod(network.patch_size) <= MOST_VOXELS
    assert all(0 < size <= most for size, most in zip(network.patch_size, shape, strict=True))
    assert all(size % step == 0 for size, step in zip(network.patch_size, reduction, strict=True))
    assert len(network.features) == len(network.strides)
    assert max(network.features) <= 64


def test_a_patch_is_as_long_in_mm_along_all_axes_where_the_scan_is():
    sides_mm = np.multiply(plan_small_network((2.5, 0.8, 0.8), (400, 512, 512)).patch_size, (2.5, 0.8, 0.8))
    assert sides_mm.max() / sides_mm.min() < 1.25
    assert sides_mm.min() > 45


def test_a_configuration_that_inherits_stands_alone_in_the_copy(project):
    file = project.preprocessed / "nnUNetPlans.json"
    plans = read(file)
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "spacing": [3.0, 3.0, 3.0], "next_stage": "gone"}
    file.write_text(json.dumps(plans))
    path, _ = write_small_plans(project.preprocessed, configuration="mine", name="mine")
    (written,) = read(path)["configurations"].values()
    assert written["spacing"] == [3.0, 3.0, 3.0]
    assert written["normalization_schemes"] == ["CTNormalization"]
    assert not {"inherits_from", "next_stage"} & set(written)


@pytest.mark.parametrize("content", [{"patch_size": [64, 64]}, {"previous_stage": "3d_lowres"}])
def test_2d_and_cascades_are_refused(project, content):
    file = project.preprocessed / "nnUNetPlans.json"
    plans = read(file)
    plans["configurations"]["other"] = {**plans["configurations"]["3d_fullres"], **content}
    file.write_text(json.dumps(plans))
    with pytest.raises(ConfigurationError, match="3d_fullres"):
        write_small_plans(project.preprocessed, configuration="other")


@pytest.mark.parametrize("name", ["nnUNetPlans", "../nnUNetPlansSmall"])
def test_the_plans_themselves_are_never_the_copy(project, name):
    before = (project.preprocessed / "nnUNetPlans.json").read_bytes()
    with pytest.raises(ConfigurationError, match="a name of its own"):
        write_small_plans(project.preprocessed, name=name, overwrite=True)
    assert (project.preprocessed / "nnUNetPlans.json").read_bytes() == before


def test_a_file_is_replaced_only_where_that_is_asked_for(project):
    path = project.preprocessed / "nnUNetPlansSmall.json"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_small_plans(project.preprocessed)
    assert path.read_text() == "mine"
    assert main(["small-plans", "-d", "905", "--overwrite"]) == 0
    assert read(path)["plans_name"] == "nnUNetPlansSmall"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-d", "8"], "no data set '8'"),
        (["-d", "Dataset008_Nowhere"], "Run nnUNetv2_plan_and_preprocess -d 8 -c 3d_fullres"),
        (["-d", "905", "-p", "nnUNetResEncUNetMPlans"], "name other plans (-p; there are: nnUNetPlans)"),
        (["-d", "905", "-c", "3d_lowres"], "has no configuration '3d_lowres', but 3d_fullres"),
    ],
)
def test_what_is_missing_is_named(project, words, says, capsys):
    assert main(["small-plans", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"difftumor small-plans: {DatasetError.__name__}: ")
    assert says in line
    assert not list(project.preprocessed.parent.rglob("*Small*"))
