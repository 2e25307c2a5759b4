from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from autoencoder.engine.run_folder import OutputFolderExistsError, ResumeError
from autoencoder.engine.settings import RunSettings
from autoencoder.intensity import ABDOMEN_WINDOW, IntensityWindow
from autoencoder.model import AutoencoderKL3D
from autoencoder.presets import AUTOENCODER_PRESETS
from autoencoder.training import picture_of, train_autoencoder

NANO = dataclasses.replace(AUTOENCODER_PRESETS["nano"], steps=6)
QUIET = RunSettings(show_progress=False)
RESUMED = RunSettings(resume=True)


def _blobs_hu(index: int, side: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    coarse = torch.randn(count, 1, 4, 4, 4, generator=generator) * 100
    return interpolate(coarse, size=(side,) * 3, mode="trilinear", align_corners=False) + 20


class _Blobs(Dataset[dict[str, Tensor]]):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image_hu": _blobs_hu(index, side=16 if index % 2 else 24)}


HELDOUT = (_blobs_hu(1000, side=16), _blobs_hu(1001, side=24, count=5))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[AutoencoderKL3D, Path]:
    folder = tmp_path_factory.mktemp("training") / "run"
    masks = {"tumor": [crop_hu > 100 for crop_hu in HELDOUT]}
    model = train_autoencoder(_Blobs(), HELDOUT, NANO, folder, RunSettings(evaluate_every=4), heldout_masks=masks)
    return model, folder


def test_the_folder_holds_all_that_was_promised_and_nothing_unfinished(finished) -> None:
    _, folder = finished
    names = {path.name for path in folder.iterdir()}
    expected = {"autoencoder", "checkpoints", "tensorboard"}
    assert names == expected | {"fit.json", "heldout.json", "history.csv", "heldout_history.csv"}


def test_the_saved_autoencoder_is_the_returned_one(finished) -> None:
    model, folder = finished
    loaded = AutoencoderKL3D.from_pretrained(folder / "autoencoder")
    with torch.no_grad():
        assert torch.equal(loaded.reconstruct(HELDOUT[0]), model.reconstruct(HELDOUT[0]))
    mode = (folder / "autoencoder" / "diffusion_pytorch_model.safetensors").stat().st_mode
    assert mode & 0o044 == (folder / "autoencoder" / "config.json").stat().st_mode & 0o044


def test_latents_of_the_training_data_are_standardised(finished) -> None:
    model, _ = finished
    with torch.no_grad():
        latents = [model.encode(_Blobs()[index]["image_hu"]).transpose(0, 1).flatten(1) for index in range(6)]
    together = torch.cat(latents, dim=1)
    torch.testing.assert_close(together.mean(dim=1), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(together.std(dim=1), torch.ones(8), atol=1e-2, rtol=0)


def test_heldout_error_stands_beside_both_poolings_for_each_mask(finished) -> None:
    _, folder = finished
    errors = json.loads((folder / "heldout.json").read_text())
    assert set(errors) == {"all", "body", "tumor"}
    assert set(errors["all"]) == {"mae_hu", "mae_pool2_hu", "mae_pool4_hu", "voxels"}
    assert errors["all"]["voxels"] == 2 * 16**3 + 5 * 24**3
    assert 0 < errors["all"]["mae_pool2_hu"] < errors["all"]["mae_pool4_hu"]


def test_histories_hold_every_step_and_every_measurement(finished) -> None:
    _, folder = finished
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    with (folder / "heldout_history.csv").open(newline="") as file:
        measured = list(csv.DictReader(file))
    assert [int(row["step"]) for row in measured] == [4, 6]
    final = json.loads((folder / "heldout.json").read_text())["body"]["mae_hu"]
    assert float(measured[-1]["mae_hu_body"]) == pytest.approx(final, rel=1e-4)


def test_tensorboard_shows_scalars_and_pictures(finished) -> None:
    _, folder = finished
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"training/total", "training/l1", "heldout/mae_hu_tumor"} <= set(tags["scalars"])
    pictures = events.Images("input_reconstruction_difference/1")
    assert [(picture.step, picture.height, picture.width) for picture in pictures] == [(4, 24, 72), (6, 24, 72)]


def test_training_lowers_the_heldout_error(tmp_path: Path) -> None:
    def error_after(steps: int) -> float:
        folder = tmp_path / str(steps)
        train_autoencoder(_Blobs(), HELDOUT, NANO, folder, RunSettings(steps=steps))
        return json.loads((folder / "heldout.json").read_text())["all"]["mae_hu"]

    assert error_after(60) < 0.6 * error_after(1)


def test_a_finished_folder_is_refused_and_a_resume_leaves_it_the_same(finished) -> None:
    _, folder = finished
    weights = folder / "autoencoder" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes(), (folder / "history.csv").read_bytes()
    with pytest.raises(OutputFolderExistsError):
        train_autoencoder(_Blobs(), HELDOUT, NANO, folder, QUIET)
    train_autoencoder(_Blobs(), HELDOUT, NANO, folder, RESUMED)
    assert (weights.read_bytes(), (folder / "history.csv").read_bytes()) == before


def test_resume_with_another_window_is_refused(finished) -> None:
    _, folder = finished
    with pytest.raises(ResumeError, match=r"identity\.window\.low_hu was -175"):
        train_autoencoder(_Blobs(), HELDOUT, NANO, folder, RESUMED, window=IntensityWindow(-100, 250))


def test_heldout_crops_are_required_and_masks_must_match_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="heldout is empty"):
        train_autoencoder(_Blobs(), [], NANO, tmp_path / "run", QUIET)
    wrong = {"tumor": [torch.ones(2, 1, 8, 8, 8)] * 2}
    with pytest.raises(ValueError, match="one mask per held-out crop"):
        train_autoencoder(_Blobs(), HELDOUT, NANO, tmp_path / "run", QUIET, heldout_masks=wrong)
    assert not (tmp_path / "run").exists()


def test_heldout_masks_without_a_voxel_are_left_out_of_the_report(tmp_path: Path) -> None:
    empty = {"tumor": [torch.zeros_like(crop_hu, dtype=torch.bool) for crop_hu in HELDOUT]}
    once = RunSettings(steps=1)
    train_autoencoder(_Blobs(), HELDOUT, NANO, tmp_path / "run", once, heldout_masks=empty)
    assert "tumor" not in json.loads((tmp_path / "run" / "heldout.json").read_text())


def test_a_picture_shows_black_to_white_and_a_grey_difference() -> None:
    image_hu = torch.full((1, 6, 4, 5), ABDOMEN_WINDOW.high_hu)
    picture = picture_of(image_hu, image_hu - 50.0, ABDOMEN_WINDOW)
    assert picture.shape == (4, 15)
    assert picture[0, 0] == pytest.approx(1.0)
    assert picture[0, 5] == pytest.approx(1 - 50 / 425)
    assert picture[0, 10] == pytest.approx(0.25)
    assert picture_of(image_hu, image_hu, ABDOMEN_WINDOW)[0, 10] == pytest.approx(0.5)
