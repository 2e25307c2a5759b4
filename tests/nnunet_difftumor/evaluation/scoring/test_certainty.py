"""Fewer false alarms: how certain a network is of each tumour it predicts, and predictions without uncertain ones."""

import json

import numpy as np
import pytest
import SimpleITK
from scipy.special import expit, softmax

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import CorruptImageError, DatasetError, MissingLabelError
from nnunet_difftumor.evaluation.scoring.certainty import PredictionFolder, choose_certainty

PLAIN = {"background": 0, "liver": 1, "tumor": 2}
REGIONS = {"background": 0, "whole_liver": [1, 2], "tumor": 2}
BOTH = pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["plain", "regions"])


def write_dataset_json(folder, labels, **changes):
    folder.mkdir(exist_ok=True)
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    content |= {"regions_class_order": [1, 2]} if labels is REGIONS else {}
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}))


def write_prediction(folder, case, margins, labels=PLAIN):
    """A liver with background beside it, in which blobs of 27 voxels are a tumour by a margin in logits each."""
    tumor, liver = np.full((12, 16, 40), -9.0), np.full((12, 16, 40), 5.0)
    liver[:, :5] = -5.0  # a tumour's lowest row lies where the next probable label is background
    for number, margin in enumerate(margins):
        tumor[4:7, 4:7, 2 + 6 * number : 5 + 6 * number] = margin - 1.0
        tumor[5, 5, 3 + 6 * number] = margin
    if labels is REGIONS:
        values = expit(np.stack([np.where(tumor > 0, np.maximum(liver, 5.0) * np.sign(liver), liver), tumor]))
    else:
        others = np.stack([np.where(liver > 0, -4.0, 0.0), np.where(liver > 0, 0.0, -4.0)])
        values = softmax(np.stack([*others, tumor]), axis=0)
    np.savez_compressed(folder / f"{case}.npz", probabilities=values.astype(np.float32))
    host = (liver > 0).astype(np.uint8)
    drawn = SimpleITK.GetImageFromArray(np.where(tumor > 0, 2, host).astype(np.uint8))
    drawn.SetSpacing((1.5, 1.5, 2.0))
    drawn.SetOrigin((3.0, -7.0, 11.0))
    SimpleITK.WriteImage(drawn, str(folder / f"{case}.nii.gz"))
    return host


@BOTH
def test_the_certainty_of_a_tumour_is_its_largest_margin(tmp_path, labels):
    write_dataset_json(tmp_path, labels)
    write_prediction(tmp_path, "a", (2.5, 6.0, 4.25), labels)
    assert PredictionFolder(tmp_path).certainties("a") == pytest.approx([2.5, 6.0, 4.25], abs=0.01)


def test_specks_are_no_false_alarms(tmp_path):
    write_dataset_json(tmp_path, PLAIN)
    write_prediction(tmp_path, "a", (0.5, 3.0))  # of the first a single voxel is a tumour
    assert PredictionFolder(tmp_path).certainties("a") == pytest.approx([3.0], abs=0.01)


def test_the_smallest_certainty_that_leaves_as_many_as_wanted_is_chosen():
    found = [[2.0, 5.0], [], [3.0, 1.0], [4.0]]
    for most, chosen in {2.0: 0.0, 1.25: 0.0, 1.0: 1.0, 0.75: 2.0, 0.5: 3.0, 0.3: 4.0, 0.0: 5.0}.items():
        certainty = choose_certainty(found, most)
        assert certainty == chosen
        assert sum(value > certainty for scan in found for value in scan) <= most * len(found)
    assert choose_certainty([[], []], 0.0) == 0.0


@BOTH
def test_uncertain_tumours_go_as_a_whole_and_the_next_probable_label_takes_their_place(tmp_path, labels, capsys):
    healthy, predicted, final = tmp_path / "healthy", tmp_path / "predicted", tmp_path / "final"
    for folder in (healthy, predicted):
        write_dataset_json(folder, labels)
    for case, margins in {"h1": (2.0, 3.0), "h2": (), "h3": (4.0,), "h4": ()}.items():
        write_prediction(healthy, case, margins, labels)
    host = write_prediction(predicted, "a", (2.5, 3.5, 9.0), labels)
    words = ["calibrate", "--predictions", str(healthy), "--output", str(tmp_path / "certainty.json")]
    assert main([*words, "--false-positives", "0.25"]) == 0
    assert "3.00                 0.25         3 of 4  <- chosen" in capsys.readouterr().out
    written = json.loads((tmp_path / "certainty.json").read_text())
    assert written["certainty"] == pytest.approx(3.0, abs=0.01)
    assert (written["false_positives_left"], written["scans"], written["tumor_labels"]) == (0.25, 4, ["tumor"])
    drop = ["drop-uncertain", "--predictions", str(predicted), "--certainty", str(tmp_path / "certainty.json")]
    assert main([*drop, "--output", str(final)]) == 0
    assert "1 scans, 2 tumours kept, 1 dropped" in capsys.readouterr().out
    assert (final / "dataset.json").read_text() == (predicted / "dataset.json").read_text()
    before, after = (SimpleITK.ReadImage(str(folder / "a.nii.gz")) for folder in (predicted, final))
    for what in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
        assert getattr(before, what)() == getattr(after, what)()
    before, after = (SimpleITK.GetArrayFromImage(each) for each in (before, after))
    gone = before != after
    assert sorted({tuple(place) for place in np.argwhere(gone)[:, 2:].tolist()}) == [(2,), (3,), (4,)]
    assert np.array_equal(after[gone], host[gone])
    assert set(host[gone]) == {0, 1}
    assert ((before == 2) & ~gone).sum() == (after == 2).sum() == 54
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*drop, "--output", str(final)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_probabilities_on_another_grid_than_the_label_map_are_refused(tmp_path):
    write_dataset_json(tmp_path, PLAIN)
    write_prediction(tmp_path, "a", (2.5, 6.0))
    image = SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))
    turned = SimpleITK.PermuteAxes(image, (2, 0, 1))
    SimpleITK.WriteImage(turned, str(tmp_path / "a.nii.gz"))
    with pytest.raises(CorruptImageError, match=r"a\.npz should hold probabilities of shape"):
        PredictionFolder(tmp_path).certainties("a")


def test_what_cannot_be_read_is_told(tmp_path, capsys):
    write_dataset_json(tmp_path, {"background": 0, "liver": 1, "spleen": 2})
    write_prediction(tmp_path, "a", (2.0,))
    with pytest.raises(MissingLabelError, match="--tumor-label"):
        PredictionFolder(tmp_path)
    write_dataset_json(tmp_path, PLAIN)
    np.savez(tmp_path / "a.npz", probabilities=np.zeros((2, 12, 16, 40), np.float32))
    with pytest.raises(CorruptImageError, match=r"shape \(3, 12, 16, 40\).*but has \(2, 12, 16, 40\)"):
        PredictionFolder(tmp_path).certainties("a")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(CorruptImageError, match=r"a\.npz cannot be read as nnU-Net's probabilities"):
        PredictionFolder(tmp_path).certainties("a")
    (tmp_path / "a.npz").unlink()
    with pytest.raises(DatasetError, match=r"no probabilities \(<case>\.npz\) of a\..*--save_probabilities"):
        PredictionFolder(tmp_path)
    other = tmp_path / "other.json"
    other.write_text("{}")
    words = ["drop-uncertain", "--predictions", str(tmp_path), "--certainty", str(other), "--output", "x"]
    assert main(words) == 1
    assert "other.json is no file that difftumor calibrate wrote" in capsys.readouterr().err
