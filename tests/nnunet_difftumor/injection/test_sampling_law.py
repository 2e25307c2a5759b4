"""A healthy case with synthetic tumours is sampled as nnU-Net samples an annotated one, measured in phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import stats
from scipy.ndimage import zoom

from nnunet_difftumor.injection.data_loader import DiffTumorDataLoader, HostCases, SamplingPlan
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.records import CaseTumors
from nnunet_difftumor.injection.rules import CTIntensities, InjectionRules
from nnunet_difftumor.phantom.acquisition import Scan, scan_patient
from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.lesions import draw_lesions
from nnunet_difftumor.phantom.styles import LIVER, MIXED, SCAN_SIZES, STANDARD
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES

CT = CTIntensities(mean_hu=100.0, std_hu=30.0, low_hu=-100.0, high_hu=250.0)
LABELS = LabelManager({"background": 0, "liver": 1, "tumor": 2}, None)
SPACINGS_MM = {"small": (3.0, 3.0, 3.0), "full": (3.0, 1.5, 1.5)}
PATCHES = [(16, 32, 32), (32, 48, 48), (32, 64, 64)]
CASES = 6
SMALLEST_P = 0.001


class StockLoader(nnUNetDataLoader):
    """nnU-Net's loader, which remembers where its crops lie."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.middles: list[np.ndarray] = []

    def get_bbox(self, *given: Any, **options: Any) -> Any:
        lower, upper = super().get_bbox(*given, **options)
        self.middles.append(0.5 * np.add(lower, upper))
        return lower, upper


class PlacedLoader(DiffTumorDataLoader):
    """Our loader with given tumours in each case, which remembers where its crops lie."""

    def __init__(self, *given: Any, tumors: dict[str, tuple], **options: Any) -> None:
        super().__init__(*given, **options)
        self.tumors = tumors
        self.middles: list[np.ndarray] = []

    def _draw_tumors(self, organ_voxels: Any, target: int, rng: np.random.Generator) -> CaseTumors:
        return CaseTumors(self.tumors[self._state.case], self.tumors[self._state.case])

    def get_bbox(self, *given: Any, **options: Any) -> Any:
        lower, upper = super().get_bbox(*given, **options)
        self.middles.append(0.5 * np.add(lower, upper))
        return lower, upper


def write_phantoms(folder: Path, size: str) -> dict[str, tuple]:
    """Preprocess the same patients with annotated tumours and without; returns their tumours by case."""
    tumors = {}
    for index in range(CASES):
        rng = np.random.default_rng([5, index])
        anatomy = Anatomy(rng, STANDARD.hospitals[0].phase)
        scan = Scan(anatomy, SCAN_SIZES[size], STANDARD.hospitals[0], rng)
        lesions = draw_lesions(anatomy, LIVER, MIXED, int(rng.integers(1, 4)), scan.z_range_mm, rng)
        start_mm = np.asarray(scan.start_mm) - 0.5 * np.subtract(SPACINGS_MM[size], scan.spacing_mm)
        tumors[f"case_{index}"] = tuple(
            lesion.spec.moved_to(np.subtract(lesion.spec.centre_mm, start_mm)) for lesion in lesions
        )
        for name, present in (("annotated", lesions), ("healthy", ())):
            patient = scan_patient(anatomy, tuple(present), scan, np.random.default_rng(index), (LIVER,))
            factors = np.divide(patient.spacing_mm, SPACINGS_MM[size])
            image_hu = zoom(patient.image_hu.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
            labels = zoom(patient.label, factors, order=0, grid_mode=True, mode="nearest").astype(np.int16)
            nnUNetDatasetBlosc2.save_case(
                CT.normalise(image_hu)[None],
                labels[None],
                {"class_locations": DefaultPreprocessor._sample_foreground_locations(labels[None], [1, 2])},
                str(folder / name / f"case_{index}"),
                chunks=(1, *labels.shape),
                blocks=(1, *(min(side, 32) for side in labels.shape)),
            )
    return tumors


def make_transforms(patch: Sequence[int]) -> tuple[np.ndarray, ComposeTransforms]:
    """nnU-Net's crop size and its spatial transform; the others do not move anything."""
    angle = (-np.pi / 6, np.pi / 6)
    stack = nnUNetTrainer.get_training_transforms(patch, angle, None, (0, 1, 2), False, use_mask_for_norm=[False])
    crop = get_patch_size(patch, angle, angle, angle, (0.85, 1.25))
    return crop, ComposeTransforms([stack.transforms[0], RemoveLabelTansform(-1, 0)])


def take_samples(loader: Any, samples: int, organ_middles: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whether each sample shows tumour and organ, and where its crop lies from the organ's middle, in voxels."""
    np.random.seed(3)  # noqa: NPY002 (nnU-Net draws from the global stream)
    torch.manual_seed(3)
    shown, cases = [], []
    for _ in range(samples // loader.batch_size):
        batch = next(loader)
        cases += list(batch["keys"])
        shown += [((target == 2).any().item(), (target > 0).any().item()) for target in batch["target"]]
    offsets = np.array(loader.middles) - [organ_middles[case] for case in cases]
    tumor, organ = np.array(shown).T
    return {"tumor": tumor, "no organ": ~organ, "depth": offsets[:, 0], "height": offsets[:, 1], "width": offsets[:, 2]}


def compare_kinds(
    folder: Path, tumors: dict[str, tuple], size: str, patch: Sequence[int], samples: int, source: Any
) -> dict:
    """Shares of both kinds of samples, and the p-values of two-sample tests."""
    crop, transforms = make_transforms(patch)
    annotated, healthy = (nnUNetDatasetBlosc2(str(folder / name)) for name in ("annotated", "healthy"))
    labels = {case: np.asarray(annotated.load_case(case)[1][0]) for case in annotated.identifiers}
    middles = {case: np.argwhere(each > 0).mean(axis=0) for case, each in labels.items()}
    options: dict[str, Any] = {"oversample_foreground_percent": 0.33, "transforms": transforms}
    stock = StockLoader(annotated, 2, crop, patch, LABELS, **options)
    rules = InjectionRules(
        organ_label=1,
        tumor_label=2,
        exophytic=False,
        spacing_mm=SPACINGS_MM[size],
        intensities=CT,
        size_classes=PAPER_SIZE_CLASSES,
    )
    ours = PlacedLoader(
        healthy,
        2,
        crop,
        patch,
        LABELS,
        injectors=[TumorInjector(source, rules)],
        plan=SamplingPlan(
            healthy=HostCases(dict.fromkeys(healthy.identifiers, (0,)), 1.0),
            annotated=HostCases({}, 0.0),
            seed_words=(0, 0),
        ),
        tumors=tumors,
        **options,
    )
    real, synthetic = (take_samples(loader, samples, middles) for loader in (stock, ours))
    found: dict[str, Any] = {}
    for key in ("tumor", "no organ"):
        table = [[int(kind[key].sum()), int((~kind[key]).sum())] for kind in (real, synthetic)]
        found[key] = (real[key].mean(), synthetic[key].mean(), stats.fisher_exact(table).pvalue)
    for key in ("depth", "height", "width"):
        found[key] = (real[key].mean(), synthetic[key].mean(), stats.ks_2samp(real[key], synthetic[key]).pvalue)
    return found


def check(found: dict, what: str) -> None:
    for key, (real, synthetic, p) in found.items():
        print(f"{what}  {key:8}  annotated {real:7.3f}  injected {synthetic:7.3f}  p {p:.3f}")
    for key, (_, _, p) in found.items():
        assert p > SMALLEST_P, (what, key, found[key])


@pytest.fixture(scope="module", params=["small", "full"])
def phantoms(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"phantoms_{request.param}")
    for name in ("annotated", "healthy"):
        (folder / name).mkdir()
    return request.param, folder, write_phantoms(folder, request.param)


@pytest.mark.slow
@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_injected_samples_are_drawn_as_annotated_ones(phantoms, patch, contrast_source):
    size, folder, tumors = phantoms
    check(compare_kinds(folder, tumors, size, patch, 4000, contrast_source), f"{size} {patch}")
