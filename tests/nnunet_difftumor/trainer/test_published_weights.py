"""Published weights from their files to a training: the command, the leak guard, nnU-Net's own commands."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import LeakError
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor


@pytest.fixture
def files(official_format: Path) -> tuple[str, ...]:
    """Words that name the files of the published structure."""
    return (
        "--autoencoder",
        f"{official_format}/autoencoder.ckpt",
        "--diffusion",
        f"{official_format}/early.pt",
        "--organ",
        "liver",
    )


def convert(files: tuple[str, ...], output: Path, *words: str) -> Path:
    assert main(["convert-weights", *files, "--output", str(output), *words]) == 0
    return output


def test_the_command_tells_the_licences_and_replaces_only_what_it_made_and_steps_are_the_networks_own(
    files, tmp_path, capsys
):
    output = convert(files, tmp_path / "generator")
    printed = capsys.readouterr().out
    assert "CC BY-NC-ND 4.0" in printed
    assert "Apache-2.0" in printed
    assert f"--generator {output} --output look" in printed
    assert main(["convert-weights", *files, "--output", str(output)]) == 1
    assert "add --overwrite" in capsys.readouterr().err
    convert(files, output, "--overwrite", "--composite", "published")
    assert json.loads((output / "conversion.json").read_text())["composite"] == "published"
    image, mask = tmp_path / "ct.nii.gz", tmp_path / "organ.nii.gz"
    rng = np.random.default_rng(0)
    nibabel.save(nibabel.Nifti1Image(rng.normal(90.0, 9.0, (32, 32, 32)).astype(np.int16), np.eye(4)), image)
    nibabel.save(nibabel.Nifti1Image(np.ones((32, 32, 32), np.uint8), np.eye(4)), mask)
    look = ["--ct", str(image), "--organ-mask", str(mask), "--generator", str(output), "--output", str(tmp_path / "o")]
    assert main(["synthesize", *look, "--steps", "2"]) == 1
    assert "ConfigurationError: This generator draws in steps of its own; 2 were asked" in capsys.readouterr().err
    for name in ("autoencoder.ckpt", "early.pt"):  # downloads that lie in the folder to be replaced
        shutil.copy(Path(files[1]).with_name(name), output)
    own = ("--autoencoder", f"{output}/autoencoder.ckpt", "--diffusion", f"{output}/early.pt", "--organ", "liver")
    assert main(["convert-weights", *own, "--output", str(output), "--overwrite"]) == 1
    assert (output / "early.pt").is_file()
    (tmp_path / "cases.txt").write_text("imagesTr/liver_1_0000.nii.gz\n")
    listed = ["--training-cases", str(tmp_path / "cases.txt")]
    assert main(["convert-weights", *files, "--output", str(tmp_path / "new"), *listed]) == 1
    assert "without folder, channel suffix and ending" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "conversion.json").write_text("{}")
    (tmp_path / "mine" / "thesis.txt").touch()
    assert main(["convert-weights", *files, "--output", str(tmp_path / "mine"), "--overwrite"]) == 1
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_the_trainer_warns_that_it_may_know_the_validation_cases_and_refuses_one_that_is_named(
    files, tmp_path, make_nnunet_project, monkeypatch, capsys
):
    project = make_nnunet_project()
    project.activate(monkeypatch)
    project.configure(generator=str(convert(files, tmp_path / "unknown")))
    trainer = project.make_trainer(nnUNetTrainerDiffTumor)
    trainer._prepare_training()
    warnings = json.loads((project.output() / "difftumor_config.json").read_text())["leak_warnings"]
    assert any("none can be told" in line and "cannot be excluded" in line for line in warnings)
    log = next(project.output().glob("training_log_*.txt")).read_text()
    assert "about 11 CPU-seconds a tumour" in log
    assert trainer._prepared.injectors[0].rules.edges == ()  # none was measured on the published training tumours
    capsys.readouterr()
    main(["check", "-d", "905", "-f", "0"])
    checked = capsys.readouterr().out
    assert "preset published, trained on cases that are not all known: liver tumours" in checked
    assert "! leak: Of the cases that trained this generator none can be told" in checked
    validated = trainer.do_split()[1][0]
    (tmp_path / "cases.txt").write_text(f"elsewhere\n{validated}\n")
    named = convert(files, tmp_path / "named", "--training-cases", str(tmp_path / "cases.txt"))
    project.configure(generator=str(named), seed=1)
    with pytest.raises(LeakError, match=validated):
        project.make_trainer(nnUNetTrainerDiffTumor, fold=0)._prepare_training()


@pytest.mark.slow
@pytest.mark.parametrize("composite", ["own", "published"])
def test_a_training_with_converted_weights_puts_tumours_in_and_predicts(
    files, tmp_path, make_nnunet_project, composite
):
    project = make_nnunet_project()
    generator = convert(files, tmp_path / "generator", "--composite", composite)
    project.configure(generator=str(generator))
    words = ("905", "3d_fullres", "0", "-tr", "nnUNetTrainerDiffTumor", "-device", "cpu")
    printed = project.run("nnUNetv2_train", *words, environment={"nnUNet_n_proc_DA": "1"})
    assert "cannot be excluded that it knows this fold's validation cases" in printed
    with (project.output() / "injection_counts.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert int(row["injected"]) > 0
    names = ("-d", "905", "-c", "3d_fullres", "-tr", "nnUNetTrainerDiffTumor", "-f", "0", "-device", "cpu", "-npp", "1")
    project.run("nnUNetv2_predict", "-i", str(project.raw / "imagesTr"), "-o", str(tmp_path / "out"), *names)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == len(list((project.raw / "labelsTr").iterdir()))
