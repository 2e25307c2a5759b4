"""Fewer false alarms of a trained network: what each shift leaves, and the checkpoint that nnU-Net predicts with."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.special import expit, softmax

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import CorruptImageError, DatasetError, DiffTumorError
from nnunet_difftumor.evaluation.operating_point import (
    SHIFTS,
    choose_operating_point,
    measure_operating_points,
    tumor_margin,
)
from nnunet_difftumor.evaluation.scoring.scheme import read_label_scheme
from nnunet_difftumor.trainer.discovery import own_trainers_found
from nnunet_difftumor.trainer.export.calibration import CALIBRATED_CHECKPOINT, write_shifted

PLAIN = {"background": 0, "liver": 1, "tumor": 2}
REGIONS = {"background": 0, "whole_liver": [1, 2], "tumor": 2}


def scheme_of(folder, labels):
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    content |= {"regions_class_order": [1, 2]} if labels is REGIONS else {}
    path = folder / "dataset.json"
    path.write_text(json.dumps(content))
    return read_label_scheme(path)


def write_prediction(folder, case, margins, *, has_regions=False):
    """A healthy liver in which blobs of 27 voxels look like a tumour by a margin in logits each."""
    tumor = np.full((12, 16, 40), -9.0)
    for number, margin in enumerate(margins):
        tumor[4:7, 4:7, 2 + 6 * number : 5 + 6 * number] = margin
    if has_regions:
        values = expit(np.stack([np.full(tumor.shape, 8.0), tumor]))
    else:
        values = softmax(np.stack([np.full(tumor.shape, -4.0), np.zeros(tumor.shape), tumor]), axis=0)
    np.savez_compressed(folder / f"{case}.npz", probabilities=values.astype(np.float32))
    labels = SimpleITK.GetImageFromArray(np.where(tumor > 0, 2, 1).astype(np.uint8))
    labels.SetSpacing((1.5, 1.5, 2.0))
    SimpleITK.WriteImage(labels, str(folder / f"{case}.nii.gz"))
    return tumor


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["plain", "regions"])
def test_a_shift_leaves_the_false_alarms_that_exceed_it(tmp_path, labels):
    for case, margins in {"a": (0.6, 2.1, 4.1), "b": (1.1,), "c": ()}.items():
        drawn = write_prediction(tmp_path, case, margins, has_regions=labels is REGIONS)
        scheme = scheme_of(tmp_path, labels)
        assert tumor_margin(tmp_path / f"{case}.npz", scheme) == pytest.approx(drawn, abs=0.01)
    points = {point.shift: point for point in measure_operating_points(tmp_path, scheme)}
    assert tuple(points) == SHIFTS
    left = {shift: (points[shift].false_positives, points[shift].clear) for shift in (0.0, 0.75, 1.25, 2.25, 4.25)}
    assert left == {0.0: (4, 1), 0.75: (3, 1), 1.25: (2, 2), 2.25: (1, 2), 4.25: (0, 3)}
    assert points[0.0].scans == 3
    every = list(points.values())
    assert [choose_operating_point(every, most).shift for most in (2.0, 1.0, 0.4, 0.0)] == [0.0, 0.75, 2.25, 4.25]


def test_what_cannot_be_measured_is_told(tmp_path):
    scheme = scheme_of(tmp_path, PLAIN)
    write_prediction(tmp_path, "a", (20.0,))
    with pytest.raises(DiffTumorError, match=r"Even a shift of 7 leaves 1\.00 false alarms a scan.*have no tumour"):
        choose_operating_point(measure_operating_points(tmp_path, scheme), 0.5)
    np.savez(tmp_path / "a.npz", probabilities=np.zeros((2, 12, 16, 40), np.float32))
    with pytest.raises(CorruptImageError, match=r"a\.npz should hold probabilities of 3 channels.*another model"):
        measure_operating_points(tmp_path, scheme)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(CorruptImageError, match=r"a\.npz cannot be read as nnU-Net's probabilities"):
        measure_operating_points(tmp_path, scheme)
    (tmp_path / "a.npz").unlink()
    with pytest.raises(DatasetError, match=r"no probabilities \(<case>\.npz\) of a\..*--save_probabilities"):
        measure_operating_points(tmp_path, scheme)


def test_nnunet_predicts_the_tumor_less_by_the_shift(trained, tmp_path):
    """Compared in logits, as nnU-Net's predictor loads both checkpoints."""
    folder = shutil.copytree(trained, tmp_path / trained.name)
    scheme = read_label_scheme(folder / "dataset.json")
    (channel,) = (label.channel for label in scheme.tumors)
    write_shifted(folder / "fold_0", "checkpoint_final.pth", [channel], 1.5, of=scheme.channels)
    found = []
    for name in ("checkpoint_final.pth", CALIBRATED_CHECKPOINT):
        with own_trainers_found():
            predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
            predictor.initialize_from_trained_model_folder(str(folder), (0,), name)
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        image = torch.randn(
            1, 1, *predictor.configuration_manager.patch_size, generator=torch.Generator().manual_seed(0)
        )
        with torch.inference_mode():
            found.append(predictor.network.eval()(image)[0].numpy())
    assert found[0][channel] - found[1][channel] == pytest.approx(1.5, abs=1e-3)
    others = np.delete(np.arange(scheme.channels), channel)
    assert np.array_equal(found[0][others], found[1][others])


def test_the_command_writes_the_checkpoint_and_says_how_to_predict(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / trained.name)
    predictions = tmp_path / "predicted"
    predictions.mkdir()
    for case, margins in {"a": (1.1, 3.1), "b": ()}.items():
        write_prediction(predictions, case, margins)
    words = ["calibrate", "--model", str(folder), "--predictions", str(predictions), "--false-positives", "0.5"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "1.25                 0.50         1 of 2  <- chosen" in shown
    assert f"-f 0 1 -chk {CALIBRATED_CHECKPOINT}" in shown
    for fold in ("fold_0", "fold_1"):
        before, after = (
            torch.load(folder / fold / name, map_location="cpu", weights_only=False)
            for name in ("checkpoint_final.pth", CALIBRATED_CHECKPOINT)
        )
        changed = [
            name
            for name, value in before["network_weights"].items()
            if not torch.equal(value, after["network_weights"][name])
        ]
        (name,) = changed
        moved = before["network_weights"][name] - after["network_weights"][name]
        assert moved.tolist() == pytest.approx([0.0, 0.0, 1.25], abs=1e-6)
        assert "optimizer_state" not in after
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words, "-f", "7", "--overwrite"]) == 1
    assert "no checkpoint_final.pth for fold 7; it has fold 0, 1" in capsys.readouterr().err


def test_a_network_that_ends_otherwise_is_refused(trained, tmp_path):
    fold = shutil.copytree(trained / "fold_0", tmp_path / "fold_0")
    content = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    content["network_weights"] = {"head.bias": torch.zeros(3)}
    torch.save(content, fold / "checkpoint_final.pth")
    with pytest.raises(DiffTumorError, match=r"last layer \(decoder\.seg_layers\) should be 3.*is not there"):
        write_shifted(fold, "checkpoint_final.pth", [2], 1.0, of=3)
    assert not (fold / CALIBRATED_CHECKPOINT).exists()
