"""The mistakes that users make most: each ends in one line that says what to do, with the command where there is one.

Where a training refuses, its error is what `short_errors` prints; `difftumor check` tells the same before.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import pytest
import torch

from diffusion.generator.folder_check import GeneratorFolderError
from diffusion.generator.provenance import Provenance, save_provenance
from nnunet_difftumor.cli import main
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.trainer.short_errors import is_own
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor


@dataclass
class User:
    """A data set 905 of three annotated and eight healthy cases, split and preprocessed."""

    project: Any
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    fingerprint: Callable[..., Any]
    printed: Callable[[], str]
    make: Callable[..., Any]

    def types(self, command: str) -> str:
        """Run a command that must fail, and return the line that it ends in."""
        assert main(command.split()) == 1, command
        return self.printed()

    def trains(self, device: str = "cpu") -> str:
        """Begin a training that must be refused, and return the message."""
        trainer = self.project.make_trainer(nnUNetTrainerDiffTumor)
        trainer.device = torch.device(device)
        with pytest.raises((DiffTumorError, GeneratorFolderError)) as caught:
            trainer.run_training()
        assert is_own(caught.value)
        return str(caught.value)

    @property
    def words(self) -> dict[str, str]:
        """Names in the commands below."""
        names = {"raw": self.project.raw, "generator": self.project.generator, "folder": self.folder}
        names["ct"] = self.project.raw / "imagesTr" / "healthy_0_0000.nii.gz"
        names["organ"] = self.project.raw / "labelsTr" / "healthy_0.nii.gz"
        return {name: str(path) for name, path in names.items()}


@pytest.fixture
def user(make_nnunet_project, monkeypatch, tmp_path, fingerprint_case, capsys):
    def printed() -> str:
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("difftumor ")]
        assert len(lines) == 1, lines
        return lines[0]

    project = make_nnunet_project()
    project.activate(monkeypatch)
    (project.root / "results").mkdir()
    assert main(["splits", "-d", "905"]) == 0
    capsys.readouterr()
    return User(project, tmp_path, monkeypatch, fingerprint_case, printed, make_nnunet_project)


def wrong_number(user):
    yield user.types("splits -d 906")
    yield user.types("train-autoencoder -d 906 -f 0 --preset nano --output ae")


def folders_not_set(user):
    user.monkeypatch.delenv("nnUNet_raw")
    yield user.types("splits -d 905")


def folders_quoted_twice(user):
    user.monkeypatch.setenv("nnUNet_raw", f'"{user.project.raw.parent}"')
    yield user.types("train-autoencoder -d 905 -f 0 --preset nano --output ae")


def dataset_of_version_1(user):
    old = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "tumor"}, "training": []}
    (user.project.raw / "dataset.json").write_text(json.dumps(old))
    yield user.types("train-autoencoder -d {raw} -f 0 --preset nano --output ae".format(**user.words))


def images_without_channel(user):
    for image in (user.project.raw / "imagesTr").iterdir():
        image.rename(image.with_name(image.name.replace("_0000", "")))
    yield user.types("splits -d 905 --overwrite")


def no_healthy_case(user):
    user.project = user.make(healthy_cases=0)
    user.project.activate(user.monkeypatch)
    yield user.trains()


def generator_of_another_fold(user):
    copy = user.folder / "generator"
    shutil.copytree(user.project.generator, copy)
    folds = json.loads((user.project.preprocessed / "splits_final.json").read_text())
    (name,) = folds[0]["val"]
    raw = user.project.raw
    case = Case(name, raw / "imagesTr" / f"{name}_0000.nii.gz", raw / "labelsTr" / f"{name}.nii.gz")
    save_provenance(copy / "provenance.json", Provenance(diffusion=(user.fingerprint(case, [2]),), autoencoder=()))
    user.project.configure(generator=str(copy))
    yield user.trains()


def other_plans(user):
    yield user.types("small-plans -d 905 -p nnUNetResEncUNetLPlans")


def no_gpu(user):
    user.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield user.trains(device="cuda")


def old_splits(user):
    before_healthy_came = [{"train": ["tumor_1", "tumor_2"], "val": ["tumor_0"]}]
    (user.project.preprocessed / "splits_final.json").write_text(json.dumps(before_healthy_came))
    yield user.trains()


def no_splits(user):
    (user.project.preprocessed / "splits_final.json").unlink()
    yield user.types(
        "train-diffusion -d 905 -f 0 --preset nano --autoencoder {generator} --output d".format(**user.words)
    )


def half_a_download(user):
    ct = user.folder / "ct.nii.gz"
    ct.write_bytes(Path(user.words["ct"]).read_bytes()[:4000])
    yield user.types("synthesize --ct {folder}/ct.nii.gz --organ-mask {organ} --output {folder}/o".format(**user.words))


def half_a_generator(user):
    copy = user.folder / "generator"
    shutil.copytree(user.project.generator, copy)
    weights = copy / "denoiser" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    command = "synthesize --ct {ct} --organ-mask {organ} --generator {folder}/generator --output {folder}/o"
    yield user.types(command.format(**user.words))
    user.project.configure(generator=str(copy))
    yield user.trains()


def wrong_label_name(user):
    command = "train-diffusion -d 905 -f 0 --preset nano --tumor-label lesion --autoencoder {generator} --output d"
    yield user.types(command.format(**user.words))
    user.project.configure(tumor_label="lesion")
    yield user.trains()


def full_disk(user):
    def fill(image, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    user.monkeypatch.setattr(nibabel, "save", fill)
    command = "synthesize --ct {ct} --organ-mask {organ} --generator {generator} --count 1 --output {folder}/o"
    yield user.types(command.format(**user.words))


MISTAKES = {
    wrong_number: r"no data set '906'.*there is Dataset905_Test",
    folders_not_set: "export nnUNet_raw=",
    folders_quoted_twice: "without them: export nnUNet_raw=/",
    dataset_of_version_1: "nnUNetv2_convert_old_nnUNet_dataset.*nnUNetv2_convert_MSD_dataset",
    images_without_channel: "add _0000 before the ending",
    no_healthy_case: r"difftumor add-healthy -d 905 --from OTHER",
    generator_of_another_fold: r"difftumor train-diffusion -d 905 -f 0",
    other_plans: "nnUNetv2_plan_and_preprocess -d 905 -c 3d_fullres, or name other plans .*nnUNetPlans",
    no_gpu: r"difftumor small-plans -d 905",
    old_splits: r"difftumor splits -d 905 --overwrite",
    no_splits: r"Run difftumor splits -d 905",
    half_a_download: r"ct\.nii\.gz.*truncated.*Copy it again",
    half_a_generator: r"diffusion_pytorch_model\.safetensors.*Copy the whole folder again",
    wrong_label_name: "'lesion'.*liver.*tumor",
    full_disk: "No space left on device",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_ends_in_one_line_that_says_what_to_do(user, mistake):
    told = list(mistake(user))
    assert told
    for line in told:
        assert re.search(MISTAKES[mistake], line), line
        assert "\n" not in line.strip()
