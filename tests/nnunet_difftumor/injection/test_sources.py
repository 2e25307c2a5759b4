"""The arms of a study differ in one thing; several targets share one run; sizes land as they were asked for."""

import dataclasses
import json
import pickle
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import find_objects
from threadpoolctl import threadpool_limits

from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_identifier, save_provenance
from nnunet_difftumor.errors import ConfigurationError, LeakError
from nnunet_difftumor.injection.data_loader import sampling_probabilities
from nnunet_difftumor.injection.sources import CopyPasteSource, GeneratorFolderSource, HandcraftedSource, LoadedOnce
from nnunet_difftumor.settings import resolving
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import HostGround, TumorPlan, Zone, draw_sizes, draw_tumors, place_tumors
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.donors import donor_box, make_donor, paste_texture
from nnunet_difftumor.synthesis.tissue.generator_names import DEFAULT_GENERATOR, resolve_generator
from nnunet_difftumor.trainer.trainers import (
    nnUNetTrainerCopyPaste,
    nnUNetTrainerDiffTumor,
    nnUNetTrainerHandcrafted,
    nnUNetTrainerHealthyOnly,
)
from nnunet_difftumor.tumor.appearance import AppearanceRule
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

ARMS = {
    "generated": nnUNetTrainerDiffTumor,
    "hand-crafted": nnUNetTrainerHandcrafted,
    "copied": nnUNetTrainerCopyPaste,
    "none": nnUNetTrainerHealthyOnly,
}


@pytest.fixture
def project(make_nnunet_project, monkeypatch):
    project = make_nnunet_project()
    project.configure(generator=DEFAULT_GENERATOR, injection_probability=1.0, contrast_hu=[-60, -40])
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    monkeypatch.delenv("nnUNet_difftumor", raising=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return project


def make_trainer(project, kind):
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    plans["continue_training"] = False
    return kind(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))


def make_loader(project, kind):
    """Loader of an arm whose batches are raw crops: nnU-Net's own transforms are left out."""
    trainer = make_trainer(project, kind)
    trainer.initialize()
    trainer._prepare_training()
    dataset, _ = trainer.get_tr_and_val_datasets()
    return trainer._make_training_loader(dataset, (40, 40, 40), None)


def raw_crops(loader, batches, *, seed=5):
    """Samples (case, image, labels), records by stream, and counts."""
    np.random.seed(seed)  # noqa: NPY002 (nnU-Net draws from the global stream)
    samples, records, counts = [], {}, Counter()
    for batch in (next(loader) for _ in range(batches)):
        samples += zip(batch["keys"], batch["data"][:, 0].numpy(), batch["target"][:, 0].numpy(), strict=True)
        records.update({tuple(record["stream"]): record for record in batch["difftumor"]["records"]})
        counts.update(batch["difftumor"]["counts"])
    return samples, records, counts


def masks_of(record, injector, image, labels):
    """Where the tumours of a record may change the image of their crop, and its labels."""
    specs = [TumorSpec.from_json(tumor["spec"]) for tumor in record["tumors"]]
    with threadpool_limits(limits=1, user_api=None):
        result = injector.synthesizer.synthesize(injector.make_host(image, labels), specs)
    return result.support_mask(image.shape), result.label_mask(image.shape)


def test_arms_share_cases_and_crops_and_differ_inside_the_tumours_only(project):
    """Outside the supports of its tumours every arm equals the one without any, to the bit."""
    loaders = {name: make_loader(project, kind) for name, kind in ARMS.items()}
    found = {name: raw_crops(loader, 8) for name, loader in loaders.items()}
    hosts, _, counts = found.pop("none")
    assert counts["control_samples"] == counts["healthy_samples"] > 0
    assert "injected" not in counts
    healthy = [index for index, (case, _, _) in enumerate(hosts) if case.startswith("healthy")]
    streams = {index: (0, 0, 0, number) for number, index in enumerate(healthy)}
    for name, (samples, records, counts) in found.items():
        assert [sample[0] for sample in samples] == [sample[0] for sample in hosts]
        assert counts["injected"] == len(records) >= 0.8 * counts["healthy_samples"]
        for index, (_, image, labels) in enumerate(samples):
            host, host_labels = hosts[index][1:]
            record = records.get(streams.get(index))
            if record is None:
                assert np.array_equal(image, host)
                assert np.array_equal(labels, host_labels)
                continue
            injector = loaders[name]._inject._injectors[record["target"]]
            support, outlined = masks_of(record, injector, host, host_labels)
            assert np.array_equal(image[~support], host[~support])
            assert (image[support] != host[support]).mean() > 0.5
            new = labels != host_labels
            assert not (new & ~outlined).any()
            assert set(labels[new]) == {2}
    generated, *others = (records for _, records, _ in found.values())
    for records in others:
        common = generated.keys() & records.keys()
        assert len(common) >= 5
        for stream in common:
            for key in ("case", "crop_start"):
                assert generated[stream][key] == records[stream][key]
            assert shapes_in(generated[stream]) == shapes_in(records[stream])
            index = healthy[stream[-1]]
            images = [samples[index][1] for samples, others, _ in found.values() if stream in others]
            assert not np.array_equal(images[0], images[-1])


def shapes_in(record):
    """What was drawn, without the looks, of which a tumour that cannot be seen gets others."""
    looks = ("contrast_hu", "heterogeneity_hu")
    return [{key: value for key, value in spec.items() if key not in looks} for spec in record["drawn"]]


def test_the_tumours_of_a_stream_are_the_same_in_every_run_and_after_going_on(project):
    """What is drawn depends on seed, rank, worker and number of the sample alone, not on case or crop."""
    drawn = [raw_crops(make_loader(project, nnUNetTrainerDiffTumor), 4, seed=seed)[1] for seed in (5, 6)]
    common = drawn[0].keys() & drawn[1].keys()
    assert len(common) >= 3
    assert any(drawn[0][stream]["case"] != drawn[1][stream]["case"] for stream in common)
    same = [seeds_in(drawn[0][stream]) == seeds_in(drawn[1][stream]) for stream in common]
    assert sum(same) >= len(same) - 1  # a tumour may find no room in one of the cases

    trainer = make_trainer(project, nnUNetTrainerDiffTumor)
    trainer.initialize()
    trainer._prepare_training()
    trainer.current_epoch = 3
    dataset, _ = trainer.get_tr_and_val_datasets()
    continued = trainer._make_training_loader(dataset, (40, 40, 40), None)
    assert continued._next_stream() == (0, 0, 0, 3 * trainer.num_iterations_per_epoch * trainer.batch_size)


def seeds_in(record):
    return {spec["seed"] for spec in record["drawn"]}


def test_copied_tumours_come_from_training_cases_alone(project):
    trainer = make_trainer(project, nnUNetTrainerCopyPaste)
    trainer.initialize()
    trainer._prepare_training()
    train, validation = trainer.do_split()
    (source,) = {injector._source._source for injector in trainer._prepared.injectors}
    assert isinstance(source, CopyPasteSource)
    assert set(source.cases) < set(train)
    assert not set(source.cases) & set(validation)
    assert {donor.identifier for donor in source()._donors} == set(source.cases)


def test_copying_without_annotated_tumours_is_refused(make_nnunet_project, monkeypatch):
    bare = make_nnunet_project(tumor_cases=0, healthy_cases=6)
    bare.configure(generator=DEFAULT_GENERATOR, confirmed_healthy=True)
    for key, value in bare.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    trainer = make_trainer(bare, nnUNetTrainerCopyPaste)
    trainer.initialize()
    with pytest.raises(ConfigurationError, match="nothing to copy and paste"):
        trainer._prepare_training()


def test_a_setting_makes_tumours_without_any_network(project):
    project.configure(generator="handcrafted", injection_probability=1.0)
    trainer = make_trainer(project, nnUNetTrainerDiffTumor)
    trainer.initialize()
    trainer._prepare_training()
    (injector,) = trainer._prepared.injectors
    assert isinstance(injector._source._source, HandcraftedSource)


def test_tumours_without_network_and_with_looks_of_their_own_know_no_validation_case(project, tmp_path, monkeypatch):
    """What trained the builtin generator matters only where its tumours' looks are drawn."""
    trainer = make_trainer(project, nnUNetTrainerDiffTumor)
    named = (CaseFingerprint(identifier_hash=hash_identifier(trainer.do_split()[1][0]), image_hash="0" * 64),)
    leaky = shutil.copytree(project.generator, tmp_path / "generator")
    save_provenance(leaky / "provenance.json", Provenance(diffusion=named, autoencoder=named))
    monkeypatch.setattr(resolving, "resolve_generator", lambda _: leaky)
    project.configure(generator="handcrafted", contrast_hu=[-60, -40])
    with pytest.raises(LeakError):
        make_trainer(project, nnUNetTrainerDiffTumor)._prepare_training()
    project.configure(generator="handcrafted", contrast_hu=[-60, -40], heterogeneity_hu=[4, 12])
    make_trainer(project, nnUNetTrainerDiffTumor)._prepare_training()
    project.configure(contrast_hu=[-60, -40], heterogeneity_hu=[4, 12])
    with pytest.raises(LeakError):
        make_trainer(project, nnUNetTrainerDiffTumor)._prepare_training()


def ball_host(rng, sd_hu=10.0):
    grid = np.indices((48, 48, 48)) - 23.5
    organ = np.linalg.norm(grid, axis=0) < 22
    image_hu = np.where(organ, 110.0, 20.0) + rng.normal(0, sd_hu, organ.shape)
    everywhere = np.ones_like(organ)
    return Host(image_hu.astype(np.float32), (2.0, 2.0, 2.0), organ, organ, everywhere)


@pytest.fixture(scope="module")
def handcrafted():
    return HandcraftedSource(resolve_generator(DEFAULT_GENERATOR))()


def test_handcrafted_tumours_have_the_contrast_and_the_hosts_noise(handcrafted):
    rng = np.random.default_rng(0)
    host = ball_host(rng)
    contrasts, noise = [], []
    plan = TumorPlan(
        size_classes=(SizeClass(name="mid", radius_mm=(10.0, 12.0), probability=1.0),),
        appearances=AppearanceRule(contrast_hu=(-45.0, -35.0), heterogeneity_hu=(4.0, 6.0)),
    )
    for _ in range(8):
        specs, _ = draw_tumors(host, plan, rng, count=1)
        (tumor,) = handcrafted.synthesize(host, specs).tumors
        contrasts.append(tumor.record.depth_hu - tumor.record.spec.contrast_hu)
        inside = tumor.image_hu[tumor.label]
        noise.append(np.std(inside))
    assert abs(np.median(contrasts)) < 5.0
    assert 8.0 < np.median(noise) < 16.0  # 10 HU of noise and 5 of texture


def test_pasted_texture_is_the_donors_at_the_requested_contrast():
    rng = np.random.default_rng(1)
    image_hu = rng.normal(60.0, 5.0, (30, 30, 30)).astype(np.float32)
    grid = np.indices(image_hu.shape) - 15
    tumor = np.linalg.norm(grid, axis=0) < 9
    image_hu[tumor] += -30.0 + 12.0 * np.sign(grid[0][tumor])
    organ = ~tumor
    donor = make_donor("a", image_hu, tumor, organ, (1.0, 1.0, 1.0))
    assert donor.contrast_hu == pytest.approx(-30.0, abs=3.0)
    label = np.linalg.norm(grid, axis=0) < 5
    pasted_hu = paste_texture([donor], label, 5.0, -20.0, 100.0, rng)
    assert pasted_hu[label].mean() == pytest.approx(80.0, abs=0.1)
    assert np.std(pasted_hu[label]) == pytest.approx(np.std(donor.texture_hu[donor.mask]), rel=0.5)
    # whole voxels are copied: up to one shift, every pasted value is one of the donor's
    texture, values = np.sort(donor.texture_hu.ravel()), pasted_hu[label] - pasted_hu[label][0]
    assert min(_largest_gap(texture, values + start) for start in texture) < 1e-3


def test_a_donor_is_taken_from_its_surroundings_and_keeps_nothing_else_alive():
    rng = np.random.default_rng(2)
    image_hu = rng.normal(60.0, 5.0, (40, 50, 60)).astype(np.float32)
    tumor = np.linalg.norm((np.indices(image_hu.shape).T - (5, 20, 40)).T, axis=0) < 9
    spacing_mm = (2.0, 0.8, 0.8)
    whole = make_donor("a", image_hu, tumor, ~tumor, spacing_mm)
    near = donor_box(find_objects(tumor.astype(int))[0], spacing_mm, tumor.shape)
    assert np.prod([part.stop - part.start for part in near]) < 0.6 * tumor.size
    part = make_donor("a", image_hu[near], tumor[near], ~tumor[near], spacing_mm)
    assert np.array_equal(part.texture_hu, whole.texture_hu)
    assert np.array_equal(part.mask, whole.mask)
    assert (part.radius_mm, part.contrast_hu) == (whole.radius_mm, whole.contrast_hu)
    for array in (whole.mask, whole.texture_hu):
        assert array.base is None


def _largest_gap(known, values):
    """Largest distance of a value from the nearest of the sorted known ones."""
    index = np.clip(np.searchsorted(known, values), 1, len(known) - 1)
    return float(np.minimum(np.abs(values - known[index]), np.abs(values - known[index - 1])).max())


THREE = {
    "background": 0,
    "liver": 1,
    "liver_tumor": 2,
    "pancreas": 3,
    "pancreas_tumor": 4,
    "kidney": 5,
    "kidney_tumor": 6,
}


def test_several_targets_are_resolved_each_with_its_own_settings():
    entries = [
        {"organ_label": "liver", "contrast_hu": [-40, -20]},
        {"organ_label": "pancreas", "probability": 2.0, "generator": "handcrafted"},
        {"tumor_label": "kidney_tumor", "size_classes": "training_tumors", "avoid_labels": ["liver"]},
    ]
    source = _source(targets=entries, steps=2)
    config = resolve_config(THREE, [source]).config
    liver, pancreas, kidney = config.organ_targets
    assert [(target.organ_label, target.tumor_label) for target in config.organ_targets] == [(1, 2), (3, 4), (5, 6)]
    assert (liver.contrast_hu, liver.target, liver.generator) == ((-40.0, -20.0), "liver", DEFAULT_GENERATOR)
    assert (pancreas.generator, pancreas.probability, pancreas.target) == ("handcrafted", 2.0, "pancreas")
    assert (kidney.exophytic, kidney.size_classes, kidney.avoid_labels) == (True, "training_tumors", (1,))
    from nnunet_difftumor.settings.resolving import config_from_json

    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


def _source(**values):
    from pathlib import Path

    from nnunet_difftumor.settings.sources import ConfigSource

    return ConfigSource("test", values, Path("/data"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"contrast_hu": [-40, -20]}], "Each of targets must be an object"),
        ([{"organ_label": "liver", "seed": 3}], "seed holds for the whole run"),
        ([{"organ_label": "liver"}, {"organ_label": "liver"}], "same organ and tumour"),
        ([{"organ_label": "liver", "probability": 0}], "probability above 0"),
        ([{"organ_label": "liver", "avoid_labels": ["vessel"]}], "avoid_labels"),
        ([{"organ_label": "liver", "outside_share": [0.2, 1.2]}], "outside_share"),
        ([{"organ_label": "liver", "size_classes": "real"}], "size_classes"),
        ([{"organ_label": "liver", "tumor_label": "kidney"}, {"organ_label": "kidney"}], "organ of one target"),
    ],
)
def test_a_wrong_target_is_refused(entries, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve_config(THREE, [_source(targets=entries)])


def test_labels_beside_targets_are_refused():
    with pytest.raises(ConfigurationError, match="belong into each entry"):
        resolve_config(THREE, [_source(targets=[{"organ_label": "liver"}], organ_label="liver")])


SIZES = (
    SizeClass(name="tiny", radius_mm=(3.0, 5.0), probability=0.4),
    SizeClass(name="small", radius_mm=(6.0, 9.0), probability=0.4),
    SizeClass(name="medium", radius_mm=(11.0, 14.0), probability=0.2),
)


def test_sizes_land_as_often_as_they_were_asked_for():
    """1000 tumours in an organ that can hold them all: chi-square at 1% against the requested frequencies."""
    host = ball_host(np.random.default_rng(2))
    plan = TumorPlan(size_classes=SIZES, keeps_class=True)
    landed: Counter[str] = Counter()
    radii = {size.name: [] for size in SIZES}
    for number in range(1000):
        rng = np.random.default_rng([3, number])
        specs, _ = place_tumors(HostGround(host, plan.zone), plan, draw_sizes(plan, 30.0, rng), rng)
        for spec in specs:
            landed[spec.size_class] += 1
            radii[spec.size_class].append(spec.radius_mm)
    assert sum(landed.values()) >= 990
    expected = np.array([size.probability for size in SIZES]) * sum(landed.values())
    assert stats.chisquare([landed[size.name] for size in SIZES], expected).pvalue > 0.01
    for size in SIZES:
        low, high = size.radius_mm
        assert stats.kstest(radii[size.name], stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_a_tumour_without_room_shrinks_within_its_class_only():
    organ = np.zeros((40, 40, 40), dtype=bool)
    organ[17:23, 17:23, 17:23] = True  # 12 mm wide
    image_hu = np.zeros(organ.shape, np.float32)
    host = Host(image_hu, (2.0, 2.0, 2.0), organ, organ, np.ones_like(organ))
    plan = TumorPlan(size_classes=SIZES, keeps_class=True)
    for number in range(40):
        rng = np.random.default_rng(number)
        (drawn,) = draw_sizes(plan, 30.0, rng)
        specs, given_up = place_tumors(HostGround(host, plan.zone), plan, [drawn], rng)
        assert len(specs) + len(given_up) == 1
        for spec in specs:
            assert drawn.size_class.radius_mm[0] <= spec.radius_mm <= drawn.size_class.radius_mm[1]


def test_centres_keep_to_their_zone():
    host = ball_host(np.random.default_rng(4))
    avoid = np.zeros(host.organ_mask.shape, dtype=bool)
    avoid[:, 24, 24] = True  # a vessel through the middle
    host = dataclasses.replace(host, avoid_mask=avoid)
    zone = Zone(surface_distance_mm=(8.0, 20.0), avoid_distance_mm=3.0)
    plan = TumorPlan(size_classes=SIZES[:1], zone=zone)
    rng = np.random.default_rng(5)
    count = 0
    for _ in range(60):
        for spec in draw_tumors(host, plan, rng)[0]:
            centre = np.asarray(spec.centre_mm)
            depth_mm = 44.0 - np.linalg.norm(centre - 47.0)
            assert 5.0 < depth_mm < 23.0  # a voxel more or less
            surface = TumorSurface(spec)
            points = surface.surface_offsets_mm(500) + centre
            assert np.hypot(points[:, 1] - 48.0, points[:, 2] - 48.0).min() > 1.5
            count += 1
    assert count > 40


def test_exophytic_tumours_have_the_share_outside_that_was_asked_for():
    host = ball_host(np.random.default_rng(6))
    host = dataclasses.replace(host, replaceable_mask=np.ones_like(host.organ_mask))
    shares = {}
    for wanted in ((0.0, 0.05), (0.45, 0.55)):
        plan = TumorPlan(size_classes=SIZES[1:2], zone=Zone(outside_share=wanted))
        rng = np.random.default_rng(7)
        found = []
        for _ in range(30):
            (spec,) = draw_tumors(host, plan, rng, count=1)[0]
            points = TumorSurface(spec).surface_offsets_mm(500) + np.asarray(spec.centre_mm)
            found.append(np.mean(np.linalg.norm(points - 47.0, axis=1) > 44.0))
        shares[wanted] = np.median(found)
    assert shares[(0.0, 0.05)] < 0.1
    assert 0.35 < shares[(0.45, 0.55)] < 0.65


def test_kidney_tumours_grow_out_more_the_larger_they_are():
    rng = np.random.default_rng(8)
    zone = Zone(outside_share="kidney")
    medians = [np.median([zone.draw_outside_share(radius, rng) for _ in range(400)]) for radius in (7.8, 15.0, 36.0)]
    assert medians == pytest.approx([0.34, 0.49, 0.74], abs=0.04)


def test_healthy_cases_make_up_their_share():
    cases = ["t1", "t2", "h1", "h2", "h3"]
    assert sampling_probabilities(cases, {"h1", "h2", "h3"}, None) is None
    chances = sampling_probabilities(cases, {"h1", "h2", "h3"}, 0.3)
    assert chances.sum() == pytest.approx(1.0)
    assert chances[2:].sum() == pytest.approx(0.3)
    with pytest.raises(ConfigurationError, match="no training case is not healthy"):
        sampling_probabilities(["h1"], {"h1"}, 0.3)


def test_one_generator_is_loaded_once_for_several_targets(monkeypatch):
    loads = []

    def load(cls, folder, **options):
        loads.append(folder)
        return SimpleNamespace(blends_as_published=False)

    monkeypatch.setattr(DiffusionTissue, "from_folder", classmethod(load))
    shared = LoadedOnce(GeneratorFolderSource("folder", 4))
    assert shared() is shared()
    assert loads == ["folder"]
    assert pickle.loads(pickle.dumps(shared))._synthesizer is None
