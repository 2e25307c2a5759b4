"""Drawing of a phantom patient around a standard anatomy."""

from __future__ import annotations

import numpy as np

from nnunet_difftumor.phantom.geometry import Ellipsoid, SmoothField, Triple, Tube, jittered
from nnunet_difftumor.phantom.styles import ARTERIAL, PORTAL_VENOUS, UNENHANCED


class TissueValues:
    """Mean values of the tissues of one patient after one contrast injection, in HU."""

    gas = -1000.0
    lung = -840.0

    def __init__(self, rng: np.random.Generator, phase: str) -> None:
        """Draw the values of the portal venous phase; in another, enhanced tissues change as in all patients."""
        self.liver = float(np.clip(rng.normal(110.0, 8.0), 92.0, 128.0))
        self.vessel = self.liver + float(rng.uniform(45.0, 70.0))  # blood in veins
        self.fat = float(rng.normal(-102.0, 4.0))
        self.muscle = float(rng.normal(56.0, 4.0))
        self.aorta = self.vessel + float(rng.uniform(-10.0, 15.0))
        self.kidney = float(rng.normal(165.0, 12.0))  # cortex
        self.spleen = float(rng.normal(122.0, 7.0))
        self.pancreas = float(rng.normal(98.0, 7.0))
        self.marrow = float(rng.uniform(170.0, 240.0))  # cancellous bone
        self.cortex = float(rng.uniform(420.0, 600.0))  # of bones
        self.fluid = float(rng.normal(12.0, 5.0))  # bile, water and stomach content
        if phase == ARTERIAL:
            self.vessel = self.liver + 15.0
            self.liver -= 36.0
            self.aorta += 140.0
            self.kidney += 25.0
            self.spleen += 18.0
            self.pancreas += 14.0
            self.muscle -= 4.0
        elif phase == UNENHANCED:
            self.vessel = 40.0 + 0.1 * (self.vessel - self.liver)
            self.liver -= 54.0
            self.aorta = 42.0
            self.kidney = 0.3 * (self.kidney - 165.0) + 32.0
            self.spleen -= 74.0
            self.pancreas -= 58.0
            self.muscle -= 6.0


class Anatomy:
    """One patient, in mm, with the origin at the middle of the upper abdomen."""

    def __init__(self, rng: np.random.Generator, phase: str = PORTAL_VENOUS) -> None:
        """Draw one patient in a contrast phase; the order of the lines is that of the random stream."""
        self.phase = phase
        self.bowel = _draw_bowel(rng)
        self.stomach = _draw_ellipsoid((52, -36, 30), (46, 36, 44), rng)
        self.scale = float(rng.uniform(0.93, 1.05))  # size relative to the standard anatomy
        self.tissue = TissueValues(rng, phase)
        self.half_width_mm = float(rng.uniform(132.0, 142.0))
        self.half_depth_mm = float(rng.uniform(96.0, 106.0))
        self.squareness = float(rng.uniform(2.2, 2.5))  # exponent of the superellipse; 2 is an ellipse
        self.fat_mm = float(rng.uniform(8.0, 15.0))  # mean thickness under the skin
        self.wall_mm = float(rng.uniform(9.0, 12.0))  # mean thickness of the muscle wall
        self.rib_phase_mm = float(rng.uniform(0.0, 24.0))  # height of one rib at the spine
        self.lowest_rib_mm = float(rng.uniform(-45.0, -25.0))  # height at the spine below which there are no ribs
        self.disc_phase_mm = float(rng.uniform(0.0, 33.0))  # height of one intervertebral disc
        self.outline = SmoothField((120.0, 260.0), rng)  # deformation of the outline and of the fat layer
        self.warp = [SmoothField((60.0, 150.0), rng) for _ in range(3)]  # deformation along x, y and z
        self.warp_mm = float(rng.uniform(2.5, 4.5))
        self.texture = SmoothField((9.0, 24.0), rng)  # of fat and muscle
        self.mottle = SmoothField((20.0, 60.0), rng)  # of the organs
        self.liver_lobes = (
            _draw_ellipsoid((-62, 2, -2), (62, 74, 86), rng),
            _draw_ellipsoid((2, -42, 24), (58, 26, 38), rng, turn_degrees=8),
        )
        self.liver_hollow = _draw_ellipsoid((26, 34, -30), (60, 58, 82), rng)  # taken out at the lower surface
        self.liver_vessels = _draw_liver_vessels(rng)
        self.fissure = Tube((jittered((-12, -84, -5), 3, rng), jittered((-4, -46, -12), 3, rng)), (3.0, 5.0))
        self.gallbladder = _draw_ellipsoid((-44, -34, -40), (15, 19, 27), rng)
        self.kidneys = (
            _draw_ellipsoid((-57, 42, -55), (25, 29, 52), rng, turn_degrees=-25),
            _draw_ellipsoid((58, 40, -42), (25, 29, 54), rng, turn_degrees=25),
        )
        self.spleen = _draw_ellipsoid((90, 24, 28), (27, 46, 48), rng, turn_degrees=-12)
        self.stomach_level_mm = self.stomach.centre_mm[1] + float(rng.uniform(-22.0, 2.0))  # y of the fluid's surface
        self.heart = _draw_ellipsoid((18, -40, 84), (58, 42, 34), rng, turn_degrees=15)
        nodes = [(-24, -4, -48), (-20, -8, -32), (4, -18, -22), (36, -2, -10), (66, 18, 4)]
        self.pancreas = Tube(tuple(jittered(node, 2.0, rng) for node in nodes), (11.0, 10.0, 7.5, 7.5, 6.5))
        aorta_mm, cava_mm = float(rng.uniform(8.5, 11.0)), float(rng.uniform(9.0, 11.5))
        self.aorta = Tube(((12, 18, -130), (13, 14, 0), (16, 24, 130)), (aorta_mm * 0.9, aorta_mm, aorta_mm * 1.1))
        self.cava = Tube(((-20, 14, -130), (-20, 10, 0), (-19, 0, 70)), (cava_mm, cava_mm, cava_mm * 1.1))
        self.small_vessels = _draw_small_vessels(rng)
        self.bowel_has_gas = [bool(rng.random() < 0.3) for _ in self.bowel]
        self.domes_mm = (float(rng.uniform(62.0, 78.0)), float(rng.uniform(50.0, 66.0)))  # diaphragm, right and left


def _draw_ellipsoid(
    centre_mm: Triple, semi_axes_mm: Triple, rng: np.random.Generator, turn_degrees: float = 0.0
) -> Ellipsoid:
    """An ellipsoid near the given one: centre within some 3 mm, axes within some 6 percent."""
    a, b, c = (float(axis * np.clip(rng.normal(1.0, 0.06), 0.85, 1.15)) for axis in semi_axes_mm)
    return Ellipsoid(jittered(centre_mm, 3.0, rng), (a, b, c), turn_degrees + float(rng.normal(0.0, 4.0)))


def _draw_small_vessels(rng: np.random.Generator) -> list[Tube]:
    """Vessels in the mesenteric fat."""
    tubes = [
        Tube(((2, -2, -120), (4, -4, -20), (10, 12, 0)), (3.5, 3.5, 3.5)),
        Tube(((-9, -4, -120), (-8, -8, -26)), (5.0, 5.5)),
    ]
    for _ in range(14):
        start = (float(rng.uniform(-50, 80)), float(rng.uniform(-65, 20)), float(rng.uniform(-110, -20)))
        stop = jittered(start, 22.0, rng)
        tubes.append(Tube((start, stop), (float(rng.uniform(1.2, 2.2)), 1.0)))
    return tubes


def _draw_bowel(rng: np.random.Generator) -> list[Ellipsoid]:
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
    return loops


_LIVER_VESSELS: tuple[tuple[tuple[Triple, ...], float, float], ...] = (
    # portal branches
    (((-9, -6, -28), (-26, -8, -12), (-36, -8, -4)), 7.5, 6.5),
    (((-36, -8, -4), (-58, 0, 2), (-76, 14, 8)), 5.5, 3.0),
    (((-36, -8, -4), (-24, -26, 12), (-2, -42, 20), (20, -46, 26)), 5.0, 2.2),
    (((-58, 0, 2), (-72, -22, 14), (-84, -40, 24)), 3.6, 1.8),
    (((-58, 0, 2), (-74, -18, -18), (-86, -32, -40)), 3.4, 1.6),
    (((-76, 14, 8), (-92, 24, 22), (-100, 30, 36)), 2.8, 1.4),
    (((-76, 14, 8), (-90, 30, -16), (-98, 36, -38)), 2.8, 1.4),
    # hepatic veins
    (((-20, 4, 46), (-50, 10, 34), (-84, 16, 4), (-92, 14, -24)), 5.5, 1.8),
    (((-20, 2, 46), (-40, -22, 30), (-56, -44, 4), (-62, -52, -16)), 5.2, 1.8),
    (((-18, -2, 46), (-8, -26, 38), (14, -44, 34)), 4.6, 1.6),
    (((-50, 10, 34), (-66, -8, 42), (-86, -14, 44)), 2.8, 1.4),
)
"""Polylines in mm, and the radius at their first and last corner in mm."""


def _draw_liver_vessels(rng: np.random.Generator) -> list[Tube]:
    """The main veins, each with two random side branches."""
    tubes: list[Tube] = []
    for nodes, first_mm, last_mm in _LIVER_VESSELS:
        moved = tuple(jittered(node, 2.5 if i else 0.0, rng) for i, node in enumerate(nodes))
        radii = tuple(float(r) for r in np.linspace(first_mm, last_mm, len(nodes)))
        tubes.append(Tube(moved, radii))
        for _ in range(2):
            index = int(rng.integers(1, len(moved)))
            direction = rng.normal(size=3)
            tip = np.asarray(moved[index]) + direction / np.linalg.norm(direction) * rng.uniform(14.0, 28.0)
            tubes.append(Tube((moved[index], jittered(tip, 0.0, rng)), (radii[index] * 0.65, 0.8)))
    return tubes
