"""Random small data sets through the loader: whatever spacing, shape and organ, batches are right or refusals named."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_difftumor.injection.data_loader import DiffTumorDataLoader, HostCases, SamplingPlan
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.rules import CTIntensities, InjectionRules
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.region import RoiRule
from nnunet_difftumor.tumor.sizes import SizeClass

CT = CTIntensities(mean_hu=90.0, std_hu=25.0, low_hu=-60.0, high_hu=190.0)
LABELS = LabelManager({"background": 0, "liver": 1, "tumor": 2}, None)
NAMED = {
    "organ_lost_in_resampling",
    "no_room",
    "outside_organ",
    "overlap",
    "invisible",
}


class DarkTissue:
    """A stand-in for the diffusion model: the host, 60 HU darker."""

    roi_rule = RoiRule(sides=(32, 48), margin_voxels=8, spacing_range_mm=(1.5, 6.0))
    window_hu = (-175.0, 250.0)
    appearances = (Appearance(contrast_hu=-60.0),)

    def generate(self, host_hu, tumor_masks, appearances, seeds):
        host_hu = np.clip(host_hu, *self.window_hu)
        return GeneratedRegions(host_hu - np.float32(60.0), host_hu)


def make_synthesizer():
    return TumorSynthesizer(DarkTissue())


class MemoryDataset:
    """Cases in memory, as nnU-Net's data sets hand them out."""

    def __init__(self, cases):
        self._cases = cases
        self.identifiers = list(cases)

    def load_case(self, identifier):
        image, labels = self._cases[identifier]
        locations = DefaultPreprocessor._sample_foreground_locations(labels[None], [1, 2])
        return image[None], labels[None], None, {"class_locations": locations}


def draw_organ(kind, shape, rng):
    """One voxel, a thin sheet, a ball, a ragged cloud, or the whole volume."""
    organ = np.zeros(shape, dtype=bool)
    centre = [int(rng.integers(size)) for size in shape]
    if kind == "voxel":
        organ[tuple(centre)] = True
    elif kind == "sheet":
        organ[:, centre[1]] = True
    elif kind == "ball":
        grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
        organ = np.sqrt((grid**2).sum(axis=0)) < rng.uniform(2, 0.6 * max(shape))
    elif kind == "cloud":
        organ = rng.random(shape) < 0.6
    else:
        organ[...] = True
    return organ


def draw_dataset(seed):
    rng = np.random.default_rng(seed)
    in_plane_mm = float(np.exp(rng.uniform(np.log(0.5), np.log(6.0))))
    anisotropy = float(np.exp(rng.uniform(0, np.log(10.0))))
    spacing = (min(in_plane_mm * anisotropy, 12.0), in_plane_mm, in_plane_mm)
    shape = tuple(int(size) for size in rng.integers(6, 44, size=3))
    patch = tuple(int(size) for size in rng.integers(2, 9, size=3) * 4)
    kinds = {f"case_{number}": str(rng.choice(["voxel", "sheet", "ball", "cloud", "whole"])) for number in range(2)}
    cases = {}
    for name, kind in kinds.items():
        organ = draw_organ(kind, shape, rng)
        image_hu = np.where(organ, 110.0, -40.0) + rng.normal(0, 10, shape)
        cases[name] = (CT.normalise(image_hu.astype(np.float32)), organ.astype(np.int16))
    return spacing, patch, cases, rng


def make_loader(spacing, patch, cases, seed, *, is_raw):
    is_flat = max(patch) / patch[0] > 3  # nnU-Net's rule for dummy 2D augmentation
    angle = np.pi if is_flat else np.pi / 6
    crop = get_patch_size(patch, (-angle, angle), (-angle, angle), (-angle, angle), (0.85, 1.25))
    if is_flat:
        crop[0] = patch[0]
    rules = InjectionRules(
        organ_label=1,
        tumor_label=2,
        exophytic=bool(seed % 3 == 0),
        spacing_mm=spacing,
        intensities=CT,
        size_classes=(SizeClass(name="any", radius_mm=(1.0, 14.0), probability=1.0, max_count=3),),
    )
    transforms = nnUNetTrainer.get_training_transforms(patch, (-angle, angle), None, (0, 1, 2), is_flat)
    return DiffTumorDataLoader(
        MemoryDataset(cases),
        2,
        crop,
        patch,
        LABELS,
        injectors=[TumorInjector(make_synthesizer, rules)],
        plan=SamplingPlan(
            healthy=HostCases(dict.fromkeys(cases, (0,)), 1.0), annotated=HostCases({}, 0.0), seed_words=(seed, 0)
        ),
        transforms=None if is_raw else transforms,
        oversample_foreground_percent=0.5,
    )


def cut(array, record, fill):
    wide = np.pad(array, 120, constant_values=fill)
    start = np.asarray(record["crop_start"]) + 120
    return wide[tuple(slice(int(a), int(a) + size) for a, size in zip(start, record["crop_size"], strict=True))]


def check_dataset(seed):
    """Check one batch of raw crops voxel by voxel, and one of final patches; returns what happened."""
    spacing, patch, cases, _ = draw_dataset(seed)
    np.random.seed(seed)  # noqa: NPY002 (nnU-Net draws from the global stream)
    torch.manual_seed(seed)
    batch = next(make_loader(spacing, patch, cases, seed, is_raw=True))
    report = batch["difftumor"]
    counts = Counter(report["counts"])
    rejected = {key.removeprefix("rejected_"): n for key, n in counts.items() if key.startswith("rejected_")}
    assert set(rejected) <= NAMED
    assert counts["carrying"] == 2 == counts["injected"] + counts["out_of_view"] + sum(rejected.values())
    records = iter(report["records"])
    for index, name in enumerate(batch["keys"]):
        if not (batch["target"][index] == 2).any():
            continue
        record = next(records)
        assert record["case"] == name
        image, labels = cut(cases[name][0], record, 0.0), cut(cases[name][1], record, -1)
        new_image, new_labels = batch["data"][index, 0].numpy(), batch["target"][index, 0].numpy()
        is_new = new_labels != labels
        assert set(np.unique(new_labels[is_new])) == {2}
        assert set(np.unique(labels[is_new])) <= ({0, 1} if record["exophytic"] else {1})
        assert np.array_equal(new_image[labels == -1], image[labels == -1])
        assert not np.isnan(new_image).any()
        volume_mm3 = sum(tumor["label_mm3"] for tumor in record["tumors"])
        assert np.isclose(is_new.sum() * np.prod(spacing), volume_mm3)
        assert all(abs(tumor["contrast_hu"]) >= 5 for tumor in record["tumors"])
        was_organ = is_new & (labels == 1)  # contrast is against the organ, not against the fat that it grows into
        brighter = (new_image[was_organ] > image[was_organ]).mean()
        assert brighter <= 0.25  # darker, as was asked for; at the outline half of a voxel is the organ's
    assert next(records, None) is None

    batch = next(make_loader(spacing, patch, cases, seed, is_raw=False))
    assert batch["data"].shape == (2, 1, *patch)
    assert torch.isfinite(batch["data"]).all()
    seen = sum(bool((target == 2).any()) for target in batch["target"])
    assert seen == batch["difftumor"]["counts"].get("injected", 0)
    return counts


def check_datasets(seeds):
    total = Counter()
    for seed in seeds:
        total.update(check_dataset(seed))
    assert total["injected"] > 0.25 * total["carrying"], total
    assert sum(count for key, count in total.items() if key.startswith("rejected_")) > 0, total


def test_random_data_sets():
    check_datasets(range(25))


@pytest.mark.slow
def test_three_hundred_random_data_sets():
    check_datasets(range(1000, 1300))
