"""Generators that ship with the package: names, contents, and the guard against validating on their cases."""

from __future__ import annotations

import json
import pickletools
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunet_difftumor.errors import ConfigurationError, LeakError
from nnunet_difftumor.synthesis.tissue import generator_names as builtin
from nnunet_difftumor.synthesis.tissue.generator_names import (
    BUILTIN_NAMES,
    DEFAULT_GENERATOR,
    BuiltinNotInstalledError,
    is_builtin,
    resolve_generator,
)

LARGEST_BYTES = 12_000_000
MAY_BE_SHIPPED = {".json", ".safetensors", ".md"}


@pytest.fixture
def installed(tmp_path, monkeypatch, generator_with_provenance) -> Path:
    """The untrained generator of the tests in the place of the builtin one."""
    monkeypatch.setattr(builtin, "BUILTIN_ROOT", tmp_path / "builtin_generators")
    return Path(shutil.copytree(generator_with_provenance, tmp_path / "builtin_generators" / BUILTIN_NAMES[0]))


def test_a_builtin_is_found_by_its_name_as_text_or_path(installed):
    assert resolve_generator(DEFAULT_GENERATOR) == installed
    assert resolve_generator(Path(DEFAULT_GENERATOR)) == installed


def test_a_path_stays_a_path_and_a_whole_training_output_is_understood(tmp_path):
    assert resolve_generator("some/generator") == Path("some/generator")
    (tmp_path / "generator").mkdir()
    assert resolve_generator(str(tmp_path)) == tmp_path
    (tmp_path / "generator" / "model_index.json").touch()
    assert resolve_generator(tmp_path) == tmp_path / "generator"
    assert not is_builtin(tmp_path)


@pytest.mark.parametrize("name", ["builtin:", "builtin:liver", "builtin:../soft-tissue-tiny", "builtin:/etc"])
def test_an_unknown_builtin_is_refused_with_the_known_ones(installed, name):
    with pytest.raises(ConfigurationError, match=r"Known: builtin:soft-tissue-tiny"):
        resolve_generator(name)


def test_a_source_tree_without_weights_tells_how_to_train(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "BUILTIN_ROOT", tmp_path)
    with pytest.raises(BuiltinNotInstalledError, match=r"train-autoencoder.*train-diffusion.*--generator DIR"):
        resolve_generator(DEFAULT_GENERATOR)


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_what_is_shipped_is_small_and_nothing_that_could_run(name):
    folder = builtin.BUILTIN_ROOT / name
    if not (folder / "model_index.json").is_file():
        pytest.skip(f"this source tree has no weights in {folder.relative_to(builtin.BUILTIN_ROOT.parent.parent)}")
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    assert not [path for path in files if path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < LARGEST_BYTES
    assert {path.suffix for path in files} <= MAY_BE_SHIPPED
    assert not [path for path in files if zipfile.is_zipfile(path) or _is_pickle(path)]
    assert all(_safetensors_header(path) for path in files if path.suffix == ".safetensors")


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_what_is_shipped_says_what_trained_it_by_hashes(name):
    from diffusion.generator_folder import check_generator_folder

    folder = builtin.BUILTIN_ROOT / name
    if not (folder / "model_index.json").is_file():
        pytest.skip(f"this source tree has no weights in {folder.relative_to(builtin.BUILTIN_ROOT.parent.parent)}")
    _, provenance = check_generator_folder(folder)
    assert provenance.diffusion
    assert all(case.image_hash and case.tumor_mask_hash for case in provenance.diffusion)
    assert "CC BY" in (folder / "README.md").read_text(encoding="utf-8"), "the licence of the data needs attribution"


def test_the_checks_above_see_a_pickle(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "new.safetensors")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "old.json", _use_new_zipfile_serialization=False)
    (tmp_path / "card.md").write_text("# Model card\n")
    assert zipfile.is_zipfile(tmp_path / "new.safetensors")
    assert _is_pickle(tmp_path / "old.json")
    assert not _is_pickle(tmp_path / "card.md")
    assert not _safetensors_header(tmp_path / "new.safetensors")


def _is_pickle(path: Path) -> bool:
    """True if the file starts with a whole pickle of protocol 2 or newer."""
    content = path.read_bytes()
    if not content.startswith(b"\x80"):
        return False
    try:
        return any(operation.name == "STOP" for operation, _, _ in pickletools.genops(content))
    except Exception:  # no pickle: whatever the parser stumbles over
        return False


def _safetensors_header(path: Path) -> bool:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return length < len(content) and isinstance(json.loads(content[8 : 8 + length]), dict)


def _make_trainer(make_nnunet_project, monkeypatch, **settings):
    from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

    project = make_nnunet_project()
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    monkeypatch.delenv("nnUNet_difftumor", raising=False)
    project.configure(generator=None, **settings)
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    plans["continue_training"] = False
    return project, nnUNetTrainerDiffTumor(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))


def test_the_trainer_uses_the_builtin_one_when_nothing_is_set_and_says_so(installed, make_nnunet_project, monkeypatch):
    project, trainer = _make_trainer(make_nnunet_project, monkeypatch)
    trainer._prepare_training()
    log = Path(trainer.log_file).read_text()
    assert "Synthetic tumours come from builtin:soft-tissue-tiny [default]" in log
    assert "drawn from 'liver' [label names in dataset.json]" in log
    recorded = json.loads((project.output() / "difftumor_config.json").read_text())
    assert recorded["settings"]["generator"] == "builtin:soft-tissue-tiny"
    assert recorded["settings"]["target"] == "liver"


def test_the_injected_tumours_get_the_organs_contrasts(installed, make_nnunet_project, monkeypatch):
    from nnunet_difftumor.trainer import mixin as trainer_module
    from nnunet_difftumor.tumor.published_contrasts import PUBLISHED_CONTRASTS_HU

    _, trainer = _make_trainer(make_nnunet_project, monkeypatch)
    trainer.initialize()
    trainer._prepare_training()
    monkeypatch.setattr(trainer_module, "DiffTumorDataLoader", lambda *_, **given: given["injectors"][0])
    appearances = trainer._make_training_loader(SimpleNamespace(identifiers=()), (40, 40, 40), None).appearances
    assert appearances.contrast_prior_hu == PUBLISHED_CONTRASTS_HU["liver"]
    assert {look.heterogeneity_hu for look in appearances.examples} == {8.0}  # those of the training tumours


def test_who_validates_on_the_builtins_training_cases_is_refused(
    installed, make_nnunet_project, monkeypatch, fingerprint_case
):
    from diffusion.generator.provenance import Provenance, save_provenance
    from nnunet_difftumor.ct.datasets import Case

    project, trainer = _make_trainer(make_nnunet_project, monkeypatch)
    (validated,) = trainer.do_split()[1]
    image, label = (
        project.raw / "imagesTr" / f"{validated}_0000.nii.gz",
        project.raw / "labelsTr" / f"{validated}.nii.gz",
    )
    seen = fingerprint_case(Case("patient_of_another_hospital", image, label), [2])
    save_provenance(installed / "provenance.json", Provenance(diffusion=(seen,), autoencoder=(seen,)))
    with pytest.raises(LeakError, match="under another identifier"):
        trainer._prepare_training()
