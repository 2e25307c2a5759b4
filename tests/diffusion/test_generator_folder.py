from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file

from diffusion.generator.info import GeneratorInfo, TrainingTumor
from diffusion.generator.model_card import write_model_card
from diffusion.generator.provenance import CaseFingerprint, Provenance, ProvenanceError, hash_identifier
from diffusion.generator_folder import (
    GeneratorFolderError,
    check_generator_folder,
    load_autoencoder,
    load_generator,
    read_generator_info,
    save_generator,
)
from diffusion.network import FIXED_ENTRIES
from diffusion.pipeline import TumorDiffusionPipeline

INFO = GeneratorInfo(
    roi_sides=(16, 32),
    spacing_range_mm=(1.5, 6.0),
    training_tumors=(
        TrainingTumor(radius_mm=8.0, contrast_hu=-30.5, heterogeneity_hu=9.0),
        TrainingTumor(radius_mm=14.0, contrast_hu=12.0, heterogeneity_hu=11.0),
    ),
    preset="nano",
    data_note="a CT phantom",
)
CASE = CaseFingerprint(
    identifier_hash=hash_identifier("liver_1"), image_hash="1" * 64, tumor_mask_hash="2" * 64, tumor_prints=()
)
PROVENANCE = Provenance(diffusion=(CASE,), autoencoder=(CASE, CASE), fold=1, splits_hash="3" * 64)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "generator"
    save_generator(folder, pipeline, INFO, PROVENANCE)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "generator"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_loaded_generator_gives_the_same_bits(pipeline, saved, make_crops, generators):
    image_hu, mask = make_crops(2)
    loaded = load_generator(saved)
    contrast_hu = torch.tensor([-20.0, torch.nan])
    expected = pipeline(image_hu, mask, contrast_hu=contrast_hu, generators=generators(2))
    output = loaded.sampler(image_hu, mask, contrast_hu=contrast_hu, generators=generators(2))
    assert torch.equal(output.tumor_hu, expected.tumor_hu)
    assert torch.equal(output.reconstruction_hu, expected.reconstruction_hu)
    assert (loaded.info, loaded.provenance) == (INFO, PROVENANCE)
    assert loaded.sampler.autoencoder.latents_std == pipeline.autoencoder.config["latents_std"]


def test_diffusers_loads_the_folder_to_the_same_bits(pipeline, saved, make_crops, generators):
    image_hu, mask = make_crops(2)
    loaded = TumorDiffusionPipeline.from_pretrained(saved)
    expected = load_generator(saved).sampler(image_hu, mask, generators=generators(2))
    assert torch.equal(loaded(image_hu, mask, generators=generators(2)).tumor_hu, expected.tumor_hu)
    assert isinstance(loaded, DiffusionPipeline)
    assert isinstance(loaded.autoencoder, ModelMixin)
    assert isinstance(loaded.denoiser, ModelMixin)
    assert isinstance(loaded.scheduler, FlowMatchEulerDiscreteScheduler)
    assert dict(loaded.autoencoder.config).items() >= {"channels": [8, 16], "blocks": 1}.items()


def test_layout_and_no_leftovers(saved):
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json",
        "generator.json",
        "provenance.json",
        "README.md",
        "scheduler/scheduler_config.json",
        *(f"{part}/{name}" for part in ("autoencoder", "denoiser") for name in ("config.json", WEIGHTS)),
    }
    assert [path.name for path in saved.parent.iterdir()] == ["generator"]


def test_weights_are_as_readable_as_the_umask_allows(pipeline, tmp_path):
    previous = os.umask(0o022)
    try:
        save_generator(tmp_path / "generator", pipeline, INFO, PROVENANCE)
    finally:
        os.umask(previous)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "generator").rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_model_card_tells_what_trained_it_and_what_it_is_not(saved):
    card = (saved / "README.md").read_text()
    for fact in ("nano", "a CT phantom", "research only", "Not a medical device", "fold 1", "8.0 / 11.0 / 14.0 mm"):
        assert fact in card
    assert "diffusion model: 1; the autoencoder: 2" in card


def test_existing_folder_is_not_overwritten_silently(pipeline, folder):
    with pytest.raises(GeneratorFolderError, match="exists already"):
        save_generator(folder, pipeline, INFO, PROVENANCE)
    save_generator(folder, pipeline, replace(INFO, data_note="again"), PROVENANCE, replace=True)
    assert read_generator_info(folder).data_note == "again"


def test_failed_saving_leaves_the_old_folder(pipeline, folder, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(TumorDiffusionPipeline, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        save_generator(folder, pipeline, replace(INFO, data_note="again"), PROVENANCE, replace=True)
    monkeypatch.undo()
    assert check_generator_folder(folder) == (INFO, PROVENANCE)


def test_info_must_state_the_autoencoders_window(pipeline, tmp_path, folder):
    with pytest.raises(GeneratorFolderError, match="HU window -100 to 250"):
        save_generator(tmp_path / "other", pipeline, replace(INFO, low_hu=-100.0), PROVENANCE)
    assert not (tmp_path / "other").exists()
    edit_json(folder / "generator.json", low_hu=-100.0)
    with pytest.raises(GeneratorFolderError, match="HU window"):
        load_generator(folder)


def test_loading_leaves_the_global_random_stream_alone(saved):
    before = torch.get_rng_state()
    load_generator(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(GeneratorFolderError, match="nowhere is no folder"):
        load_generator(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "generator.json",
        "provenance.json",
        "autoencoder/config.json",
        f"denoiser/{WEIGHTS}",
        "scheduler/scheduler_config.json",
    ],
)
def test_incomplete_folder_names_the_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(GeneratorFolderError, match=rf"lacks {name}.*train-diffusion"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
        ({"_class_name": ["evil", "TumorDiffusionPipeline"]}, "evil"),
        ({"denoiser": ["evil.module", "DenoisingUNet3D"]}, "evil.module"),
        ({"scheduler": ["diffusers", "KarrasVeScheduler"]}, "KarrasVeScheduler"),
        ({"autoencoder": None}, "None as 'autoencoder'"),
        ({"safety_checker": ["evil", "Checker"]}, "safety_checker"),
        ({"_module": "evil"}, "_module"),
    ],
)
@pytest.mark.parametrize("load", [load_generator, TumorDiffusionPipeline.from_pretrained])
def test_foreign_pipelines_are_refused_before_anything_is_imported(folder, changes, message, load):
    edit_json(folder / "model_index.json", **changes)
    with pytest.raises(GeneratorFolderError, match=message):
        load(folder)


def test_component_config_of_another_class_is_refused(folder):
    edit_json(folder / "denoiser" / "config.json", _class_name="UNet2DModel")
    with pytest.raises(GeneratorFolderError, match="UNet2DModel"):
        load_generator(folder)


@pytest.mark.parametrize(
    "name", ["denoiser/diffusion_pytorch_model.bin", "early.pt", "autoencoder/x.ckpt", "denoiser/unet.py", "a.PKL"]
)
def test_pickles_and_code_are_refused(folder, name):
    (folder / name).write_bytes(b"")
    with pytest.raises(GeneratorFolderError, match=name):
        load_generator(folder)


def test_weights_without_a_tensor_are_not_filled_up_with_noise(folder):
    path = folder / "denoiser" / WEIGHTS
    tensors = load_file(path)
    del tensors["entry.weight"]
    save_file(tensors, path)
    with pytest.raises(GeneratorFolderError, match=r"1 tensors differ, first 'entry.weight'"):
        load_generator(folder)


def test_weights_of_another_size_are_named(folder):
    edit_json(folder / "denoiser" / "config.json", channels=[32, 64])
    with pytest.raises(GeneratorFolderError, match="does not fit"):
        load_generator(folder)


def test_cut_off_weights_are_named(folder):
    path = folder / "autoencoder" / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(GeneratorFolderError, match=f"{WEIGHTS} and .*config.json cannot be read"):
        load_generator(folder)


def test_an_autoencoder_is_loaded_with_all_its_tensors_or_not_at_all(folder, pipeline):
    loaded = load_autoencoder(folder / "autoencoder")
    assert all(torch.equal(*pair) for pair in zip(loaded.parameters(), pipeline.autoencoder.parameters(), strict=True))
    path = folder / "autoencoder" / WEIGHTS
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if name != min(tensors)}, path)
    with pytest.raises(GeneratorFolderError, match=r"1 tensors differ.*train-autoencoder"):
        load_autoencoder(folder / "autoencoder")
    torch.save(tensors, folder / "autoencoder" / "diffusion_pytorch_model.bin")
    path.unlink()
    with pytest.raises(GeneratorFolderError, match="other weights are not read"):
        load_autoencoder(folder / "autoencoder")


@pytest.mark.parametrize(("objective", "told"), [("flow", "(rectified flow)"), ("epsilon", "(epsilon prediction)")])
def test_the_model_card_names_the_objective(objective, told):
    assert told in write_model_card(INFO, PROVENANCE, objective)


@pytest.mark.parametrize(
    ("entry", "other", "expected"),
    [
        ("scalar_conditions", ["contrast_hu", "organ"], "['contrast_hu', 'heterogeneity_hu']"),
        ("norm_groups", 4, "8"),
        ("mask_embedding_channels", 16, "8"),
        ("attention_max_tokens", 64, "512"),
    ],
)
def test_a_config_that_asks_for_another_network_is_named_with_its_entry(folder, entry, other, expected):
    path = folder / "denoiser" / "config.json"
    edit_json(path, **{entry: other})
    with pytest.raises(GeneratorFolderError) as caught:
        load_generator(folder)
    assert str(path) in str(caught.value)
    assert f"{entry} in the config of DenoisingUNet3D must be {expected}, got {other}" in str(caught.value)


def test_what_has_one_value_is_in_the_config_and_is_read_without_a_warning(folder, caplog):
    config = json.loads((folder / "denoiser" / "config.json").read_text())
    assert FIXED_ENTRIES.items() <= config.items()
    diffusers_logging.enable_propagation()
    with caplog.at_level("WARNING"):
        load_generator(folder)
        loaded = TumorDiffusionPipeline.from_pretrained(folder)
    diffusers_logging.disable_propagation()
    assert caplog.text == ""
    assert FIXED_ENTRIES.items() <= loaded.denoiser.config.items()


def test_malformed_provenance_is_named(folder):
    edit_json(folder / "provenance.json", fold="one")
    with pytest.raises(ProvenanceError, match=r"provenance\.json: fold"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2"),
        ({"roi_sides": [32, 30]}, "roi_sides"),
        ({"roi_sides": 32}, "roi_sides must be a JSON list"),
        ({"roi_sides": []}, "roi_sides"),
        ({"spacing_range_mm": [2.0]}, "spacing_range_mm"),
        ({"spacing_range_mm": [2.0, 1.0]}, "spacing_range_mm"),
        ({"low_hu": "cold"}, "finite number"),
        ({"high_hu": -500.0}, "below high_hu"),
        ({"margin_voxels": 1.5}, "margin_voxels"),
        ({"data_note": 3}, "data_note"),
        ({"surprise": 1}, "surprise"),
        ({"training_tumors": [{"radius_mm": 3.0}]}, "missing"),
        ({"training_tumors": [{"radius_mm": 0.0, "contrast_hu": 1.0, "heterogeneity_hu": 1.0}]}, "radius_mm > 0"),
    ],
)
def test_malformed_info_names_file_and_entry(folder, changes, message):
    edit_json(folder / "generator.json", **changes)
    with pytest.raises(GeneratorFolderError, match=message) as caught:
        check_generator_folder(folder)
    assert "generator.json" in str(caught.value)


def test_records_are_read_without_torch(saved):
    code = (
        "import sys; from pathlib import Path; from diffusion.generator_folder import check_generator_folder; "
        "check_generator_folder(Path(sys.argv[1])); print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_generator_samples_without_diffusers(saved):
    code = """
import sys, torch
from diffusion.generator_folder import load_generator
mask = torch.zeros(1, 1, 16, 16, 16)
mask[..., 4:12, 4:12, 4:12] = 1
load_generator(sys.argv[1]).sampler(50.0 + mask, mask, generators=[torch.Generator().manual_seed(0)])
print([name for name in ("diffusers", "accelerate", "scipy.stats", "torch._dynamo", "sympy") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_path_of_the_machine_is_written(tmp_path, nano_generator_folder):
    loaded = TumorDiffusionPipeline.from_pretrained(nano_generator_folder)
    save_generator(tmp_path / "again", loaded, *check_generator_folder(nano_generator_folder))
    for path in (tmp_path / "again").rglob("*.json"):
        text = path.read_text()
        assert str(nano_generator_folder.parent) not in text
        assert "_name_or_path" not in text
    load_generator(tmp_path / "again")
