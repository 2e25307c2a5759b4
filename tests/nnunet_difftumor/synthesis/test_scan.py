from __future__ import annotations

import errno
import json
import shutil
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from diffusion import generator_folder
from nnunet_difftumor.cli import main
from nnunet_difftumor.ct.reading import read_ct, read_mask
from nnunet_difftumor.ct.writing import write_labels_like
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.support.pictures.montage import draw_montage
from nnunet_difftumor.synthesis.request import ScanRequest
from nnunet_difftumor.synthesis.scan import read_records, synthesize_scan
from nnunet_difftumor.synthesis.tissue import generator_names as builtin
from nnunet_difftumor.synthesis.tissue.diffusion import PRECISION_VARIABLE

SLOPE, INTERCEPT = 0.5, -1024.0


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, Path]:
    """A CT stored as int16 with slope and intercept, sheared voxel order, and an organ mask with another label."""
    rng = np.random.default_rng(0)
    shape = (60, 56, 30)  # (X, Y, Z)
    hu = rng.normal(60.0, 10.0, shape)
    organ = np.zeros(shape, dtype=np.uint8)
    organ[8:-8, 8:-8, 4:-4] = 1
    organ[8:14, 8:14, 4:-4] = 3
    hu[organ == 0] -= 160.0  # fat
    hu[:4] -= 900.0  # air
    affine = np.diag([-1.5, 1.5, 3.0, 1.0])
    stored = np.round((hu - INTERCEPT) / SLOPE).astype(np.int16)
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_slope_inter(SLOPE, INTERCEPT)
    image.header["descrip"] = b"kept"
    ct_path, mask_path = tmp_path / "scan.nii.gz", tmp_path / "organ.nii.gz"
    nibabel.save(image, ct_path)
    nibabel.save(nibabel.Nifti1Image(organ, affine), mask_path)
    return ct_path, mask_path


def arguments(scan: tuple[Path, Path], generator: Path, output: Path, *more: str) -> list[str]:
    ct, mask = map(str, scan)
    fixed = ["synthesize", "--ct", ct, "--organ-mask", mask, "--organ-label", "1", "--generator", str(generator)]
    return [*fixed, "--output", str(output), "--radius-mm", "6", "8", "--seed", "3", *more]


def test_the_command_writes_everything_and_changes_nothing_outside(scan, nano_generator_folder, tmp_path):
    output = tmp_path / "out"
    assert main(arguments(scan, nano_generator_folder, output, "--count", "2")) == 0
    assert {path.name for path in output.iterdir()} == {"ct.nii.gz", "label.nii.gz", "tumors.json", "montage.png"}
    before, after = nibabel.load(scan[0]), nibabel.load(output / "ct.nii.gz")
    assert after.header.binaryblock == before.header.binaryblock
    old, new = before.dataobj.get_unscaled(), after.dataobj.get_unscaled()
    label = np.asarray(nibabel.load(output / "label.nii.gz").dataobj)
    mask = np.asarray(nibabel.load(scan[1]).dataobj)
    tumor = label == 4
    assert tumor.any()
    assert np.array_equal(label[~tumor], mask[~tumor])
    assert (mask[tumor] == 1).all(), "tumours replace the organ only"
    changed = old != new
    assert changed[tumor].mean() > 0.9
    assert (mask[changed] == 1).all()
    records = json.loads((output / "tumors.json").read_text())
    assert records["synthetic"] is True
    assert 1 <= len(records["tumors"]) <= 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".partial")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_record_gives_the_same_bytes(scan, nano_generator_folder, tmp_path, monkeypatch, precision):
    monkeypatch.setenv(PRECISION_VARIABLE, precision)
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(arguments(scan, nano_generator_folder, first)) == 0
    replay = ("--replay", str(first / "tumors.json"))
    assert main(arguments(scan, nano_generator_folder, second, *replay)) == 0
    for name in ("ct.nii.gz", "label.nii.gz"):
        assert np.array_equal(
            nibabel.load(first / name).dataobj.get_unscaled(), nibabel.load(second / name).dataobj.get_unscaled()
        )
    assert read_records(first / "tumors.json") == read_records(second / "tumors.json")
    assert {json.loads((each / "tumors.json").read_text())["precision"] for each in (first, second)} == {precision}


def test_a_replay_takes_the_steps_of_the_record_and_no_other_generator(scan, nano_generator_folder, tmp_path, capsys):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert main(arguments(scan, nano_generator_folder, first, "--steps", "2", "--target", "liver")) == 0
    replay = ("--replay", str(first / "tumors.json"))
    assert main(arguments(scan, nano_generator_folder, second, *replay)) == 0
    before, after = (nibabel.load(each / "ct.nii.gz").dataobj.get_unscaled() for each in (first, second))
    assert np.array_equal(before, after)
    facts = [json.loads((each / "tumors.json").read_text()) for each in (first, second)]
    assert [(each["steps"], each["target"]) for each in facts] == [(2, "liver")] * 2
    assert main(arguments(scan, nano_generator_folder, third, *replay, "--steps", "3")) == 0
    assert not np.array_equal(before, nibabel.load(third / "ct.nii.gz").dataobj.get_unscaled())
    other = Path(shutil.copytree(nano_generator_folder, tmp_path / "other"))
    info = json.loads((other / "generator.json").read_text())
    (other / "generator.json").write_text(json.dumps({**info, "data_note": "another"}))
    capsys.readouterr()
    assert main(arguments(scan, other, tmp_path / "fourth", *replay)) == 1
    assert "was made with another generator" in capsys.readouterr().err
    assert main(arguments(scan, nano_generator_folder, tmp_path / "fifth", *replay, "--tumor-mask", str(scan[1]))) == 1
    assert "--replay and --tumor-mask" in capsys.readouterr().err


def test_a_generator_is_read_and_identified_once(scan, nano_generator_folder, tmp_path, monkeypatch):
    assert main(arguments(scan, nano_generator_folder, tmp_path / "first")) == 0
    recorded = json.loads((tmp_path / "first" / "tumors.json").read_text())["generator_hash"]
    assert recorded == generator_folder.hash_generator(nano_generator_folder)
    hashed = []
    monkeypatch.setattr(generator_folder, "hash_generator", lambda folder: hashed.append(folder) or recorded)
    replay = ("--replay", str(tmp_path / "first" / "tumors.json"))
    assert main(arguments(scan, nano_generator_folder, tmp_path / "second", *replay)) == 0
    assert hashed == [nano_generator_folder]


@pytest.mark.parametrize("value", [255, 300])
def test_masks_with_large_values_keep_their_tumours(scan, nano_generator_folder, tmp_path, value):
    mask = nibabel.load(scan[1])
    organ = np.where(np.asarray(mask.dataobj) == 1, value, 0).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(organ, mask.affine), scan[1])
    words = arguments(scan, nano_generator_folder, tmp_path / "out")
    words[words.index("--organ-label") + 1] = str(value)
    assert main(words) == 0
    label = np.asarray(nibabel.load(tmp_path / "out" / "label.nii.gz").dataobj)
    assert set(np.unique(label)) == {0, value, value + 1}
    assert json.loads((tmp_path / "out" / "tumors.json").read_text())["tumor_label"] == value + 1


def test_labels_lie_on_the_grid_of_a_tilted_gantry(scan, nano_generator_folder, tmp_path):
    for path in scan:
        image = nibabel.load(path)
        affine = image.affine.copy()
        affine[1, 2] = 0.8  # mm that each slice is moved
        image.set_qform(None, 0)
        image.set_sform(affine, 1)
        nibabel.save(image, path)
    assert main(arguments(scan, nano_generator_folder, tmp_path / "out")) == 0
    label = nibabel.load(tmp_path / "out" / "label.nii.gz")
    assert np.allclose(label.affine, affine)
    assert (np.asarray(label.dataobj) == 4).any()
    read_mask(tmp_path / "out" / "label.nii.gz", read_ct(tmp_path / "out" / "ct.nii.gz"))


def test_inputs_are_never_replaced(scan, nano_generator_folder, tmp_path, capsys):
    folder = tmp_path / "patient"
    folder.mkdir()
    moved = folder / "ct.nii.gz", folder / "label.nii.gz"
    for before, after in zip(scan, moved, strict=True):
        shutil.move(before, after)
    content = [path.read_bytes() for path in moved]
    assert main(arguments(moved, nano_generator_folder, folder, "--overwrite")) == 1
    assert "which is an input" in capsys.readouterr().err
    assert [path.read_bytes() for path in moved] == content


def test_the_current_folder_takes_results(scan, nano_generator_folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(arguments(scan, nano_generator_folder, Path())) == 0
    assert (tmp_path / "here" / "ct.nii.gz").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".partial")] == []


def test_a_folder_and_a_negative_seed_are_named(scan, nano_generator_folder, tmp_path, capsys):
    assert main(arguments((tmp_path, scan[1]), nano_generator_folder, tmp_path / "out")) == 1
    assert "is a folder. Name one file; a DICOM series" in capsys.readouterr().err
    assert main(arguments(scan, nano_generator_folder, tmp_path / "out", "--seed", "-1")) == 1
    assert "--seed must be 0 or more" in capsys.readouterr().err


def test_a_tumour_mask_is_used_as_it_is(scan, nano_generator_folder, tmp_path):
    organ = nibabel.load(scan[1])
    drawn = np.zeros(organ.shape, dtype=np.uint8)
    drawn[25:33, 25:33, 12:16] = 1
    nibabel.save(nibabel.Nifti1Image(drawn, organ.affine), tmp_path / "tumor.nii.gz")
    output = tmp_path / "out"
    more = ("--tumor-mask", str(tmp_path / "tumor.nii.gz"), "--contrast-hu", "-60", "-50")
    assert main(arguments(scan, nano_generator_folder, output, *more)) == 0
    label = np.asarray(nibabel.load(output / "label.nii.gz").dataobj)
    assert np.array_equal(label == 4, drawn == 1)


def requested_contrasts_hu(output: Path) -> list[float]:
    return [tumor["spec"]["contrast_hu"] for tumor in json.loads((output / "tumors.json").read_text())["tumors"]]


def test_a_target_gives_published_contrasts_and_a_range_is_stronger(scan, nano_generator_folder, tmp_path):
    assert main(arguments(scan, nano_generator_folder, tmp_path / "target", "--target", "liver")) == 0
    # tissue of 10 to 87 HU in an organ of 60 HU
    assert all(-51 <= contrast <= 28 for contrast in requested_contrasts_hu(tmp_path / "target"))
    assert not set(requested_contrasts_hu(tmp_path / "target")) & {-40.0, -30.0}  # those of the training tumours
    more = ("--target", "liver", "--contrast-hu", "-75", "-70")
    assert main(arguments(scan, nano_generator_folder, tmp_path / "range", *more)) == 0
    assert all(-75 <= contrast <= -70 for contrast in requested_contrasts_hu(tmp_path / "range"))


def test_own_generators_give_the_contrasts_that_they_were_trained_on(scan, nano_generator_folder, tmp_path):
    assert main(arguments(scan, nano_generator_folder, tmp_path / "out")) == 0
    assert set(requested_contrasts_hu(tmp_path / "out")) <= {-40.0, -30.0}
    assert json.loads((tmp_path / "out" / "tumors.json").read_text())["target"] == "training"


def test_heterogeneity_is_drawn_from_the_range(scan, nano_generator_folder, tmp_path):
    assert main(arguments(scan, nano_generator_folder, tmp_path / "out", "--heterogeneity-hu", "3", "4")) == 0
    tumors = json.loads((tmp_path / "out" / "tumors.json").read_text())["tumors"]
    assert all(3 <= tumor["spec"]["heterogeneity_hu"] <= 4 for tumor in tumors)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--heterogeneity-hu", "9", "4"), "heterogeneity_hu needs LO <= HI, got 9 and 4"),
        (("--heterogeneity-hu", "-2", "4"), "heterogeneity_hu must be 0 or more, got -2"),
        (("--contrast-hu", "5", "-5"), "contrast_hu needs LO <= HI"),
        (("--generator", "builtin:lung-huge"), "Known: builtin:soft-tissue-tiny"),
    ],
)
def test_an_unsuitable_wish_is_named(words, message, scan, nano_generator_folder, tmp_path, capsys):
    assert main(arguments(scan, nano_generator_folder, tmp_path / "out", *words)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_ct_in_the_place_of_a_mask_is_called_one(scan, nano_generator_folder, tmp_path, capsys):
    words = arguments(scan, nano_generator_folder, tmp_path / "out")
    given = nibabel.load(words[words.index("--ct") + 1])
    whole = tmp_path / "whole.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.rint(given.get_fdata()).astype(np.int16), given.affine), whole)
    words[words.index("--organ-mask") + 1] = str(whole)
    assert main(words) == 1
    printed = capsys.readouterr().err
    assert "this looks like an image and no mask" in printed
    assert len(printed) < 600


def test_what_was_placed_is_said_in_words(scan, nano_generator_folder, tmp_path, capsys):
    words = arguments(scan, nano_generator_folder, tmp_path / "out", "--count", "2", "--contrast-hu", "-50", "-40")
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 tumours placed" in printed
    assert "contrasts from -50 to -40 HU" in printed


def test_without_a_generator_the_builtin_one_makes_darker_tumours(scan, nano_generator_folder, tmp_path, monkeypatch):
    folder = tmp_path / "builtin" / "soft-tissue-tiny"
    shutil.copytree(nano_generator_folder, folder)
    info = json.loads((folder / "generator.json").read_text())
    info["training_tumors"][0]["contrast_hu"] = 59.0
    (folder / "generator.json").write_text(json.dumps(info))
    monkeypatch.setattr(builtin, "BUILTIN_ROOT", tmp_path / "builtin")
    words = arguments(scan, Path("unused"), tmp_path / "out", "--count", "4")
    del words[words.index("--generator") : words.index("--generator") + 2]
    assert main(words) == 0
    assert set(requested_contrasts_hu(tmp_path / "out")) == {-30.0}


def test_results_are_not_overwritten_unless_asked(scan, nano_generator_folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(arguments(scan, nano_generator_folder, output)) == 0
    before = (output / "ct.nii.gz").read_bytes()
    assert main(arguments(scan, nano_generator_folder, output, "--seed", "9")) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (output / "ct.nii.gz").read_bytes() == before
    assert main(arguments(scan, nano_generator_folder, output, "--seed", "9", "--overwrite")) == 0
    assert (output / "ct.nii.gz").read_bytes() != before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("empty mask", "no voxel above 0"),
        ("other geometry", "same grid"),
        ("missing label", "--organ-label 7 is not in"),
        ("several labels", "name the organ's with --organ-label"),
        ("nan", "NaN"),
        ("grey values", "HU"),
        ("truncated", "truncated"),
        ("foreign generator", "generator"),
        ("incomplete generator", "autoencoder"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(spoil, message, scan, nano_generator_folder, tmp_path, capsys):
    ct_path, mask_path = scan
    generator, organ_label = nano_generator_folder, ["--organ-label", "1"]
    image, mask = nibabel.load(ct_path), nibabel.load(mask_path)
    values = image.get_fdata()
    if spoil == "empty mask":
        nibabel.save(nibabel.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), mask_path)
    elif spoil == "other geometry":
        nibabel.save(nibabel.Nifti1Image(np.asarray(mask.dataobj)[:-4], mask.affine), mask_path)
    elif spoil == "missing label":
        organ_label = ["--organ-label", "7"]
    elif spoil == "several labels":
        organ_label = []
    elif spoil == "nan":
        values[3, 3, 3] = np.nan
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), image.affine), ct_path)
    elif spoil == "grey values":
        grey = np.clip((values + 160) / 400 * 255, 0, 255).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(grey, image.affine), ct_path)
    elif spoil == "truncated":
        ct_path.write_bytes(ct_path.read_bytes()[:4000])
    elif spoil == "foreign generator":
        generator = tmp_path / "foreign"
        generator.mkdir()
        (generator / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    elif spoil == "incomplete generator":
        generator = tmp_path / "incomplete"
        generator.mkdir()
        for name in ("model_index.json", "generator.json", "provenance.json"):
            (generator / name).write_bytes((nano_generator_folder / name).read_bytes())
    output = tmp_path / "out"
    words = ["synthesize", "--ct", str(ct_path), "--organ-mask", str(mask_path), *organ_label]
    assert main([*words, "--generator", str(generator), "--output", str(output), "--radius-mm", "6", "8"]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".partial")]


def test_an_impossible_request_is_named(scan, nano_generator_folder):
    with pytest.raises(DiffTumorError, match="--count"):
        ScanRequest(ct_path=scan[0], organ_mask_path=scan[1], generator_folder=nano_generator_folder, count=0)


def test_nothing_is_written_when_no_tumour_finds_room(scan, nano_generator_folder, tmp_path):
    mask = nibabel.load(scan[1])
    thin = np.zeros(mask.shape, dtype=np.uint8)
    thin[30, 30, 5:25] = 1
    nibabel.save(nibabel.Nifti1Image(thin, mask.affine), scan[1])
    request = ScanRequest(
        ct_path=scan[0], organ_mask_path=scan[1], generator_folder=nano_generator_folder, radius_mm=(8.0, 9.0)
    )
    result = synthesize_scan(request, tmp_path / "out")
    assert result.tumors == ()
    assert result.rejected == {"no_room": 3}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pat$1$_x.nii.gz", "$x_{$.nii.gz", "caf\udce9.nii.gz"])
def test_a_file_may_have_any_name(scan, nano_generator_folder, tmp_path, name):
    renamed = scan[0].rename(tmp_path / name)
    output = tmp_path / "out $5"
    assert main(arguments((renamed, scan[1]), nano_generator_folder, output, "--count", "1")) == 0
    assert json.loads((output / "tumors.json").read_text())["ct"] == name
    assert (output / "montage.png").is_file()


def refuse_to_synthesize(*_):
    raise AssertionError("the tumours were made first")


def test_an_output_below_a_file_is_named_before_tumours_are_made(
    scan, nano_generator_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("nnunet_difftumor.synthesis.scan._draw_until_enough", refuse_to_synthesize)
    assert main(arguments(scan, nano_generator_folder, scan[1] / "below")) == 1
    said = capsys.readouterr().err
    assert f"--output {scan[1] / 'below'} cannot be written to: Not a directory" in said
    assert said.count("\n") == 1


def test_a_disk_without_room_is_named_before_tumours_are_made(
    scan, nano_generator_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("nnunet_difftumor.synthesis.scan._draw_until_enough", refuse_to_synthesize)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**30, 2**30, 0))
    assert main(arguments(scan, nano_generator_folder, tmp_path / "new" / "out")) == 1
    assert f"--output {tmp_path / 'new' / 'out'} has 0 MiB left" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("ITK: cannot write")])
def test_what_was_computed_is_kept_where_the_disk_fills_up(
    scan, nano_generator_folder, tmp_path, capsys, monkeypatch, error
):
    def fill_up(ct, path, labels):
        if not path.is_relative_to(tmp_path / "temporary"):
            raise error
        write_labels_like(ct, path, labels)

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("nnunet_difftumor.synthesis.scan.write_labels_like", fill_up)
    assert main(arguments(scan, nano_generator_folder, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    (kept,) = (tmp_path / "temporary").iterdir()
    assert f"--output {tmp_path / 'out'} cannot be written to: {str(error).split('] ')[-1]}" in said
    assert f"The results are in {kept}" in said
    assert said.count("\n") == 1
    assert {path.name for path in kept.iterdir()} == {"ct.nii.gz", "label.nii.gz", "tumors.json", "montage.png"}
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".partial")]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_pictures_show_the_planes_of_the_patient_whatever_the_storage(
    scan, nano_generator_folder, tmp_path, monkeypatch, axes
):
    drawn = np.zeros(nibabel.load(scan[1]).shape, dtype=np.uint8)
    drawn[25:33, 25:33, 12:16] = 1
    affine = nibabel.load(scan[1]).affine
    nibabel.save(nibabel.Nifti1Image(drawn, affine), tmp_path / "tumor.nii.gz")
    upside_down = read_ct(scan[0]).image_hu[:28, 1:, 1:57]  # what lies within 35 mm; from below and behind to the left
    for path in (*scan, tmp_path / "tumor.nii.gz"):
        image = nibabel.load(path)
        values, header = np.asarray(image.dataobj).transpose(axes), image.header
        header.set_slope_inter(1, 0)
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine[:, [*axes, 3]], header), path)
    rows = []

    def keep(found, heading):
        rows.extend(found)
        return draw_montage(found, heading)

    monkeypatch.setattr("nnunet_difftumor.synthesis.scan.draw_montage", keep)
    words = ("--tumor-mask", str(tmp_path / "tumor.nii.gz"), "--contrast-hu", "-60", "-60")
    assert main(arguments(scan, nano_generator_folder, tmp_path / "out", *words)) == 0
    assert rows[0].spacing_mm == pytest.approx((3.0, 1.5, 1.5))
    assert np.allclose(rows[0].before_hu, upside_down[::-1, ::-1], atol=0.01)


def test_a_scan_of_one_slice_is_drawn(scan, nano_generator_folder, tmp_path):
    for path in scan:
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, 14:15], image.affine), path)
    words = ("--count", "1", "--contrast-hu", "-80", "-70")  # two or three voxels hold all of it
    assert main(arguments(scan, nano_generator_folder, tmp_path / "out", *words)) == 0
    assert (tmp_path / "out" / "montage.png").is_file()
