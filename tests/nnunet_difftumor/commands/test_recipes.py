"""The studies of docs/how-to/recipes: valid, plannable, and priced as the page says."""

import re
from pathlib import Path

import pytest
import yaml

from nnunet_difftumor.study.data_views import open_data
from nnunet_difftumor.study.plan import read_study
from nnunet_difftumor.study.plan_text import describe_plan
from nnunet_difftumor.study.planning import plan_runs
from nnunet_difftumor.study.settings import ALL_ANNOTATED, STUDY_GENERATOR

HOW_TO = Path(__file__).resolve().parents[3] / "docs" / "how-to"
RECIPES = sorted((HOW_TO / "recipes").glob("*.yaml"))
PAGE = HOW_TO / "reproduce.md"


def write_recipe(recipe, folder, **changes):
    """Copy a recipe, with what the user is to put beside it."""
    content = {**yaml.safe_load(recipe.read_text()), **changes}
    for hospital in content["compare"].get("hospitals", ()):
        for key in ("images", "labels"):
            (folder / hospital[key]).mkdir(parents=True)
    if "metadata" in content["compare"]:
        (folder / content["compare"]["metadata"]).write_text("case,patient,hospital,age,sex,phase,scanner\n")
    path = folder / recipe.name
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_recipe_is_on_the_page():
    linked = re.findall(r"\]\(recipes/(\S+?)\)", PAGE.read_text())
    assert sorted(linked) == [recipe.name for recipe in RECIPES]
    assert len(RECIPES) == 6


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_page_states_what_a_recipe_costs(recipe, tmp_path):
    study = read_study(write_recipe(recipe, tmp_path))
    (row,) = re.findall(rf"^\| {recipe.name} \| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    repetitions = len(study.folds) * len(study.seeds)
    trainings = sum(len(arm.annotated) for arm in study.arms) * repetitions
    seconds = sum(len(arm.annotated) * arm.epochs * arm.seconds_per_epoch for arm in study.arms) * repetitions
    users = [arm for arm in study.arms if arm.settings.get("generator") == STUDY_GENERATOR]
    numbers = {number for arm in users for number in arm.annotated}
    folds = len(study.folds)
    expected = [trainings, round(seconds / 3600), folds, folds * len(numbers)]
    assert [int(cell) for cell in row.split(" | ")] == expected


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_can_be_planned(recipe, make_nnunet_project, monkeypatch, tmp_path):
    project = make_nnunet_project(tumor_cases=6, healthy_cases=5)
    project.activate(monkeypatch)
    written = yaml.safe_load(recipe.read_text())
    positive = [number for number in written["annotated"] if number not in (0, ALL_ANNOTATED)]
    fewer = {number: index for index, number in enumerate(positive, start=1)}  # six cases have to do here
    annotated = [fewer.get(number, number) for number in written["annotated"]]
    study = read_study(write_recipe(recipe, tmp_path, dataset=905, device="cpu", annotated=annotated))
    runs = plan_runs(study, open_data(study), tmp_path / "out")
    assert len(runs) == sum(len(arm.annotated) for arm in study.arms) * 5
    printed = describe_plan(runs)
    assert "time unknown" not in printed
    assert "train-diffusion" in printed
    controls = {run.arm.trainer for run in runs}
    assert controls & {"healthy-only", "hand-crafted"}
    elsewhere = {Path(name) for run in runs for name in run.missing_generators}
    assert {path.parent for path in elsewhere} <= {tmp_path / "generators"}
