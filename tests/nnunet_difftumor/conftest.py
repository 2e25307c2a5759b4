"""A small preprocessed nnU-Net data set, made in seconds without nnU-Net's planning."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion.generator.provenance import (
    CaseFingerprint,
    Provenance,
    hash_array,
    hash_content,
    hash_identifier,
    hash_tumor_mask,
    save_provenance,
)
from nnunet_difftumor.cases.tumor_prints import print_mask
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.ct.reading import read_ct, read_labels
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.region import RoiRule

DATASET_NAME = "Dataset905_Test"
_PLAIN = {"background": 0, "liver": 1, "tumor": 2}
_REGIONS = {"background": 0, "whole_liver": [1, 2], "tumor": 2}
LABELLINGS: dict[str, dict[str, Any]] = {
    "plain": {"labels": _PLAIN},
    "regions": {"labels": _REGIONS, "regions_class_order": [1, 2]},
    "ignore": {"labels": {**_PLAIN, "ignore": 3}},
    "regions+ignore": {"labels": {**_REGIONS, "ignore": 3}, "regions_class_order": [1, 2]},
}
_IGNORED_ROWS = 14


@dataclass(frozen=True)
class NnunetProject:
    """nnU-Net's three folders with one data set that is ready to train.

    Attributes:
        root: Folder of raw, preprocessed and results.
        generator: Generator folder that the settings name.
        dataset: Name of the data set.
    """

    root: Path
    generator: Path
    dataset: str = DATASET_NAME

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.dataset

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.dataset

    def output(
        self, fold: int | str = 0, *, trainer: str = "nnUNetTrainerDiffTumor", configuration: str = "3d_fullres"
    ) -> Path:
        name = f"{trainer}__nnUNetPlans__{configuration}"
        return self.root / "results" / DATASET_NAME / name / f"fold_{fold}"

    def activate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this the project of nnU-Net in this process."""
        for key, value in self.environment().items():
            if key.startswith("nnUNet_"):
                monkeypatch.setenv(key, value)
        monkeypatch.delenv("nnUNet_difftumor", raising=False)

    def make_trainer(self, trainer: Any, fold: int | str = 0, configuration: str = "3d_fullres") -> Any:
        """Make a trainer of the project in this process."""
        import torch

        plans = json.loads((self.preprocessed / "nnUNetPlans.json").read_text())
        dataset_json = json.loads((self.preprocessed / "dataset.json").read_text())
        return trainer({**plans, "continue_training": False}, configuration, fold, dataset_json, torch.device("cpu"))

    def environment(self) -> dict[str, str]:
        """Environment for nnU-Net's commands: one thread, no background worker."""
        from nnunet_difftumor.trainer.discovery import ext_trainer_folder

        inherited = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
        return {
            **inherited,
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
            "nnUNet_extTrainer": str(ext_trainer_folder()),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",  # nnU-Net uses every core on a CPU; spinning threads starve each other
            "GOMP_SPINCOUNT": "0",
        }

    def run(self, *words: str, environment: dict[str, str] | None = None, expected: int = 0) -> str:
        """Run a command in the project's environment and return what it printed."""
        process = subprocess.run(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            env={**self.environment(), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert process.returncode == expected, process.stdout[-5000:]
        return process.stdout

    def configure(self, **settings: Any) -> None:
        """Write difftumor.json beside the plans."""
        values = {
            "generator": str(self.generator),
            "size_classes": [{"name": "small", "radius_mm": [5, 8], "probability": 1, "max_count": 2}],
            "injection_probability": 1.0,
            "num_epochs": 1,
            "num_iterations_per_epoch": 5,
            "num_val_iterations_per_epoch": 1,
        }
        (self.preprocessed / "difftumor.json").write_text(json.dumps({**values, **settings}))

    def add_extra(
        self,
        names: list[str],
        dataset: str = "Dataset906_Extra",
        *,
        labelling: dict[str, Any] | None = None,
        first_seed: int = 500,
        is_preprocessed: bool = True,
    ) -> NnunetProject:
        """Make a second data set of healthy cases, preprocessed with the plans of this one as nnU-Net does."""
        extra = NnunetProject(self.root, self.generator, dataset)
        _write_raw(extra, names, labelling or LABELLINGS["plain"], first_seed)
        if not is_preprocessed:
            return extra
        plans = json.loads((self.preprocessed / "nnUNetPlans.json").read_text())
        name = f"nnUNetPlans_for_{self.dataset}"
        plans["configurations"]["3d_fullres"]["data_identifier"] = f"{name}_3d_fullres"
        _preprocess(extra, names, {**plans, "plans_name": name, "dataset_name": dataset})
        return extra

    def shrink_plans(self) -> None:
        """Replace patch and network that nnU-Net planned by small ones."""
        self.edit_plans(**SMALL_CONFIGURATION)

    def use_dummy_2d(self) -> None:
        """Plan a patch so flat that nnU-Net augments within its planes only."""
        self.edit_plans(patch_size=[12, 40, 40], **_configuration_of({**SMALL_NETWORK, "strides": FLAT_STRIDES}))

    def use_residual_encoder(self) -> None:
        """Plan nnU-Net's residual encoder."""
        kept = {key: value for key, value in SMALL_NETWORK.items() if key != "n_conv_per_stage"}
        self.edit_plans(**_configuration_of({**kept, "n_blocks_per_stage": [1, 1, 1]}, "ResidualEncoderUNet"))

    def edit_plans(self, **changes: Any) -> None:
        """Change entries of the configuration 3d_fullres."""
        path = self.preprocessed / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        plans["configurations"]["3d_fullres"].update(changes)
        path.write_text(json.dumps(plans))


class ContrastTissue:
    """A stand-in for the diffusion model: the host, with the requested contrast inside the mask."""

    roi_rule = RoiRule(sides=(32, 48), margin_voxels=8, spacing_range_mm=(1.5, 6.0))
    window_hu = (-175.0, 250.0)
    appearances = (Appearance(contrast_hu=-50.0),)

    def generate(self, host_hu, tumor_masks, appearances, seeds):  # type: ignore[no-untyped-def]
        host_hu = np.clip(host_hu, *self.window_hu)
        contrast_hu = np.array([look.contrast_hu for look in appearances], np.float32).reshape(-1, 1, 1, 1)
        return GeneratedRegions(host_hu + contrast_hu * tumor_masks, host_hu)


def make_contrast_synthesizer() -> TumorSynthesizer:
    return TumorSynthesizer(ContrastTissue())  # type: ignore[arg-type]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of nnU-Net's three, which are empty."""
    for key in ("raw", "preprocessed", "results"):
        (tmp_path / key).mkdir()
        monkeypatch.setenv(f"nnUNet_{key}", str(tmp_path / key))
    monkeypatch.delenv("nnUNet_difftumor", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def contrast_source() -> Callable[[], TumorSynthesizer]:
    """A source of tumours that need no network."""
    return make_contrast_synthesizer


def draw_case(seed: int, *, has_tumor: bool) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """A body with a liver of 110 HU and perhaps a tumour of 60 HU, 40 x 40 x 40 voxels. Returns HU and labels."""
    rng = np.random.default_rng(seed)
    offset = np.indices((40, 40, 40)).reshape(3, -1).T - 19.5
    labels = (np.linalg.norm(offset / (14, 15, 16), axis=1) < 1).astype(np.int16)
    if has_tumor:
        labels[np.linalg.norm(offset - rng.uniform(-5, 5, size=3), axis=1) < 4] = 2
    mean_hu = np.array([-90.0, 110.0, 60.0])[labels]
    mean_hu[np.linalg.norm(offset / 19, axis=1) > 1] = -1000.0
    image_hu = mean_hu + rng.normal(0, 12, size=len(labels))
    return image_hu.reshape(40, 40, 40).round().astype(np.int16), labels.reshape(40, 40, 40)


@pytest.fixture(scope="session")
def generator_with_provenance(nano_generator_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained generator, said to be trained on a case that no test validates on."""
    folder = tmp_path_factory.mktemp("with_provenance") / "generator"
    shutil.copytree(nano_generator_folder, folder)
    elsewhere = CaseFingerprint(identifier_hash=hash_identifier("elsewhere"), image_hash="0" * 64)
    save_provenance(folder / "provenance.json", Provenance(diffusion=(elsewhere,), autoencoder=(elsewhere,)))
    return folder


@pytest.fixture(scope="session")
def fingerprint_case() -> Callable[..., CaseFingerprint]:
    """Fingerprint a case from its files, as the leak guard reads them: `fingerprint_case(case, tumor_values)`."""

    def fingerprint(case: Case, tumor_values: Sequence[int] = ()) -> CaseFingerprint:
        ct, seen = read_ct(case.image_path), {}
        if case.label_path and tumor_values:
            labels, geometry = read_labels(case.label_path)
            mask = np.isin(labels, tumor_values)
            seen["tumor_mask_hash"] = hash_tumor_mask(mask)
            seen["tumor_prints"] = print_mask(mask, geometry, case.label_path, ct if mask.any() else None)
        return CaseFingerprint(
            identifier_hash=hash_identifier(case.identifier),
            image_hash=hash_array(ct.image_hu),
            content_hash=hash_content(ct.image_hu),
            **seen,
        )

    return fingerprint


@pytest.fixture(scope="session")
def make_nnunet_project(
    generator_with_provenance: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., NnunetProject]:
    """Make a project of its own: `make_nnunet_project(tumor_cases=3, healthy_cases=8, labelling="regions")`."""

    templates: dict[tuple[int, int, bool, str], Path] = {}

    def make(
        *, tumor_cases: int = 3, healthy_cases: int = 8, is_preprocessed: bool = True, labelling: str = "plain"
    ) -> NnunetProject:
        key = (tumor_cases, healthy_cases, is_preprocessed, labelling)
        if key not in templates:
            template = NnunetProject(tmp_path_factory.mktemp("nnunet_template"), generator_with_provenance)
            names = [f"tumor_{number}" for number in range(tumor_cases)]
            names += [f"healthy_{number}" for number in range(healthy_cases)]
            _write_raw(template, names, LABELLINGS[labelling])
            if is_preprocessed:
                _preprocess(template, names, _plans())
                template.configure()
            templates[key] = template.root
        project = NnunetProject(tmp_path_factory.mktemp("nnunet"), generator_with_provenance)
        shutil.copytree(templates[key], project.root, dirs_exist_ok=True)
        return project

    return make


def _write_raw(project: NnunetProject, names: list[str], labelling: dict[str, Any], first_seed: int = 0) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (project.raw / folder).mkdir(parents=True)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for seed, name in enumerate(names, start=first_seed):
        image_hu, labels = draw_case(seed, has_tumor=name.startswith("tumor"))
        if name.startswith("tumor") and "ignore" in labelling["labels"]:
            labels[:, :_IGNORED_ROWS] = labelling["labels"]["ignore"]
        nibabel.save(nibabel.Nifti1Image(image_hu.T, affine), project.raw / "imagesTr" / f"{name}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels.T, affine), project.raw / "labelsTr" / f"{name}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "numTraining": len(names), "file_ending": ".nii.gz"}
    (project.raw / "dataset.json").write_text(json.dumps({**content, **labelling}))


def _preprocess(project: NnunetProject, names: list[str], plans: dict[str, Any]) -> None:
    """Write plans by hand and let nnU-Net preprocess each case in this process."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    data_folder = project.preprocessed / plans["configurations"]["3d_fullres"]["data_identifier"]
    data_folder.mkdir(parents=True)
    shutil.copytree(project.raw / "labelsTr", project.preprocessed / "gt_segmentations")
    shutil.copy(project.raw / "dataset.json", project.preprocessed)
    (project.preprocessed / "dataset_fingerprint.json").write_text("{}")
    (project.preprocessed / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    dataset_json = json.loads((project.raw / "dataset.json").read_text())
    for name in names:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(data_folder / name),
            [str(project.raw / "imagesTr" / f"{name}_0000.nii.gz")],
            str(project.raw / "labelsTr" / f"{name}.nii.gz"),
            manager,
            configuration,
            dataset_json,
        )


SMALL_NETWORK: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
FLAT_STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def _configuration_of(network: dict[str, Any], name: str = "PlainConvUNet") -> dict[str, Any]:
    return {
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    }


SMALL_CONFIGURATION: dict[str, Any] = {
    "batch_size": 2,
    "patch_size": [40, 40, 40],
    **_configuration_of(SMALL_NETWORK),
}


def _plans() -> dict[str, Any]:
    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    resampling: dict[str, Any] = {}
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        resampling[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{kind}_kwargs"] = {**resample, "is_seg": kind == "seg", "order": order}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "median_image_size_in_voxels": [40.0, 40.0, 40.0],
        "spacing": [2.0, 2.0, 2.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        **SMALL_CONFIGURATION,
        **resampling,
    }
    intensities = {"mean": 107.0, "std": 18.0, "median": 108.0, "min": 20.0, "max": 170.0}
    intensities |= {"percentile_00_5": 36.0, "percentile_99_5": 142.0}
    return {
        "dataset_name": DATASET_NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0, 2.0, 2.0],
        "original_median_shape_after_transp": [40, 40, 40],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
