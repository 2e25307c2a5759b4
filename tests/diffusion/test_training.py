from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoencoder.engine.run_folder import OutputFolderExistsError, ResumeError
from autoencoder.engine.settings import RunSettings
from autoencoder.layers import draw_initial_weights_
from autoencoder.model import AutoencoderKL3D
from diffusion import training
from diffusion.calibration import Differences, measure_differences
from diffusion.conditioning import fill_tumor_region, smooth_texture
from diffusion.generator.provenance import CaseFingerprint, Provenance, TumorPrint, load_provenance
from diffusion.generator_folder import GeneratorInfo, check_generator_folder, load_generator
from diffusion.objectives import OBJECTIVES
from diffusion.presets import DIFFUSION_PRESETS
from diffusion.training import diffusion_loss_function, train_diffusion

SIDE = 16
STEPS = 9
KILLED_AT = 7
CHECKPOINT_EVERY = 3
PRESET = replace(DIFFUSION_PRESETS["nano"], ema_decay=0.9)
RUN = RunSettings(steps=STEPS, seed=5, checkpoint_every=CHECKPOINT_EVERY, evaluate_every=6)
INFO = GeneratorInfo(roi_sides=(16, 32), preset="anything")
CASE = CaseFingerprint(identifier_hash="0" * 64, image_hash="1" * 64, tumor_mask_hash="2" * 64, tumor_prints=())
PROVENANCE = Provenance(diffusion=(CASE,), autoencoder=(CASE,))
WEIGHTS = "generator/denoiser/diffusion_pytorch_model.safetensors"


class NoisyBalls(Dataset):
    """Batch i holds four noisy crops with a tumour each, the same for the same i."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.killed_at = killed_at
        self.was_measured = False

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index == self.killed_at and self.was_measured:
            os.kill(os.getpid(), signal.SIGKILL)
        self.was_measured = self.was_measured or index == self.killed_at
        generator = torch.Generator().manual_seed(index)
        axis = torch.arange(SIDE) - (SIDE - 1) / 2
        mask = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 <= 9.0).expand(4, 1, -1, -1, -1)
        tissue_hu = 50.0 + 10.0 * torch.randn(mask.shape, generator=generator)
        contrast_hu = 40.0 * torch.randn(4, generator=generator).view(4, 1, 1, 1, 1)
        return {"image_hu": tissue_hu + contrast_hu * mask, "tumor_mask": mask.clone()}


def make_autoencoder() -> AutoencoderKL3D:
    model = AutoencoderKL3D(channels=(8, 16), blocks=1)
    draw_initial_weights_(model, torch.Generator().manual_seed(0))
    model.set_latent_statistics([0.0] * 8, [0.2] * 8)
    return model.eval()


def train(output_folder: Path, *, killed_at: int | None = None, resume: bool = False, **changes) -> Path:
    torch.set_num_threads(1)
    chosen = {name: changes.pop(name) for name in ("steps", "seed") if name in changes}
    arguments = {"info": INFO, "provenance": PROVENANCE, **changes}
    return train_diffusion(
        NoisyBalls(killed_at),
        arguments.pop("autoencoder", None) or make_autoencoder(),
        arguments.pop("preset", PRESET),
        output_folder,
        replace(RUN, resume=resume, **chosen),
        heldout=[NoisyBalls()[1000]],
        **arguments,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    output_folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(output_folder)
    return output_folder


def test_killed_and_resumed_training_gives_the_same_bits(undisturbed, tmp_path):
    output_folder = tmp_path / "run"
    killed = subprocess.run([sys.executable, __file__, str(output_folder)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (output_folder / "generator").exists()
    assert [path.name for path in sorted((output_folder / "checkpoints").glob("step_*"))] == [
        "step_00000003",
        "step_00000006",
    ]
    train(output_folder, resume=True)
    resumed, expected = load_file(output_folder / WEIGHTS), load_file(undisturbed / WEIGHTS)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert (output_folder / "history.csv").read_text() == (undisturbed / "history.csv").read_text()


def test_run_leaves_a_complete_generator(undisturbed, make_crops, generators):
    info, provenance = check_generator_folder(undisturbed / "generator")
    assert info == replace(INFO, preset="nano")
    assert provenance == PROVENANCE
    image_hu, mask = make_crops(2)
    output = load_generator(undisturbed / "generator").sampler(image_hu, mask, generators=generators(2))
    assert output.tumor_hu.isfinite().all()


def test_run_leaves_history_measurements_and_pictures(undisturbed):
    with (undisturbed / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert all(
        float(row["total"]) == pytest.approx(float(row["everywhere"]) + float(row["inside"]), rel=1e-5) for row in rows
    )
    heldout = json.loads((undisturbed / "heldout.json").read_text())
    assert set(heldout) == {"real", "synthetic", "fill_only", "reconstruction"}
    events = EventAccumulator(str(undisturbed / "tensorboard")).Reload()
    assert "training/inside" in events.Tags()["scalars"]
    assert "heldout/synthetic_wasserstein_hu" in events.Tags()["scalars"]
    assert "host_filled_sample_real/0" in events.Tags()["images"]


def test_finished_run_can_be_resumed_without_a_change(undisturbed):
    before = load_file(undisturbed / WEIGHTS)
    train(undisturbed, resume=True)
    after = load_file(undisturbed / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


def denoiser_config(output_folder: Path) -> dict:
    return json.loads((output_folder / "generator" / "denoiser" / "config.json").read_text())


def test_a_resumed_run_keeps_the_differences_that_it_measured_when_it_started(tmp_path, monkeypatch):
    """Another release may draw other batches; the path of a run must not change half way."""
    train(tmp_path / "run")
    before = denoiser_config(tmp_path / "run")
    measured = Differences((9.0,) * 8, (9.0,) * 8, (1.0,) * 8)
    monkeypatch.setattr(training, "measure_differences", lambda *_: measured)
    train(tmp_path / "run", resume=True)
    assert denoiser_config(tmp_path / "run") == before
    (tmp_path / "run" / "differences.json").unlink()
    with pytest.raises(ResumeError, match=r"differences\.json must hold the lists"):
        train(tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as a run that was interrupted before it measured
    train(tmp_path / "run", resume=True)
    assert denoiser_config(tmp_path / "run")["difference_std"] == [9.0] * 8


def test_differences_that_cannot_be_read_are_named(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "differences.json").write_text('{"std": [1.0]}')
    with pytest.raises(ResumeError, match=r"differences\.json must hold the lists std, floor, per_hu"):
        train(tmp_path / "run", resume=True)


def test_a_run_goes_on_although_prints_of_the_same_cases_changed(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    surface = TumorPrint(voxel_mm=1.0, volume_mm3=9.0, axes_mm=(1.0, 1.0, 1.0), skewness=0.0, asymmetry=0.0)
    case = replace(CASE, tumor_prints=(surface,))
    provenance = Provenance(diffusion=(case,), autoencoder=(case,))
    train(tmp_path / "run", resume=True, provenance=provenance)
    assert load_provenance(tmp_path / "run" / "generator" / "provenance.json") == provenance


def test_folder_of_another_run_is_not_overwritten(undisturbed):
    with pytest.raises(OutputFolderExistsError, match="not empty"):
        train(undisturbed)
    with pytest.raises(ResumeError, match="seed"):
        train(undisturbed, resume=True, seed=6)
    with pytest.raises(ResumeError, match="provenance"):
        train(undisturbed, resume=True, provenance=Provenance(diffusion=(CASE, CASE), autoencoder=(CASE,)))
    other = make_autoencoder()
    with torch.no_grad():
        other.decoder[0].bias += 1.0
    with pytest.raises(ResumeError, match="autoencoder"):
        train(undisturbed, resume=True, autoencoder=other)


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    raw = AutoencoderKL3D(channels=(8, 16), blocks=1)
    with pytest.raises(ValueError, match="latent statistics"):
        train(tmp_path / "a", autoencoder=raw)
    with pytest.raises(ValueError, match="window"):
        train(tmp_path / "b", info=replace(INFO, low_hu=-100.0))
    with pytest.raises(ValueError, match=r"holds \[48\]"):
        train(tmp_path / "c", info=replace(INFO, roi_sides=(32, 48)))
    assert list(tmp_path.iterdir()) == []


def test_autoencoder_of_the_caller_stays_as_it_was(tmp_path):
    autoencoder = make_autoencoder()
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    train(tmp_path / "run", autoencoder=autoencoder, steps=2)
    assert all(parameter.requires_grad for parameter in autoencoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in autoencoder.state_dict().items())


class Spy(nn.Module):
    """Remembers what the loss function showed it; predicts zero velocity."""

    objective = OBJECTIVES["flow"]

    def to_frame(self, latents, condition, heterogeneity_hu):
        return latents - condition

    def forward(self, x_t, condition, mask_unshuffled, contrast_hu, heterogeneity_hu, noise_levels):
        self.seen = {"x_t": x_t, "condition": condition, "contrast_hu": contrast_hu, "noise_levels": noise_levels}
        self.seen["heterogeneity_hu"] = heterogeneity_hu
        return torch.zeros_like(x_t, requires_grad=True)


def test_network_is_shown_what_inference_shows_it(autoencoder):
    batch = NoisyBalls()[0]
    spy = Spy()
    loss = diffusion_loss_function(autoencoder, condition_dropout=0.0)
    loss(spy, batch, torch.Generator().manual_seed(0))
    contrast_hu = spy.seen["contrast_hu"]
    texture_hu = smooth_texture(batch["image_hu"], batch["tumor_mask"])
    filled_hu = fill_tumor_region(batch["image_hu"], batch["tumor_mask"], contrast_hu, texture_hu=texture_hu)
    torch.testing.assert_close(spy.seen["condition"], autoencoder.encode(filled_hu), atol=1e-4, rtol=1e-4)
    assert contrast_hu.isfinite().all()


def test_dropped_looks_are_dropped_from_the_fill_too(autoencoder):
    batch = NoisyBalls()[0]
    spy = Spy()
    diffusion_loss_function(autoencoder, condition_dropout=0.999999)(spy, batch, torch.Generator().manual_seed(0))
    assert spy.seen["contrast_hu"].isnan().all()
    assert spy.seen["heterogeneity_hu"].isnan().all()
    neutral_hu = fill_tumor_region(batch["image_hu"], batch["tumor_mask"], None)
    torch.testing.assert_close(spy.seen["condition"], autoencoder.encode(neutral_hu), atol=1e-4, rtol=1e-4)


def test_a_tenth_of_contrasts_and_heterogeneities_is_dropped(autoencoder):
    crops = {name: value[:1, :, 4:12, 4:12, 4:12] for name, value in NoisyBalls()[0].items()}
    batch = {name: value.expand(500, -1, -1, -1, -1) for name, value in crops.items()}
    spy = Spy()
    diffusion_loss_function(autoencoder, condition_dropout=0.1)(spy, batch, torch.Generator().manual_seed(0))
    absent = [spy.seen[name].isnan() for name in ("contrast_hu", "heterogeneity_hu")]
    assert all(0.06 < name.float().mean() < 0.14 for name in absent)
    assert 0 < (absent[0] & absent[1]).float().mean() < 0.04  # each on its own


def test_differences_are_measured_inside_the_tumours(autoencoder):
    """A constant in place of the tumours: the difference is the fill's distance from it and nothing else."""

    class Flat(NoisyBalls):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            return {**batch, "image_hu": torch.full_like(batch["image_hu"], 50.0)}

    flat = measure_differences(autoencoder, Flat(), 2)
    noisy = measure_differences(autoencoder, NoisyBalls(), 2)
    assert max(flat.std) == pytest.approx(1e-3)  # the smallest
    assert min(noisy.std) > 5e-3


def test_differences_grow_with_the_heterogeneity(autoencoder):
    """Half of each tumour is darker and half brighter, by 0 to 40 HU, and the fill smooths the step between them."""

    class Halves(NoisyBalls):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            step_hu = torch.linspace(0.0, 40.0, 4).view(4, 1, 1, 1, 1)
            side = torch.where(torch.arange(SIDE) < SIDE // 2, -1.0, 1.0).view(1, 1, SIDE, 1, 1)
            return {**batch, "image_hu": batch["image_hu"] + step_hu * side * batch["tumor_mask"]}

    measured = measure_differences(autoencoder, Halves(), 4)
    assert measured.per_hu[1] * 14.0 > 2.0 * measured.floor[1] > 0  # channel 1: a first difference


@pytest.mark.parametrize("objective", ["flow", "v", "epsilon"])
def test_every_objective_trains_and_samples(tmp_path, objective, make_crops, generators):
    preset = replace(PRESET, objective=objective, draws_differences=objective != "epsilon")
    train(tmp_path / "run", preset=preset, steps=2)
    loaded = load_generator(tmp_path / "run" / "generator")
    assert loaded.sampler.denoiser.objective is OBJECTIVES[objective]
    assert loaded.sampler.denoiser.draws_differences is (objective != "epsilon")
    image_hu, mask = make_crops(2)
    first, second = (loaded.sampler(image_hu, mask, generators=generators(2)).tumor_hu for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_training_lowers_the_loss(tmp_path):
    train(tmp_path / "run", steps=60)
    with (tmp_path / "run" / "history.csv").open() as file:
        losses = [float(row["total"]) for row in csv.DictReader(file)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


if __name__ == "__main__":
    train(Path(sys.argv[1]), killed_at=KILLED_AT)
