"""Drawing of a phantom patient around a standard anatomy."""

from __future__ import annotations

import numpy as np

from nnunet_difftumor.phantom.anatomy import Anatomy, Body, TissueValues
from nnunet_difftumor.phantom.geometry import Ellipsoid, SmoothField, Triple, Tube, jittered
from nnunet_difftumor.phantom.organs import PORTAL_VENOUS


def draw_anatomy(rng: np.random.Generator, phase: str = PORTAL_VENOUS) -> Anatomy:
    """Draw one patient.

    Args:
        phase: Contrast phase, one of those of `phantom.organs`.

    Returns:
        The patient's anatomy.
    """
    bowel = _draw_bowel(rng)
    stomach = _draw_ellipsoid((52, -36, 30), (46, 36, 44), rng)
    return Anatomy(
        scale=float(rng.uniform(0.93, 1.05)),
        tissue=TissueValues.draw(rng).in_phase(phase),
        body=_draw_body(rng),
        warp=(_warp_field(rng), _warp_field(rng), _warp_field(rng)),
        warp_mm=float(rng.uniform(2.5, 4.5)),
        texture=SmoothField.draw((9.0, 24.0), rng),
        mottle=SmoothField.draw((20.0, 60.0), rng),
        liver_lobes=(
            _draw_ellipsoid((-62, 2, -2), (62, 74, 86), rng),
            _draw_ellipsoid((2, -42, 24), (58, 26, 38), rng, turn_degrees=8),
        ),
        liver_hollow=_draw_ellipsoid((26, 34, -30), (60, 58, 82), rng),
        liver_vessels=_draw_liver_vessels(rng),
        fissure=Tube((jittered((-12, -84, -5), 3, rng), jittered((-4, -46, -12), 3, rng)), (3.0, 5.0)),
        gallbladder=_draw_ellipsoid((-44, -34, -40), (15, 19, 27), rng),
        kidneys=(
            _draw_ellipsoid((-57, 42, -55), (25, 29, 52), rng, turn_degrees=-25),
            _draw_ellipsoid((58, 40, -42), (25, 29, 54), rng, turn_degrees=25),
        ),
        spleen=_draw_ellipsoid((90, 24, 28), (27, 46, 48), rng, turn_degrees=-12),
        stomach=stomach,
        stomach_level_mm=stomach.centre_mm[1] + float(rng.uniform(-22.0, 2.0)),
        heart=_draw_ellipsoid((18, -40, 84), (58, 42, 34), rng, turn_degrees=15),
        pancreas=_draw_pancreas(rng),
        great_vessels=_draw_great_vessels(rng),
        small_vessels=_draw_small_vessels(rng),
        bowel=bowel,
        bowel_has_gas=tuple(bool(rng.random() < 0.3) for _ in bowel),
        domes_mm=(float(rng.uniform(62.0, 78.0)), float(rng.uniform(50.0, 66.0))),
    )


def _warp_field(rng: np.random.Generator) -> SmoothField:
    return SmoothField.draw((60.0, 150.0), rng)


def _draw_body(rng: np.random.Generator) -> Body:
    return Body(
        semi_axes_mm=(float(rng.uniform(132.0, 142.0)), float(rng.uniform(96.0, 106.0))),
        squareness=float(rng.uniform(2.2, 2.5)),
        fat_mm=float(rng.uniform(8.0, 15.0)),
        wall_mm=float(rng.uniform(9.0, 12.0)),
        rib_phase_mm=float(rng.uniform(0.0, 24.0)),
        lowest_rib_mm=float(rng.uniform(-45.0, -25.0)),
        disc_phase_mm=float(rng.uniform(0.0, 33.0)),
        outline=SmoothField.draw((120.0, 260.0), rng),
    )


def _draw_ellipsoid(
    centre_mm: Triple, semi_axes_mm: Triple, rng: np.random.Generator, turn_degrees: float = 0.0
) -> Ellipsoid:
    """An ellipsoid near the given one: centre within some 3 mm, axes within some 6 percent."""
    a, b, c = (float(axis * np.clip(rng.normal(1.0, 0.06), 0.85, 1.15)) for axis in semi_axes_mm)
    return Ellipsoid(jittered(centre_mm, 3.0, rng), (a, b, c), turn_degrees + float(rng.normal(0.0, 4.0)))


def _draw_great_vessels(rng: np.random.Generator) -> tuple[Tube, Tube]:
    aorta_mm = float(rng.uniform(8.5, 11.0))
    cava_mm = float(rng.uniform(9.0, 11.5))
    aorta = Tube(((12, 18, -130), (13, 14, 0), (16, 24, 130)), (aorta_mm * 0.9, aorta_mm, aorta_mm * 1.1))
    cava = Tube(((-20, 14, -130), (-20, 10, 0), (-19, 0, 70)), (cava_mm, cava_mm, cava_mm * 1.1))
    return aorta, cava


def _draw_pancreas(rng: np.random.Generator) -> Tube:
    nodes = [(-24, -4, -48), (-20, -8, -32), (4, -18, -22), (36, -2, -10), (66, 18, 4)]
    return Tube(tuple(jittered(node, 2.0, rng) for node in nodes), (11.0, 10.0, 7.5, 7.5, 6.5))


def _draw_small_vessels(rng: np.random.Generator) -> tuple[Tube, ...]:
    tubes = [
        Tube(((2, -2, -120), (4, -4, -20), (10, 12, 0)), (3.5, 3.5, 3.5)),
        Tube(((-9, -4, -120), (-8, -8, -26)), (5.0, 5.5)),
    ]
    for _ in range(14):
        start = (float(rng.uniform(-50, 80)), float(rng.uniform(-65, 20)), float(rng.uniform(-110, -20)))
        stop = jittered(start, 22.0, rng)
        tubes.append(Tube((start, stop), (float(rng.uniform(1.2, 2.2)), 1.0)))
    return tuple(tubes)


def _draw_bowel(rng: np.random.Generator) -> tuple[Ellipsoid, ...]:
    """Loops in the lower, front part of the cavity, at least 24 mm apart."""
    centres: list[Triple] = []
    for _ in range(160):
        centre = (float(rng.uniform(-75, 98)), float(rng.uniform(-68, 0)), float(rng.uniform(-120, -22)))
        if all(np.linalg.norm(np.subtract(centre, other)) > 24.0 for other in centres):
            centres.append(centre)
    loops = []
    for centre in centres[:34]:
        a, b, c = (float(axis) for axis in rng.uniform(11.0, 20.0, size=3))
        loops.append(Ellipsoid(centre, (a, b, c), float(rng.uniform(0.0, 180.0))))
    return tuple(loops)


_PORTAL_BRANCHES: tuple[tuple[tuple[Triple, ...], float, float], ...] = (
    (((-9, -6, -28), (-26, -8, -12), (-36, -8, -4)), 7.5, 6.5),
    (((-36, -8, -4), (-58, 0, 2), (-76, 14, 8)), 5.5, 3.0),
    (((-36, -8, -4), (-24, -26, 12), (-2, -42, 20), (20, -46, 26)), 5.0, 2.2),
    (((-58, 0, 2), (-72, -22, 14), (-84, -40, 24)), 3.6, 1.8),
    (((-58, 0, 2), (-74, -18, -18), (-86, -32, -40)), 3.4, 1.6),
    (((-76, 14, 8), (-92, 24, 22), (-100, 30, 36)), 2.8, 1.4),
    (((-76, 14, 8), (-90, 30, -16), (-98, 36, -38)), 2.8, 1.4),
)
_HEPATIC_VEINS: tuple[tuple[tuple[Triple, ...], float, float], ...] = (
    (((-20, 4, 46), (-50, 10, 34), (-84, 16, 4), (-92, 14, -24)), 5.5, 1.8),
    (((-20, 2, 46), (-40, -22, 30), (-56, -44, 4), (-62, -52, -16)), 5.2, 1.8),
    (((-18, -2, 46), (-8, -26, 38), (14, -44, 34)), 4.6, 1.6),
    (((-50, 10, 34), (-66, -8, 42), (-86, -14, 44)), 2.8, 1.4),
)


def _draw_liver_vessels(rng: np.random.Generator) -> tuple[Tube, ...]:
    """The main veins, each with two random side branches."""
    tubes: list[Tube] = []
    for nodes, first_mm, last_mm in (*_PORTAL_BRANCHES, *_HEPATIC_VEINS):
        moved = tuple(jittered(node, 2.5 if i else 0.0, rng) for i, node in enumerate(nodes))
        radii = tuple(float(r) for r in np.linspace(first_mm, last_mm, len(nodes)))
        tubes.append(Tube(moved, radii))
        for _ in range(2):
            index = int(rng.integers(1, len(moved)))
            direction = rng.normal(size=3)
            tip = np.asarray(moved[index]) + direction / np.linalg.norm(direction) * rng.uniform(14.0, 28.0)
            tubes.append(Tube((moved[index], jittered(tip, 0.0, rng)), (radii[index] * 0.65, 0.8)))
    return tuple(tubes)
