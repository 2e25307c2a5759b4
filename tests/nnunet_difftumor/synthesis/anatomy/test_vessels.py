"""Large bright vessels are found where the phantom has them, not in noise, and tumours are placed beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.phantom.acquisition import Scan, scan_patient
from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.dataset import make_patient
from nnunet_difftumor.phantom.styles import STANDARD, PhantomStyle
from nnunet_difftumor.synthesis.anatomy.vessels import find_vessels
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import Ground, HostGround, TumorPlan, draw_tumors
from nnunet_difftumor.tumor.drawing import draw_on_grid
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface


def vessel_distance_mm(anatomy: Anatomy, scan: Scan) -> np.ndarray:
    """Distance to the surface of the nearest vessel of the liver, negative inside. Shape (D, H, W)."""
    z_mm, y_mm, x_mm = (
        (start + np.arange(count) * step).astype(np.float32)
        for start, count, step in zip(scan.start_mm, scan.shape, scan.spacing_mm, strict=True)
    )
    columns, rows = np.meshgrid(x_mm, y_mm, indexing="xy")
    planes = []
    for z in z_mm:
        points = np.stack([columns, rows, np.full_like(columns, z)]) / np.float32(anatomy.scale)
        inner = points + np.float32(anatomy.warp_mm) * np.stack([field(points) for field in anatomy.warp])
        planes.append(np.min([tube.distance(inner) for tube in anatomy.liver_vessels], axis=0))
    return np.stack(planes) * anatomy.scale


@pytest.fixture(scope="module")
def patients() -> list[tuple[Host, np.ndarray]]:
    """Two healthy phantom patients, and the distance to their nearest vessel."""
    made = []
    for seed in range(2):
        rng, hospital = np.random.default_rng(seed), STANDARD.hospitals[0]
        anatomy = Anatomy(rng, hospital.phase)
        scan = Scan(anatomy, STANDARD.size, hospital, rng)
        patient = scan_patient(anatomy, [], scan, rng, STANDARD.organs)
        liver = patient.label == 1
        host = Host(patient.image_hu.astype(np.float32), scan.spacing_mm, liver, liver, np.ones_like(liver))
        made.append((host, vessel_distance_mm(anatomy, scan)))
    return made


def test_vessels_of_the_phantom_are_found(patients):
    for host, distance_mm in patients:
        found = find_vessels(host.image_hu, host.organ_mask, host.spacing_mm)
        thick = host.organ_mask & (distance_mm < -2.0)  # the middle of vessels of 4 mm and more
        assert found[thick].mean() > 0.95
        assert (distance_mm[found] < host.spacing_mm[1]).mean() > 0.9
        assert not found[~host.organ_mask].any()


def test_no_vessel_is_found_in_an_unenhanced_scan():
    style = PhantomStyle.named(organs=["liver"], hospitals=["low-dose"], size="small")
    patient = make_patient(1, 0, is_healthy=True, style=style)
    assert not find_vessels(patient.image_hu.astype(np.float32), patient.label == 1, patient.spacing_mm).any()


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8)])
@pytest.mark.parametrize("grain_mm", [0.0, 1.0, 2.0])
def test_no_vessel_is_found_in_noise(spacing_mm: tuple[float, float, float], grain_mm: float):
    rng = np.random.default_rng(0)
    shape = [round(60.0 / mm) for mm in spacing_mm]
    noise = gaussian_filter(rng.normal(size=shape), [0.0, grain_mm / spacing_mm[1], grain_mm / spacing_mm[2]])
    image_hu = (100.0 + 15.0 * noise / noise.std()).astype(np.float32)
    assert find_vessels(image_hu, np.ones(shape, bool), spacing_mm).mean() < 0.005


def test_an_organ_of_a_few_voxels_has_no_vessels():
    organ = np.zeros((4, 20, 20), bool)
    assert not find_vessels(np.zeros(organ.shape, np.float32), organ, (3.0, 1.0, 1.0)).any()
    organ[1, 5:10, 5:10] = True
    assert not find_vessels(np.where(organ, 200.0, 0.0), organ, (3.0, 1.0, 1.0)).any()


PLAN = TumorPlan(size_classes=(SizeClass(name="small", radius_mm=(5.0, 12.0), probability=1.0),))


def share_in(mask: np.ndarray, spec: TumorSpec, spacing_mm: tuple[float, float, float]) -> float:
    """Share of a drawn tumour's voxels that lie in a mask of the scan."""
    drawn = draw_on_grid(TumorSurface(spec), spacing_mm)
    voxels = np.argwhere(drawn.label) + drawn.start
    voxels = voxels[np.all((voxels >= 0) & (voxels < mask.shape), axis=1)]
    return float(mask[tuple(voxels.T)].mean())


def test_tumours_do_not_cut_large_vessels_off(patients, monkeypatch):
    host, distance_mm = patients[0]
    largest = []
    for _ in range(2):
        specs = [draw_tumors(host, PLAN, np.random.default_rng(seed), count=1)[0][0] for seed in range(15)]
        largest.append(max(share_in(distance_mm < -2.0, spec, host.spacing_mm) for spec in specs))
        monkeypatch.setattr(HostGround, "vessels", Ground.vessels)  # looks for none
    assert largest[0] == 0.0
    assert largest[1] > 0.05


def test_without_vessels_places_and_random_stream_are_those_of_a_placement_that_looks_for_none(patients, monkeypatch):
    host, _ = patients[0]
    smooth = replace(host, image_hu=np.where(host.organ_mask, np.float32(100.0), host.image_hu))
    found = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        found.append((draw_tumors(smooth, PLAN, rng, count=4), rng.random()))
        monkeypatch.setattr(HostGround, "vessels", Ground.vessels)
    assert found[0] == found[1]


def test_where_vessels_are_everywhere_tumours_of_the_same_sizes_lie_where_they_cut_least():
    shape, spacing_mm = (50, 50, 50), (1.5, 1.5, 1.5)
    organ = np.ones(shape, bool)
    _, h, w = np.indices(shape)
    tubes = (h % 9 < 3) & (w % 9 < 3)
    tubes[:, :, 40:] &= h[:, :, 40:] < 20
    with_tubes = Host(np.where(tubes, 160.0, 100.0).astype(np.float32), spacing_mm, organ, organ, organ)
    without = replace(with_tubes, image_hu=np.full(shape, 100.0, np.float32))
    plan = TumorPlan(size_classes=(SizeClass(name="large", radius_mm=(10.0, 20.0), probability=1.0),))
    shares = []
    for seed in range(10):
        (cutting,), given_up = draw_tumors(with_tubes, plan, np.random.default_rng(seed), count=1)
        (free,), _ = draw_tumors(without, plan, np.random.default_rng(seed), count=1)
        assert not given_up
        assert cutting.radius_mm == free.radius_mm
        shares.append([share_in(tubes, spec, spacing_mm) for spec in (cutting, free)])
    assert np.mean(shares, axis=0)[0] < np.mean(shares, axis=0)[1]
