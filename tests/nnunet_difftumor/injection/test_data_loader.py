import hashlib
import inspect
import itertools
import pickle
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.ndimage import distance_transform_edt, gaussian_filter

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection.case_tumors import draw_case_tumors
from nnunet_difftumor.injection.data_loader import DiffTumorDataLoader, HostCases, SamplingPlan
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.rules import REAL_TUMOR_RIM_MM, CTIntensities, InjectionRules
from nnunet_difftumor.injection.sample_shares import TargetReader
from nnunet_difftumor.injection.sources import GeneratorFolderSource, LoadedOnce
from nnunet_difftumor.synthesis.placement import Zone
from nnunet_difftumor.synthesis.published import PublishedSynthesizer
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.region import RoiRule
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.spec import TumorSpec

GET_DATALOADERS_HASHES = {
    "2.8.0": "5f59e2b907cfa2d1eb1e77ab2a5b8893161e7af8567fc5669c62a4810334899e",
    "2.8.1": "5f59e2b907cfa2d1eb1e77ab2a5b8893161e7af8567fc5669c62a4810334899e",
}
"""SHA-256 of the source of nnUNetTrainer.get_dataloaders, of which trainer.py holds an explicit copy."""

CT = CTIntensities(mean_hu=90.0, std_hu=25.0, low_hu=-20.0, high_hu=190.0)
SMALL = (SizeClass(name="small", radius_mm=(4.0, 7.0), probability=1.0, max_count=2),)
ISOTROPIC = {"shape": (44, 52, 50), "patch": (32, 32, 32), "spacing": (2.0, 2.0, 2.0)}
ANISOTROPIC = {"shape": (16, 60, 64), "patch": (8, 40, 40), "spacing": (5.0, 1.5, 1.5)}
GRIDS = pytest.mark.parametrize("grid", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "dummy2d"])
REGIONS = {"background": 0, "whole_liver": [1, 2], "tumor": 2}
LABELLINGS = {
    "plain": LabelManager({"background": 0, "liver": 1, "tumor": 2}, None),
    "regions": LabelManager(REGIONS, [1, 2]),
    "ignore": LabelManager({"background": 0, "liver": 1, "tumor": 2, "ignore": 3}, None),
    "regions+ignore": LabelManager({**REGIONS, "ignore": 3}, [1, 2]),
}
IGNORED_ROWS = 16
SCALES = [[1, 1, 1], [0.5, 0.5, 0.5]]


class ContrastTissue:
    """A stand-in for the diffusion model: the host, darker by a constant inside the mask."""

    roi_rule = RoiRule(sides=(32, 48), margin_voxels=8, spacing_range_mm=(1.5, 6.0))
    window_hu = (-175.0, 250.0)
    appearances = (Appearance(contrast_hu=-50.0),)

    def reconstruct(self, host_hu):
        return gaussian_filter(np.clip(host_hu, *self.window_hu), 1.0, axes=(1, 2, 3))

    def generate(self, host_hu, tumor_masks, appearances, seeds):
        host_hu = np.clip(host_hu, *self.window_hu)
        return GeneratedRegions(
            (host_hu + np.array([look.contrast_hu for look in appearances], np.float32).reshape(-1, 1, 1, 1)), host_hu
        )


def make_synthesizer():
    return TumorSynthesizer(ContrastTissue())


def make_published():
    return PublishedSynthesizer(ContrastTissue())


def make_rules(grid, **changes):
    values = {
        "organ_label": 1,
        "tumor_label": 2,
        "exophytic": False,
        "spacing_mm": grid["spacing"],
        "intensities": CT,
        "size_classes": SMALL,
    }
    return InjectionRules(**{**values, **changes})


def make_case(grid, rng, has_tumor):
    """A body with an organ (label 1), sometimes with a tumour (label 2). Returns HU and labels."""
    shape = np.array(grid["shape"])
    position = (np.indices(shape).reshape(3, -1).T - shape / 2 + 0.5) * grid["spacing"]
    extent = shape * grid["spacing"]
    organ = (np.sum((position / (0.36 * extent)) ** 2, axis=1) < 1).reshape(shape)
    labels = organ.astype(np.int8)
    image_hu = np.where(organ, 110, -80) + rng.normal(0, 12, shape)
    if has_tumor:
        tumor = (np.linalg.norm(position, axis=1) < 8).reshape(shape)
        labels[tumor] = 2
        image_hu[tumor] -= 45
    return image_hu.astype(np.float32), labels


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Preprocessed data sets as nnU-Net stores them: 3 healthy cases and 1 with a tumour.

    By shape of the case and labelling; with an ignore label, the first rows of every case are ignored.
    """
    folders = {}
    for grid, (labelling, manager) in itertools.product((ISOTROPIC, ANISOTROPIC), LABELLINGS.items()):
        rng = np.random.default_rng(0)
        folder = tmp_path_factory.mktemp("preprocessed")
        for name in ("healthy_1", "healthy_2", "healthy_3", "tumor_1"):
            image_hu, labels = make_case(grid, rng, name.startswith("tumor"))
            collected = list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
            if manager.has_ignore_label:
                labels[:, :IGNORED_ROWS] = manager.ignore_label
                collected.append([-1, *manager.all_labels])
            locations = DefaultPreprocessor._sample_foreground_locations(labels[None], collected)
            size = (1, *grid["shape"])
            nnUNetDatasetBlosc2.save_case(
                CT.normalise(image_hu)[None],
                labels[None].astype(np.int16),
                {"class_locations": locations},
                str(folder / name),
                chunks=size,
                blocks=size,
            )
        folders[grid["shape"], labelling] = folder
    return folders


def make_transforms(grid, labels, scales):
    patch = grid["patch"]
    in_plane_only = grid is ANISOTROPIC
    angle = np.pi if in_plane_only else np.pi / 6
    crop = get_patch_size(patch, (-angle, angle), (-angle, angle), (-angle, angle), (0.85, 1.25))
    if in_plane_only:
        crop[0] = patch[0]
    transforms = nnUNetTrainer.get_training_transforms(
        patch,
        (-angle, angle),
        scales,
        (0, 1, 2),
        in_plane_only,
        use_mask_for_norm=[False],
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    return crop, transforms


def make_loader(
    datasets,
    grid,
    probability,
    *,
    is_stock=False,
    seed=0,
    rules=None,
    batch_size=2,
    labelling="plain",
    scales=SCALES,
    source=make_synthesizer,
    annotated_probability=0.0,
    is_control=False,
    is_raw=False,
    seed_words=None,
    first_sample=0,
    sham_probability=0.0,
):
    """Loader of nnU-Net's patches, or of raw crops, for which its transforms are left out."""
    labels = LABELLINGS[labelling]
    crop, transforms = make_transforms(grid, labels, scales)
    data = nnUNetDatasetBlosc2(str(datasets[grid["shape"], labelling]))
    if is_stock:
        return nnUNetDataLoader(data, batch_size, crop, grid["patch"], labels, 0.33, transforms=transforms)
    return DiffTumorDataLoader(
        data,
        batch_size,
        crop,
        grid["patch"],
        labels,
        injectors=[TumorInjector(source, rules or make_rules(grid))],
        plan=SamplingPlan(
            healthy=HostCases(dict.fromkeys(("healthy_1", "healthy_2", "healthy_3"), (0,)), probability),
            annotated=HostCases({"tumor_1": (0,)}, annotated_probability),
            seed_words=seed_words or (seed, 0),
            first_sample=first_sample,
            is_control=is_control,
            sham_probability=sham_probability,
        ),
        transforms=None if is_raw else transforms,
        oversample_foreground_percent=0.33,
    )


def take(loader, count, seed=7):
    np.random.seed(seed)  # noqa: NPY002 (nnU-Net draws from the global stream)
    torch.manual_seed(seed)
    return [next(loader) for _ in range(count)]


def global_streams():
    return np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002


def total_counts(batches):
    counts = Counter()
    for batch in batches:
        counts.update(batch["difftumor"]["counts"])
    return counts


MATRIX = pytest.mark.parametrize("labelling", LABELLINGS)


@MATRIX
@GRIDS
def test_probability_zero_equals_stock_nnunet_to_the_bit(datasets, grid, labelling):
    ours = take(make_loader(datasets, grid, 0.0, labelling=labelling), 10)
    stock = take(make_loader(datasets, grid, 0.0, is_stock=True, labelling=labelling), 10)
    for batch, expected in zip(ours, stock, strict=True):
        assert list(batch["keys"]) == list(expected["keys"])
        assert torch.equal(batch["data"], expected["data"])
        assert all(torch.equal(a, b) for a, b in zip(batch["target"], expected["target"], strict=True))


@GRIDS
def test_injection_never_advances_nnunets_random_stream(datasets, grid):
    take(make_loader(datasets, grid, 1.0), 5)
    after_ours = global_streams()
    take(make_loader(datasets, grid, 1.0, is_stock=True), 5)
    after_stock = global_streams()
    assert np.array_equal(after_ours[0], after_stock[0])
    assert torch.equal(after_ours[1], after_stock[1])


def tumor_voxels(target, labelling):
    """Voxels of the tumour in one sample's target: label 2, or the channel of the region "tumor"."""
    return target[1].bool() if "regions" in labelling else target[0] == 2


@MATRIX
@GRIDS
def test_probability_one_reaches_the_final_target(datasets, grid, labelling):
    batches = take(make_loader(datasets, grid, 1.0, labelling=labelling), 36)
    counts = total_counts(batches)
    rejected = sum(count for key, count in counts.items() if key.startswith("rejected_"))
    assert counts["healthy_samples"] == sum(key.startswith("healthy") for batch in batches for key in batch["keys"])
    assert counts["healthy_samples"] >= 45
    assert counts["carrying"] == counts["healthy_samples"]
    assert counts["carrying"] == counts["injected"] + counts["out_of_view"] + rejected
    assert counts["injected"] >= 0.5 * counts["healthy_samples"]
    assert rejected <= 0.02 * counts["healthy_samples"]
    healthy = [
        (batch, index) for batch in batches for index, key in enumerate(batch["keys"]) if key.startswith("healthy")
    ]
    for scale in range(len(SCALES)):  # what is small or at the edge may fall between the voxels of a coarse target
        seen = sum(bool(tumor_voxels(batch["target"][scale][index], labelling).any()) for batch, index in healthy)
        assert seen == counts["injected"] if scale == 0 else seen >= 0.8 * counts["injected"]


def test_nothing_is_injected_where_nobody_looked(datasets):
    """The loader's raw crops: ignored voxels keep their label and their value."""
    loader = make_loader(datasets, ISOTROPIC, 1.0, labelling="ignore", is_raw=True)
    records = [record for batch in take(loader, 6) for record in batch["difftumor"]["records"]]
    injector = TumorInjector(make_synthesizer, make_rules(ISOTROPIC))
    data = nnUNetDatasetBlosc2(str(datasets[ISOTROPIC["shape"], "ignore"]))
    ignored = 0
    for record in records:
        case_image, case_labels, _, _ = data.load_case(record["case"])
        image, labels = cut_crop(case_image[0], record, 0.0), cut_crop(case_labels[0], record, -1)
        new_image, new_labels = injector.replay(image, labels, record)
        assert (new_labels == 2).any()
        assert np.array_equal(new_labels[labels != 1], labels[labels != 1])
        assert np.array_equal(new_image[labels == 3], image[labels == 3])
        ignored += int((labels == 3).sum())
    assert ignored > 0


def test_a_target_without_deep_supervision_is_read_as_well(datasets):
    batches = take(make_loader(datasets, ISOTROPIC, 1.0, scales=None), 6)
    seen = sum(
        bool((batch["target"][index] == 2).any())
        for batch in batches
        for index, key in enumerate(batch["keys"])
        if key.startswith("healthy")
    )
    assert seen == total_counts(batches)["injected"] > 0


def test_regions_that_do_not_tell_the_tumor_from_the_organ_are_refused():
    labels = LabelManager({"background": 0, "all": [1, 2], "tumor_with_organ": [1, 2]}, [1, 2])
    with pytest.raises(ConfigurationError, match=r"without the organ label 1.*Add a region"):
        TargetReader(labels, 1, 2)


def test_probability_is_the_share_of_healthy_samples(datasets):
    loader = make_loader(datasets, ISOTROPIC, 0.3)
    organ = {1: np.array([[0, 20, 25, 25]]), 2: []}
    for _ in range(1000):
        loader._data.load_case("healthy_1")
        loader.get_bbox(ISOTROPIC["shape"], True, organ)
    assert 0.25 < np.mean([draw.is_carrying for draw in loader._state.draws]) < 0.35


@GRIDS
def test_tumours_that_the_patch_does_not_show_are_not_made_and_are_not_missed(datasets, grid):
    """Making all tumours of the raw crop gives the same batches, to the bit, for more work."""
    sparing, making_all = (make_loader(datasets, grid, 1.0) for _ in range(2))
    making_all._inject.following = None
    few, many = take(sparing, 25), take(making_all, 25)
    for batch, expected in zip(few, many, strict=True):
        assert torch.equal(batch["data"], expected["data"])
        assert torch.equal(batch["target"][0], expected["target"][0])
    assert total_counts(few)["tumors_placed"] < total_counts(many)["tumors_placed"]


def raw_batches(datasets, count=12, **options):
    return take(make_loader(datasets, ISOTROPIC, 1.0, annotated_probability=1.0, is_raw=True, **options), count)


@pytest.mark.parametrize("source", [make_synthesizer, make_published])
def test_annotated_cases_carry_tumours_off_the_real_ones_in_the_crops_of_their_control(datasets, source):
    """Real tumours and their rims stay to the bit; an arm without synthetic tumours sees the same crops."""
    rules = make_rules(ISOTROPIC, real_tumor_labels=(2,))
    changed, samples = 0, 0
    for batch, control in zip(
        raw_batches(datasets, rules=rules, source=source),
        raw_batches(datasets, rules=rules, is_control=True),
        strict=True,
    ):
        assert list(batch["keys"]) == list(control["keys"])
        for index in (i for i, key in enumerate(batch["keys"]) if key == "tumor_1"):
            image, host = batch["data"][index, 0].numpy(), control["data"][index, 0].numpy()
            labels, host_labels = (each["target"][index, 0].numpy() for each in (batch, control))
            is_real = host_labels == 2
            far_mm = distance_transform_edt(~is_real, sampling=ISOTROPIC["spacing"]) if is_real.any() else np.inf
            is_kept = np.broadcast_to(far_mm <= REAL_TUMOR_RIM_MM, image.shape)
            assert np.array_equal(image[is_kept], host[is_kept])
            assert np.array_equal(labels[is_kept], host_labels[is_kept])
            assert set(labels[labels != host_labels]) <= {2}
            samples += 1
            changed += not np.array_equal(image, host)
    assert samples >= 4
    assert changed >= 0.5 * samples


def test_shams_change_tissue_a_little_and_neither_labels_crops_nor_real_tumours(datasets):
    """Where tumours would be, in healthy and in annotated cases; arms without synthetic tumours have none."""
    options = {"rules": make_rules(ISOTROPIC, real_tumor_labels=(2,)), "sham_probability": 1.0, "is_raw": True}
    with_shams = take(make_loader(datasets, ISOTROPIC, 0.0, **options), 12)
    stock = take(make_loader(datasets, ISOTROPIC, 0.0, is_raw=True), 12)
    assert all(torch.equal(a["data"], b["data"]) for a, b in zip(stock, raw_control(datasets, **options), strict=True))
    changed = Counter()
    for batch, control in zip(with_shams, stock, strict=True):
        assert list(batch["keys"]) == list(control["keys"])
        assert torch.equal(batch["target"], control["target"])
        for index, key in enumerate(batch["keys"]):
            image, host = (CT.to_hu(each["data"][index, 0].numpy()) for each in (batch, control))
            is_changed = image != host
            labels = control["target"][index, 0].numpy()
            assert set(labels[is_changed]) <= {1}
            if is_changed.any():
                changed[key] += 1
                assert abs(float((image - host)[is_changed].mean())) < 5.0  # HU; a tumour has -50
            if (labels == 2).any():
                far_mm = distance_transform_edt(labels != 2, sampling=ISOTROPIC["spacing"])
                assert not is_changed[far_mm <= REAL_TUMOR_RIM_MM].any()
    counts = total_counts(with_shams)
    assert set(changed) == {"tumor_1", "healthy_1", "healthy_2", "healthy_3"}
    assert counts["sham_samples"] == changed.total() <= counts["shams"]
    assert not counts["carrying"]


def raw_control(datasets, **options):
    return take(make_loader(datasets, ISOTROPIC, 0.0, is_control=True, **options), 12)


def test_shams_are_the_share_that_was_asked_for_of_the_samples_without_tumours(datasets):
    counts = total_counts(take(make_loader(datasets, ISOTROPIC, 0.5, sham_probability=0.5, is_raw=True), 60))
    without = 120 - counts["carrying"]
    assert counts["injected"] > 0
    assert counts["sham_samples"] == pytest.approx(0.5 * without, abs=4 * (0.25 * without) ** 0.5)


def test_a_sham_is_replayed_from_its_record(datasets):
    loader = make_loader(datasets, ISOTROPIC, 0.0, batch_size=1, is_raw=True, sham_probability=1.0)
    batch = next(b for b in take(loader, 20) if b["difftumor"]["records"])
    record = batch["difftumor"]["records"][0]
    data, seg, _, _ = nnUNetDatasetBlosc2(str(datasets[ISOTROPIC["shape"], "plain"])).load_case(record["case"])
    host, labels = cut_crop(data[0], record, 0.0), cut_crop(seg[0], record, -1)
    image, same_labels = TumorInjector(make_synthesizer, make_rules(ISOTROPIC)).replay(host, labels, record)
    assert np.array_equal(batch["data"][0, 0].numpy(), image)
    assert not np.array_equal(image, host)
    assert np.array_equal(same_labels, labels)


def test_real_tumor_cases_are_left_alone(datasets):
    for batch, expected in zip(
        take(make_loader(datasets, ISOTROPIC, 1.0), 10),
        take(make_loader(datasets, ISOTROPIC, 1.0, is_stock=True), 10),
        strict=True,
    ):
        for index, key in enumerate(batch["keys"]):
            if key == "tumor_1":
                assert torch.equal(batch["data"][index], expected["data"][index])
                assert torch.equal(batch["target"][0][index], expected["target"][0][index])


def make_crop(grid, rng, padding=0):
    image_hu, labels = make_case(grid, rng, has_tumor=False)
    labels = labels.astype(np.int16)
    labels[:, :6, :] = np.where(labels[:, :6, :] == 1, 3, labels[:, :6, :])  # another structure cuts the organ
    image = np.pad(CT.normalise(image_hu), padding)
    return image, np.pad(labels, padding, constant_values=-1)


def inject_once(grid, image, labels, seed=0, rules=None):
    injector = TumorInjector(make_synthesizer, rules or make_rules(grid))
    organ_voxels = np.argwhere(labels == 1)
    tumors = draw_case_tumors(labels[None], organ_voxels, injector.rules, np.random.default_rng(seed))
    return injector, injector.inject(image, labels, tumors)


@GRIDS
@pytest.mark.parametrize("exophytic", [False, True])
def test_only_the_support_changes_and_labels_replace_only_what_they_may(grid, exophytic):
    image, labels = make_crop(grid, np.random.default_rng(1), padding=3)
    untouched_image, untouched_labels = image.copy(), labels.copy()
    injector, crop = inject_once(grid, image, labels, rules=make_rules(grid, exophytic=exophytic))
    assert crop.placed >= 1
    assert np.array_equal(image, untouched_image)
    assert np.array_equal(labels, untouched_labels)
    specs = [tumor["spec"] for tumor in crop.record["tumors"]]
    assert len(specs) == crop.placed
    result = make_synthesizer().synthesize(
        injector.make_host(image, labels), [TumorSpec.from_json(spec) for spec in specs]
    )
    support = result.support_mask(image.shape)
    assert np.array_equal(crop.image[~support], image[~support])
    assert not np.array_equal(crop.image[support], image[support])
    is_new = crop.labels != labels
    assert is_new.any()
    assert set(np.unique(crop.labels[is_new])) == {2}
    assert set(np.unique(labels[is_new])) <= ({0, 1} if exophytic else {1})
    assert not (support & (labels == -1)).any()


def test_bone_that_nnunet_clipped_is_no_place_to_grow_into():
    image_hu, labels = make_case(ISOTROPIC, np.random.default_rng(1), has_tumor=False)
    image_hu[10:30, :6, 10:40] = 900.0
    injector = TumorInjector(None, make_rules(ISOTROPIC, exophytic=True))
    host = injector.make_host(CT.normalise(image_hu), labels.astype(np.int16))
    allowed = host.may_become_tumor((slice(0, 44), slice(0, 52), slice(0, 50)))
    assert not allowed[image_hu == 900.0].any()
    assert allowed[image_hu != 900.0].all()


def test_injected_values_stay_inside_the_clip_window():
    rules = make_rules(ISOTROPIC, appearances=AppearanceRule(contrast_hu=(-200.0, -200.0)))
    image, labels = make_crop(ISOTROPIC, np.random.default_rng(2))
    _, crop = inject_once(ISOTROPIC, image, labels, rules=rules)
    lowest = CT.normalise(np.array([CT.low_hu]))[0]
    assert crop.placed >= 1
    assert crop.image.min() >= lowest
    assert np.isclose(crop.image[crop.labels == 2].min(), lowest)


@GRIDS
def test_a_record_replays_the_same_crop(datasets, grid):
    loader = make_loader(datasets, grid, 1.0, is_raw=True)
    records = [record for batch in take(loader, 4) for record in batch["difftumor"]["records"]]
    rules = make_rules(grid)
    assert records
    for record in records[:3]:
        data, seg, _, _ = nnUNetDatasetBlosc2(str(datasets[grid["shape"], "plain"])).load_case(record["case"])
        image, labels = cut_crop(data[0], record, 0.0), cut_crop(seg[0], record, -1)
        again = [TumorInjector(make_synthesizer, rules).replay(image, labels, record) for _ in range(2)]
        assert (again[0][1] == 2).any()
        assert np.array_equal(again[0][0], again[1][0])
        volume = sum(tumor["label_mm3"] for tumor in record["tumors"])
        assert np.isclose((again[0][1] == 2).sum() * np.prod(grid["spacing"]), volume)


def cut_crop(array, record, fill):
    wide = np.pad(np.asarray(array), 200, constant_values=fill)
    start = np.array(record["crop_start"]) + 200
    return wide[tuple(slice(int(a), int(a) + size) for a, size in zip(start, record["crop_size"], strict=True))]


def test_replay_gives_the_very_batch(datasets):
    loader = make_loader(datasets, ISOTROPIC, 1.0, batch_size=1, is_raw=True)
    batch = next(b for b in take(loader, 20) if b["difftumor"]["records"])
    record = batch["difftumor"]["records"][0]
    data, seg, _, _ = nnUNetDatasetBlosc2(str(datasets[ISOTROPIC["shape"], "plain"])).load_case(record["case"])
    image, labels = TumorInjector(make_synthesizer, make_rules(ISOTROPIC)).replay(
        cut_crop(data[0], record, 0.0), cut_crop(seg[0], record, -1), record
    )
    assert np.array_equal(batch["data"][0, 0].numpy(), image)
    assert np.array_equal(batch["target"][0, 0].numpy(), labels)


def test_injected_tumours_keep_to_their_zone(datasets):
    grid = ISOTROPIC
    rules = make_rules(grid, zone=Zone(surface_distance_mm=(14.0, 25.0)))
    loader = make_loader(datasets, grid, 1.0, rules=rules, is_raw=True)
    records = [record for batch in take(loader, 12) for record in batch["difftumor"]["records"]]
    assert len(records) >= 10
    data = nnUNetDatasetBlosc2(str(datasets[grid["shape"], "plain"]))
    for record in records:
        labels = cut_crop(data.load_case(record["case"])[1][0], record, 1)  # the organ goes on behind the padding
        depth_mm = distance_transform_edt(labels == 1, sampling=grid["spacing"])
        for spec in record["drawn"]:
            voxel = np.round(np.divide(spec["centre_mm"], grid["spacing"])).astype(int)
            assert depth_mm[tuple(voxel)] >= 14.0 - 2.0 * np.sqrt(3)  # drawn inside a voxel of the zone


def test_an_organ_that_cannot_hold_a_tumor_is_counted_and_not_labelled():
    labels = make_crop(ISOTROPIC, np.random.default_rng(3))[1]
    thin = np.where(labels == 1, 0, labels)
    thin[20, 24, 24] = 1
    tumors = draw_case_tumors(thin[None], np.argwhere(thin == 1), make_rules(ISOTROPIC), np.random.default_rng(0))
    assert not tumors.specs
    assert tumors.given_up


def test_organ_lost_in_resampling_is_a_named_rejection(datasets):
    loader = make_loader(datasets, ISOTROPIC, 1.0, batch_size=1)
    load_case = nnUNetDatasetBlosc2.load_case

    def without_organ(self, identifier):
        data, seg, previous, _ = load_case(self, identifier)
        return data, np.zeros_like(seg[:]), previous, {"class_locations": {1: [], 2: []}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnUNetDatasetBlosc2, "load_case", without_organ)
        counts = total_counts(take(loader, 4))
    assert counts["carrying"] == counts["rejected_organ_lost_in_resampling"] > 0


def test_each_worker_and_seed_has_its_own_stream(datasets):
    def first_draws(seed, rank, first_sample, thread):
        loader = make_loader(datasets, ISOTROPIC, 1.0, seed_words=(seed, rank), first_sample=first_sample)
        loader.set_thread_id(thread)
        loader._data.load_case("healthy_1")
        loader.get_bbox(ISOTROPIC["shape"], True, {1: np.array([[0, 20, 25, 25]]), 2: []})
        return tuple(loader._state.draws[0].rng(0).integers(1 << 60, size=4))

    keys = list(itertools.product(range(2), range(2), range(2), range(3)))
    streams = [first_draws(*key) for key in keys]
    assert len(set(streams)) == len(keys)
    assert first_draws(*keys[5]) == streams[5]


def test_same_seed_gives_same_batches(datasets):
    first, second = (take(make_loader(datasets, ISOTROPIC, 1.0), 3) for _ in range(2))
    other = take(make_loader(datasets, ISOTROPIC, 1.0, seed=1), 3)
    assert all(torch.equal(a["data"], b["data"]) for a, b in zip(first, second, strict=True))
    assert any(not torch.equal(a["data"], b["data"]) for a, b in zip(first, other, strict=True))


def test_background_workers_report_and_differ(datasets):
    workers = NonDetMultiThreadedAugmenter(make_loader(datasets, ISOTROPIC, 1.0), None, 2, 4, None, False, 0.002)
    try:
        batches = [next(workers) for _ in range(12)]
    finally:
        workers._finish()
    assert total_counts(batches)["injected"] > 0
    seeds = [record["drawn"][0]["seed"] for batch in batches for record in batch["difftumor"]["records"]]
    assert len(set(seeds)) == len(seeds)
    assert sum(len(batch["difftumor"]["pictures"]) for batch in batches) > 0


def test_injector_pickles_without_its_generator():
    source = LoadedOnce(GeneratorFolderSource(Path("generator"), 4))
    source._synthesizer = make_synthesizer()
    injector = TumorInjector(source, make_rules(ISOTROPIC))
    assert injector.synthesizer is source._synthesizer
    copy = pickle.loads(pickle.dumps(injector))
    assert copy._source._synthesizer is None
    assert copy._source._source == source._source
    assert copy.rules == injector.rules


def test_normalisation_equals_nnunets_and_inverts_inside_the_window():
    rng = np.random.default_rng(0)
    image_hu = rng.uniform(-300, 400, size=(6, 7, 8)).astype(np.float32)
    properties = {"mean": 90.3, "std": 24.7, "percentile_00_5": -21.0, "percentile_99_5": 187.0}
    constants = CTIntensities.from_plans({"foreground_intensity_properties_per_channel": {"0": properties}})
    theirs = CTNormalization(use_mask_for_norm=False, intensityproperties=properties).run(image_hu.copy())
    assert np.array_equal(constants.normalise(image_hu), theirs)
    assert np.allclose(constants.to_hu(theirs), np.clip(image_hu, -21.0, 187.0), atol=1e-3)


def test_plans_without_intensities_are_refused():
    with pytest.raises(ConfigurationError, match="percentile_00_5"):
        CTIntensities.from_plans({"foreground_intensity_properties_per_channel": {"0": {"mean": 1, "std": 1}}})


def test_our_copy_of_get_dataloaders_is_of_this_nnunet():
    source = inspect.getsource(nnUNetTrainer.get_dataloaders)
    found = hashlib.sha256(source.encode()).hexdigest()
    assert found == GET_DATALOADERS_HASHES.get(version("nnunetv2")), (
        f"nnU-Net {version('nnunetv2')} changed get_dataloaders ({found}): compare it with trainer.py and add the hash."
    )
