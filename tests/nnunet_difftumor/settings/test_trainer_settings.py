import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.settings.resolving import ResolvedConfig, changed_settings, config_from_json, resolve_config
from nnunet_difftumor.settings.sources import ConfigSource, find_sources
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig
from nnunet_difftumor.synthesis.tissue import generator_names as builtin
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES

LIVER = {"background": 0, "liver": 1, "tumor": 2}


def source(name="test", **values):
    return ConfigSource(name, values, Path("/data"))


def resolve(labels=LIVER, **values):
    return resolve_config(labels, [source(**values)]).config


@pytest.mark.parametrize(
    ("labels", "organ", "tumor"),
    [
        ({"background": 0, "liver": 1, "tumor": 2}, 1, 2),
        ({"background": 0, "liver": 1, "cancer": 2}, 1, 2),
        ({"background": 0, "pancreas": 1, "cancer": 2}, 1, 2),
        ({"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}, 1, 2),
        ({"background": 0, "soft_tissue": 1, "tumor": 2}, 1, 2),
        ({"background": 0, "Kidney": 2, "Tumour": 1}, 2, 1),
        ({"background": 0, "liver": 1, "spleen": 2, "liver_tumor": 3}, 1, 3),
        ({"background": 0, "lung": 1, "nodules": 2}, 1, 2),
        ({"background": 0, "gland": 1, "lesion": 2, "ignore": 3}, 1, 2),
        ({"background": 0, "hepatic vessel": 1, "liver": 3, "tumour": 2}, 3, 2),
        ({"background": 0, "whole_liver": [1, 2], "tumor": 2}, 1, 2),
        ({"background": 0, "liver": [1, 2], "tumor": [2], "ignore": 3}, 1, 2),
        ({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, 1, 2),
        ({"background": 0, "pancreas": [1, 2, 3], "lesion": [2, 3], "necrosis": 3}, 1, 2),
    ],
)
def test_label_roles_are_inferred_from_names(labels, organ, tumor):
    config = resolve_config(labels, []).config
    assert (config.organ_label, config.tumor_label) == (organ, tumor)


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "liver": 1, "kidney": 2, "liver_tumor": 3, "kidney_tumor": 4},
        {"background": 0, "liver": 1, "spleen": 2, "tumor": 3},
        {"background": 0, "vessel": 1, "tumor": 2},
        {"background": 0, "liver": 1},
    ],
)
def test_ambiguous_labels_are_listed(labels):
    with pytest.raises(ConfigurationError, match="cannot be inferred") as error:
        resolve_config(labels, [])
    assert all(f"'{name}'" in str(error.value) for name in labels if name != "background")


def test_a_label_that_means_something_else_is_not_suggested():
    with pytest.raises(ConfigurationError, match='"tumor_label": "NAME"'):
        resolve_config({"background": 0, "liver": 1, "spleen": 2}, [])
    with pytest.raises(ConfigurationError, match='"tumor_label": "liver_tumor"'):
        resolve_config({"background": 0, "liver": 1, "liver_tumor": 2, "kidney": 3, "kidney_tumor": 4}, [])


def test_label_roles_can_be_given_by_name_or_value():
    labels = {"background": 0, "liver": 1, "kidney": 2, "liver_tumor": 3, "kidney_tumor": 4}
    config = resolve(labels, organ_label="kidney", tumor_label=4)
    assert (config.organ_label, config.tumor_label) == (2, 4)
    assert resolve(labels, organ_label="liver").tumor_label == 3
    assert resolve(labels, tumor_label="kidney_tumor").organ_label == 2


def test_a_region_that_does_not_tell_one_value_asks_for_it():
    labels = {"background": 0, "liver": [1, 2, 3], "tumor": [2, 3]}
    with pytest.raises(ConfigurationError, match=r"region 'tumor': 2, 3 of its values.*\"tumor_label\": 2"):
        resolve(labels)
    config = resolve(labels, tumor_label=3)
    assert (config.organ_label, config.tumor_label) == (1, 3)
    labels = {"background": 0, "liver": [1, 2, 4], "tumor": 2}
    with pytest.raises(ConfigurationError, match=r"region 'liver': 1, 4 of its values"):
        resolve(labels)
    assert resolve(labels, organ_label=4).organ_label == 4
    assert not resolve(labels, organ_label=4).exophytic


@pytest.mark.parametrize("wrong", ["spleen", 7, 0, "background"])
def test_a_label_that_is_not_in_the_data_set_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"tumor_label.*'liver': 1"):
        resolve(tumor_label=wrong)


def test_organ_and_tumor_must_differ():
    with pytest.raises(ConfigurationError, match="two labels"):
        resolve(organ_label="tumor", tumor_label="tumor")


def test_only_kidney_tumors_grow_out_of_their_organ_by_default():
    assert not resolve().exophytic
    kidney = {"background": 0, "kidney": 1, "tumor": 2}
    assert resolve(kidney).exophytic
    assert not resolve(kidney, exophytic=False).exophytic


def test_defaults_are_the_papers():
    config = resolve()
    assert config.injection_probability == 0.5
    assert config.steps == 4
    assert config.size_classes == PAPER_SIZE_CLASSES
    early = [size for size in config.size_classes if size.radius_mm[1] <= 10]
    assert sum(size.probability for size in early) == pytest.approx(0.8)
    assert [size.radius_mm for size in config.size_classes] == [(3, 5), (6, 10), (12, 20), (24, 64)]
    assert [size.max_count for size in config.size_classes] == [3, 3, 1, 1]


def test_earlier_sources_win_key_by_key_and_origins_are_told():
    resolved = resolve_config(
        LIVER, [source("environment", seed=3), source("difftumor.json", seed=1, steps=2, generator="g")]
    )
    assert (resolved.config.seed, resolved.config.steps) == (3, 2)
    assert resolved.origins["seed"] == "environment"
    assert resolved.origins["generator"] == "difftumor.json"
    assert resolved.origins["healthy_holdout"] == "default"
    assert set(resolved.origins) == set(DiffTumorConfig.model_fields)


def test_sources_are_found_in_order(tmp_path):
    (tmp_path / "difftumor.json").write_text('{"steps": 2}')
    (tmp_path / "elsewhere.json").write_text('{"steps": 3}')
    found = find_sources(str(tmp_path / "elsewhere.json"), tmp_path, {"labels": LIVER, "difftumor": {"steps": 5}})
    assert [item.values["steps"] for item in found] == [3, 2, 5]
    assert [item.values["steps"] for item in find_sources(None, tmp_path, {})] == [2]


@pytest.mark.parametrize("content", ["{", "[1]", None])
def test_an_unusable_settings_file_is_named(tmp_path, content):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"settings\.json"):
        find_sources(str(path), None, {})


def test_an_unknown_key_is_an_error_with_the_closest_one():
    with pytest.raises(ConfigurationError, match="Did you mean 'injection_probability'"):
        resolve(injection_probabilty=0.3)


@pytest.mark.parametrize("key", ["curriculum_every", "curriculum_samples"])
def test_a_setting_that_is_not_supported_is_refused_with_the_reason(key):
    with pytest.raises(ConfigurationError, match=f"no setting {key}: sizes and contrasts are drawn.*Remove it"):
        resolve(**{key: 1})


def test_errors_name_the_source_and_the_place_in_it():
    with pytest.raises(ConfigurationError, match=r"^weaker, targets\[1\]: probability must be a number of 0 or more"):
        resolve_config(
            LIVER,
            [source("stronger"), source("weaker", targets=[{"organ_label": 1}, {"organ_label": 1, "probability": -1}])],
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("injection_probability", 1.5),
        ("injection_probability", "half"),
        ("injection_probability", True),
        ("healthy_holdout", 1.0),
        ("steps", 0),
        ("steps", 2.5),
        ("seed", -1),
        ("num_epochs", 0),
        ("contrast_hu", [10]),
        ("contrast_hu", [20, -20]),
        ("contrast_hu", ["low", "high"]),
        ("heterogeneity_hu", [10]),
        ("heterogeneity_hu", [12, 4]),
        ("heterogeneity_hu", [-1, 4]),
        ("heterogeneity_hu", 8),
        ("target", "spleen"),
        ("target", 3),
        ("size_classes", []),
        ("size_classes", [{"name": "tiny"}]),
        ("size_classes", [{"name": "tiny", "radius_mm": [5, 3], "probability": 1}]),
        ("size_classes", [{"name": "tiny", "radius_mm": [3, 5], "probability": 1, "colour": 1}]),
        ("size_classes", [{"name": "tiny", "radius_mm": [3, 5], "probability": "1"}]),
        ("size_classes", [{"name": "tiny", "radius_mm": [3, 5], "probability": 1, "max_count": "3"}]),
        ("size_classes", [{"name": "tiny", "radius_mm": [3, 5], "probability": 1, "max_count": 2.5}]),
        ("size_classes", [{"name": 5, "radius_mm": [3, 5], "probability": 1}]),
        ("avoid_labels", [99]),
        ("avoid_labels", ["vein"]),
        ("healthy_cases", "case_1"),
        ("confirmed_healthy", "yes"),
        ("generator", 3),
        ("edge", "reader"),
        ("edge", [-2.0]),
        ("edge", [-9.0, 1.0]),
        ("edge", [0.0, 0.0]),
    ],
)
def test_a_wrong_value_is_refused_by_name(key, value):
    with pytest.raises(ConfigurationError, match=key.removesuffix("es").replace("_", ".")):
        resolve(**{key: value})


def test_an_edge_is_a_word_or_two_numbers():
    assert resolve().edge == "generator"
    assert resolve(edge="fold").edge == "fold"
    assert resolve(edge=[-2.5, 3]).edge == (-2.5, 3.0)


def test_size_classes_are_read_from_json():
    config = resolve(size_classes=[{"name": "mid", "radius_mm": [8, 9], "probability": 2, "max_count": 2}])
    assert (config.size_classes[0].radius_mm, config.size_classes[0].max_count) == ((8.0, 9.0), 2)


def test_settings_survive_json():
    config = resolve(
        generator="g", healthy_cases=["a", "b"], contrast_hu=[-40, -10], heterogeneity_hu=[4, 9], num_epochs=3
    )
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        resolve().seed = 1  # type: ignore[misc]


def test_generator_folder_is_found_by_fold_beside_the_file_that_names_it(tmp_path):
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
    (tmp_path / "fold_1" / "generator").mkdir()
    (tmp_path / "fold_1" / "generator" / "model_index.json").touch()
    resolved = resolve_config(LIVER, [ConfigSource("s", {"generator": "fold_{fold}"}, tmp_path)])
    assert resolved.generator_folder(0) == tmp_path / "fold_0"
    assert resolved.generator_folder(1) == tmp_path / "fold_1" / "generator"  # a whole output folder
    with pytest.raises(ConfigurationError, match=r"fold_2 .*does not exist"):
        resolved.generator_folder(2)


def test_generators_of_the_settings_and_of_targets_start_from_the_folder_of_their_file(monkeypatch):
    monkeypatch.setenv("GENERATORS", "/elsewhere")
    targets = [{"organ_label": "liver", "generator": "$GENERATORS/fold_{fold}"}]
    config = resolve(generator="g", targets=targets)
    assert (config.generator, config.organ_targets[0].generator) == ("/data/g", "/elsewhere/fold_{fold}")
    with pytest.raises(ConfigurationError, match="test: generator names an environment variable that is not set"):
        resolve(generator="$NOT_SET_AT_ALL/g")


def test_without_a_setting_the_builtin_generator_is_used_and_said_to_be_the_default():
    for sources in ([], [source(generator=None)], [source(generator=None), source("weaker", seed=1)]):
        resolved = resolve_config(LIVER, sources)
        assert resolved.config.generator == "builtin:soft-tissue-tiny"
        assert resolved.origins["generator"] == "default"


def test_a_builtin_generator_is_no_path_and_the_same_for_every_fold(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "BUILTIN_ROOT", tmp_path)
    folder = tmp_path / "soft-tissue-tiny"
    resolved = resolve_config(LIVER, [source(generator="builtin:soft-tissue-tiny")])
    assert resolved.config.generator == "builtin:soft-tissue-tiny"
    assert config_from_json(resolved.config.to_json()) == resolved.config
    with pytest.raises(builtin.BuiltinNotInstalledError, match=r"train-diffusion"):
        resolved.generator_folder(0)
    folder.mkdir()
    (folder / "model_index.json").touch()
    assert resolved.generator_folder(0) == resolved.generator_folder("all") == folder


def test_an_unset_generator_tells_how_to_set_it():
    resolved = ResolvedConfig(DiffTumorConfig(generator=None, organ_label=1, tumor_label=2), {})
    with pytest.raises(ConfigurationError, match=r"nnUNet_difftumor.*train-diffusion.*builtin:"):
        resolved.generator_folder(0)


@pytest.mark.parametrize(
    ("organ", "settings", "target", "origin"),
    [
        ("liver", {}, "liver", "label names in dataset.json"),
        ("Pancreas", {}, "pancreas", "label names in dataset.json"),
        ("kidney", {}, "hypodense", "default"),
        ("liver", {"target": None}, "liver", "label names in dataset.json"),
        ("liver", {"generator": "mine"}, "training", "default"),
        ("liver", {"target": "training"}, "training", "test"),
        ("kidney", {"target": "liver"}, "liver", "test"),
    ],
)
def test_looks_come_from_the_organ_only_for_a_builtin_generator_or_when_asked(organ, settings, target, origin):
    resolved = resolve_config({"background": 0, organ: 1, "tumor": 2}, [source(**settings)])
    assert (resolved.config.target, resolved.origins["target"]) == (target, origin)


def test_a_range_of_the_users_reaches_the_rule_that_looks_are_drawn_by():
    rule = resolve(contrast_hu=[-30, -20], heterogeneity_hu=[4, 6]).appearances
    assert (rule.contrast_hu, rule.heterogeneity_hu) == ((-30.0, -20.0), (4.0, 6.0))
    assert resolve().appearances.contrast_prior_hu is not None


def test_changed_settings_are_listed_and_the_place_of_the_generator_is_not_one():
    stored = resolve(generator="a", seed=1, num_epochs=10).to_json()
    same = resolve(generator="b", seed=1, num_epochs=10).to_json()
    other = resolve(generator="b", seed=2, num_epochs=20).to_json()
    assert changed_settings(stored, same, is_continued=False) == ()
    assert changed_settings(stored, other, is_continued=False) == (
        "num_epochs: 10 was used, now 20",
        "seed: 1 was used, now 2",
    )
    assert changed_settings(stored, other, is_continued=True) == ("seed: 1 was used, now 2",)


def test_the_place_of_a_targets_generator_is_not_a_changed_setting():
    def stored(**changes):
        target = {"organ_label": "liver", "tumor_label": "tumor", "generator": "a/fold_{fold}", **changes}
        return resolve({"background": 0, "liver": 1, "tumor": 2}, targets=[target]).to_json()

    assert changed_settings(stored(), stored(generator="b/fold_{fold}"), is_continued=True) == ()
    (line,) = changed_settings(stored(), stored(generator="b", contrast_hu=[-20, -10]), is_continued=True)
    assert line.startswith("targets: ")
