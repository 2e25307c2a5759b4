from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from diffusion.generator.info import GeneratorInfo
from nnunet_difftumor.phantom.dataset import make_patient
from nnunet_difftumor.phantom.styles import PhantomStyle, ScanSize
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import TumorPlan, draw_tumors
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.handcrafted import HandcraftedTissue
from nnunet_difftumor.tumor.annotated_edges import edges_of_case
from nnunet_difftumor.tumor.appearance import AppearanceRule
from nnunet_difftumor.tumor.edge import Edge
from nnunet_difftumor.tumor.edge_law import pool_edges
from nnunet_difftumor.tumor.edge_profile import TumorEdge, measure_edge
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.spec import Triple

ORGAN_HU, IN_PLANE_MM = 100.0, 0.8


def scan_ball(
    diameter_mm: float,
    edge: Edge,
    slice_mm: float,
    rng: np.random.Generator,
    *,
    contrast_hu: float = -40.0,
    noise_hu: float = 12.0,
) -> tuple[NDArray[np.float32], NDArray[np.bool_], Triple]:
    """A ball whose label has this diameter in a uniform organ: image, label and spacing."""
    spacing_mm = (slice_mm, IN_PLANE_MM, IN_PLANE_MM)
    shape = [int((diameter_mm + 30.0) / each) + 1 for each in spacing_mm]
    middle = [0.5 * count + rng.uniform(-0.5, 0.5) for count in shape]
    layers = max(1, round(slice_mm / 0.5))
    tissue, label = np.zeros(shape), np.zeros(shape)
    for layer in range(layers):
        z, y, x = np.meshgrid(*(np.arange(count) for count in shape), indexing="ij")
        z = z + (layer + 0.5) / layers - 0.5
        squares = (((each - m) * mm) ** 2 for each, m, mm in zip((z, y, x), middle, spacing_mm, strict=True))
        distance_mm = np.sqrt(sum(squares)) - 0.5 * diameter_mm
        tissue += edge.share(distance_mm) / layers
        label += (distance_mm <= 0) / layers
    noise = gaussian_filter(rng.standard_normal(shape), (0.25, 0.7, 0.7))
    image_hu = ORGAN_HU + contrast_hu * tissue + noise * (noise_hu / noise.std())
    return image_hu.astype(np.float32), label >= 0.5, spacing_mm


def measure_ball(*words: object, **options: object) -> TumorEdge:
    image_hu, label, spacing_mm = scan_ball(*words, **options)  # pyright: ignore
    edge = measure_edge(image_hu, label, ~label, spacing_mm)
    assert edge is not None
    return edge


@pytest.mark.parametrize("slice_mm", [1.5, 5.0])
@pytest.mark.parametrize(("diameter_mm", "offset_mm"), [(9.0, 0.0), (8.0, 2.0), (14.0, -3.0)])
def test_the_edge_of_balls_is_found_in_thin_and_thick_slices(
    diameter_mm: float, offset_mm: float, slice_mm: float
) -> None:
    rng = np.random.default_rng(3)
    truth = Edge(offset_mm=offset_mm, width_mm=1.2)
    edges = [measure_ball(diameter_mm, truth, slice_mm, rng) for _ in range(5)]
    law = pool_edges(edges, list("abcde"), rng)
    found = max(law, key=lambda each: each.tumors)
    assert found.tumors >= 4
    assert found.offset_mm == pytest.approx(offset_mm, abs=0.4)
    assert found.width_mm == pytest.approx(1.2, abs=0.6)
    assert found.offset_sd_mm < 0.4  # they are all alike: what differs is noise


def test_a_fainter_tumor_is_known_less_well_and_an_invisible_one_says_nothing() -> None:
    edge = Edge(offset_mm=-1.0, width_mm=1.5)
    clear, faint, hidden = (
        measure_ball(16.0, edge, 2.5, np.random.default_rng(0), contrast_hu=contrast_hu)
        for contrast_hu in (-60.0, -15.0, -1.0)
    )
    assert clear.offset_error_mm < faint.offset_error_mm < hidden.offset_error_mm
    assert clear.is_clear
    assert not hidden.is_clear
    assert pool_edges([hidden], ["a"], np.random.default_rng(0)) == ()


def test_fat_and_vessels_beside_a_tumor_do_not_move_its_edge() -> None:
    edge = Edge(offset_mm=-1.5, width_mm=1.5)
    image_hu, label, spacing_mm = scan_ball(20.0, edge, 2.5, np.random.default_rng(1))
    alone = measure_edge(image_hu, label, ~label, spacing_mm)
    host = ~label
    last = np.flatnonzero(label.any(axis=(0, 1)))[-1]
    image_hu[:, :, last - 1 :] = -100.0  # fat from the label's end on, 2 voxels of it under the label
    host[:, :, last - 1 :] = False
    first = np.flatnonzero(label.any(axis=(0, 2)))[0]
    image_hu[:, first - 3 : first - 1] = 190.0  # a vessel in the organ
    beside = measure_edge(image_hu, label, host, spacing_mm)
    assert alone is not None
    assert beside is not None
    assert beside.offset_mm == pytest.approx(alone.offset_mm, abs=0.25)
    assert beside.depth_hu == pytest.approx(alone.depth_hu, rel=0.1)


def test_without_host_tissue_nothing_is_measured() -> None:
    image_hu, label, spacing_mm = scan_ball(12.0, Edge(), 2.5, np.random.default_rng(0))
    assert measure_edge(image_hu, label, np.zeros_like(label), spacing_mm) is None


def test_the_order_of_the_axes_does_not_matter() -> None:
    image_hu, label, spacing_mm = scan_ball(12.0, Edge(offset_mm=-1.0), 5.0, np.random.default_rng(2))
    straight = measure_edge(image_hu, label, ~label, spacing_mm)
    turned = [np.moveaxis(each, 0, 2) for each in (image_hu, label, ~label)]
    assert measure_edge(*turned, (*spacing_mm[1:], spacing_mm[0])) == straight  # pyright: ignore


def test_tumors_of_a_scan_are_measured_one_by_one() -> None:
    image_hu, label, spacing_mm = scan_ball(14.0, Edge(offset_mm=-1.0), 2.5, np.random.default_rng(4))
    two = np.concatenate([label, label], axis=1)
    edges = list(edges_of_case(np.concatenate([image_hu, image_hu], axis=1), two, ~two, spacing_mm))
    assert len(edges) == 2
    assert all(edge is not None and abs(edge.offset_mm + 1.0) < 0.4 for edge in edges)


def _made_up(diameter_mm: float, offset_mm: float) -> TumorEdge:
    sharp = measure_ball(20.0, Edge(offset_mm=offset_mm, width_mm=2.0), 2.0, np.random.default_rng(0), noise_hu=3.0)
    return replace(sharp, diameter_mm=diameter_mm)


def test_a_size_with_few_tumors_borrows_and_the_interval_is_of_patients() -> None:
    inside, outside = _made_up(25.0, -2.0), _made_up(25.0, 0.0)
    many = [inside, outside] * 8
    one_small = _made_up(8.0, 1.0)
    rng = np.random.default_rng(0)
    small, middle, large = pool_edges([*many, one_small], [str(number % 8) for number in range(17)], rng)
    assert (small.tumors, middle.tumors, large.tumors) == (1, 0, 16)
    assert large.offset_mm == pytest.approx(-1.0, abs=0.1)
    assert large.offset_sd_mm == pytest.approx(1.0, abs=0.15)
    assert large.offset_mm < small.offset_mm < 0.0  # a fifth of its own and the rest of all
    assert middle.offset_mm == pytest.approx(large.offset_mm, abs=0.2)
    # one patient has every tumour of one kind, so little is known; or each has both, and all agree
    two_patients = pool_edges(many, ["a", "b"] * 8, np.random.default_rng(0))[2].offset_interval_mm
    eight_alike = pool_edges(many, [str(number // 2) for number in range(16)], np.random.default_rng(0))[2]
    assert two_patients[1] - two_patients[0] > 1.0
    assert eight_alike.offset_interval_mm[1] - eight_alike.offset_interval_mm[0] < 0.1


READERS = pytest.mark.parametrize(("edge_offset_mm", "slice_mm"), list(itertools.product((-3.0, 0.0, 2.0), (1.5, 5.0))))
SEEN = (
    SizeClass(name="small", radius_mm=(6.0, 9.0), probability=0.6),
    SizeClass(name="medium", radius_mm=(9.0, 16.0), probability=0.4),
)


@functools.cache
def phantom_edges(
    edge_offset_mm: float, slice_mm: float, *, patients: int = 12, has_texture: bool = True
) -> tuple[list[TumorEdge], list[str], PhantomStyle]:
    """Edges of 20 and more tumours of 8 mm in diameter and more, and whose they are."""
    style = PhantomStyle.named(
        organs=["liver"], hospitals=["standard"], size="small", tumors="mixed", edge_offset_mm=edge_offset_mm
    )
    size = ScanSize(in_plane_mm=(1.3, 1.3), slice_mm=(slice_mm, slice_mm), margin_mm=4.0)
    tumors = replace(style.tumors, size_classes=SEEN, core_hu=(0.0, 0.0))  # a core's depth is none of the edge's
    if not has_texture:
        tumors = replace(tumors, texture_hu=(0.0, 0.0))
    style = replace(style, tumors=tumors, size=size)
    edges, whose = [], []
    for index in range(patients):
        patient = make_patient(7, index, is_healthy=False, style=style)
        liver, tumors = (patient.label == value for value in (1, 2))
        found = edges_of_case(patient.image_hu.astype(np.float32), tumors, liver, patient.spacing_mm)
        own = [edge for edge in found if edge is not None and edge.diameter_mm >= 8.0]
        edges += own
        whose += [str(index)] * len(own)
    assert len(edges) >= 20
    return edges, whose, style


def mean_profile(edges: list[TumorEdge]) -> np.ndarray:
    """Mean of the clear tumours' contrast over their depth, by millimetre from -8 to 4. Shape (12,)."""
    profiles = [
        [np.nan if hu is None else hu / each.depth_hu for hu in each.profile_hu[:12]] for each in edges if each.is_clear
    ]
    return np.nanmean(profiles, axis=0)


@pytest.mark.slow
@READERS
def test_phantom_readers_are_found_out(edge_offset_mm: float, slice_mm: float) -> None:
    edges, patients, _ = phantom_edges(edge_offset_mm, slice_mm)
    for each in pool_edges(edges, patients, np.random.default_rng(0)):
        print(f"truth {edge_offset_mm:g}, slices {slice_mm:g}, {len(edges)} tumours: {each}")
        assert each.offset_mm == pytest.approx(edge_offset_mm, abs=0.7)
        # soft edges of 1.5 to 3 mm, 0.35 to 0.6 voxels of blur: 1.0 mm from a quarter to three quarters in the mean
        assert each.width_mm == pytest.approx(1.04, abs=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("has_texture", [True, False])
@READERS
def test_tumours_of_the_measured_law_have_the_profile_of_the_annotated_ones(
    edge_offset_mm: float, slice_mm: float, has_texture: bool
) -> None:
    """With the phantoms' texture, which moves the mean of the few tumours that are 7 mm deep, and without it."""
    count = 12 if has_texture else 24
    annotated, patients, style = phantom_edges(edge_offset_mm, slice_mm, patients=count, has_texture=has_texture)
    law = pool_edges(annotated, patients, np.random.default_rng(0))
    outlined = tuple(
        replace(each, radius_mm=(each.radius_mm[0] - edge_offset_mm, each.radius_mm[1] - edge_offset_mm))
        for each in SEEN
    )
    looks = AppearanceRule(contrast_hu=(-70.0, -40.0), heterogeneity_hu=(2.0, 5.0))
    plan = TumorPlan(size_classes=outlined, appearances=looks, edges=law, minimum_inside_share=0.99)
    synthesizer = TumorSynthesizer(HandcraftedTissue(GeneratorInfo()))
    made: list[TumorEdge] = []
    for index in range(10):
        patient = make_patient(8, index, is_healthy=True, style=style)
        liver = patient.label == 1
        host = Host(patient.image_hu.astype(np.float32), patient.spacing_mm, liver, liver, np.ones_like(liver))
        drawn, _ = draw_tumors(host, plan, np.random.default_rng(index), count=3)
        result = synthesizer.synthesize(host, drawn)
        tumors = result.label_mask(liver.shape)
        found = edges_of_case(result.apply_to(host.image_hu), tumors, liver, patient.spacing_mm)
        made += [edge for edge in found if edge is not None and edge.diameter_mm >= 8.0]
    assert len(made) >= 20
    found, expected = mean_profile(made), mean_profile(annotated)
    print(f"truth {edge_offset_mm:g}, slices {slice_mm:g}: {np.round(found, 2)} of {np.round(expected, 2)}")
    np.testing.assert_allclose(found, expected, atol=0.1)
