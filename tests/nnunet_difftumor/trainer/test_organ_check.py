"""Cases that tumours are put into are looked at in their raw CT: HU, and air in the mask of the organ."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_difftumor.ct import reading
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project()
    project.activate(monkeypatch)
    project.configure(healthy_holdout=0.0)
    return project


def prepare(project):
    trainer = project.make_trainer(nnUNetTrainerDiffTumor)
    trainer._prepare_training()
    return Path(trainer.log_file).read_text()


def change_ct(project, case, change):
    """Replace the CT of a case by change(CT in HU, organ) and preprocess it as nnU-Net does."""
    path, label = project.raw / "imagesTr" / f"{case}_0000.nii.gz", project.raw / "labelsTr" / f"{case}.nii.gz"
    stored = nibabel.load(path)
    image_hu = change(np.asarray(stored.dataobj).copy(), np.asarray(nibabel.load(label).dataobj) == 1)
    nibabel.save(nibabel.Nifti1Image(image_hu.astype(np.int16), stored.affine), path)
    manager = PlansManager(str(project.preprocessed / "nnUNetPlans.json"))
    configuration = manager.get_configuration("3d_fullres")
    folder = project.preprocessed / configuration.data_identifier
    dataset_json = json.loads((project.raw / "dataset.json").read_text())
    for file in folder.glob(f"{case}*"):  # blosc2 replaces none
        file.unlink()
    work = DefaultPreprocessor(verbose=False)
    work.run_case_save(str(folder / case), [str(path)], str(label), manager, configuration, dataset_json)


def fill(share, value_hu):
    """Fill the first share of the organ with one value."""

    def change(image_hu, organ):
        voxels = np.argwhere(organ)
        image_hu[tuple(voxels[: round(share * len(voxels))].T)] = value_hu
        return image_hu

    return change


def test_sound_masks_are_not_mentioned(project):
    assert "of the organ in" not in prepare(project)


def test_air_in_an_organ_is_told_with_its_share_before_a_tumour_is_placed(project, monkeypatch):
    change_ct(project, "healthy_1", fill(0.05, -1000))
    line = "WARNING: 5.0% of the organ in"
    printed = prepare(project)
    assert printed.count(line) == 1
    assert "healthy_1.nii.gz is air in the CT (below -300 HU)" in printed
    monkeypatch.setattr(reading, "check_organ", None)  # what is known is not looked at again
    assert line in prepare(project)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (fill(0.3, -1000), r"30\.0% of the organ in .*healthy_1\.nii\.gz is air"),
        (lambda image_hu, _: image_hu + 1024, r"healthy_1_0000\.nii\.gz should be a CT in HU"),
    ],
    ids=["a third is air", "intercept missing"],
)
def test_a_ct_or_mask_that_cannot_be_right_is_refused(project, change, says):
    change_ct(project, "healthy_1", change)
    with pytest.raises(DiffTumorError, match=says):
        prepare(project)
