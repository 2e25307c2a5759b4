"""Painting of a patient's anatomy on one transverse plane."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.geometry import Ellipsoid, Plane, Points, smooth_maximum, smooth_minimum

RIB_SPACING_MM = 24.0
VERTEBRA_HEIGHT_MM = 33.0


class Canvas:
    """Values of one plane, painted from the back to the front.

    Attributes:
        hu: Values painted so far. Shape (H, W).
    """

    def __init__(self, shape: tuple[int, int], background_hu: float, edge_mm: float) -> None:
        """Start an empty plane.

        Args:
            shape: Shape (H, W).
            background_hu: Value before anything is painted.
            edge_mm: Width over which an edge is blurred by the voxel's extent.
        """
        self.hu: Plane = np.full(shape, background_hu, dtype=np.float32)
        self._edge_mm = np.float32(edge_mm)

    def paint_(self, distance_mm: Plane, value_hu: float | Plane) -> Plane:
        """Paint a body and return the share of each voxel that it covers. Shape (H, W)."""
        share = np.clip(np.float32(0.5) - distance_mm / self._edge_mm, 0.0, 1.0)
        if share.any():
            self.hu += share * (value_hu - self.hu)
        return share


class OrganPlanes(NamedTuple):
    """Signed distances on one plane in mm, negative inside. Each of shape (H, W).

    Attributes:
        pancreas: To what can be seen of the pancreas.
        free: To where a tumour that grows out of a kidney may lie: the cavity without liver and great vessels.
    """

    liver: Plane
    pancreas: Plane
    kidney: Plane
    free: Plane

    def of(self, organ: str) -> Plane:
        """Distance to an organ by name."""
        return getattr(self, organ)


def paint_anatomy(anatomy: Anatomy, points: Points, edge_mm: float) -> tuple[Plane, OrganPlanes]:
    """Paint everything except tumours on a plane.

    Args:
        points: Positions of the voxels in the patient's frame, in mm.
        edge_mm: In-plane extent of a voxel in mm.

    Returns:
        Values in HU, shape (H, W), and the distances to the organs that carry tumours.
    """
    standard = Points(points.x_mm / anatomy.scale, points.y_mm / anatomy.scale, points.z_mm / anatomy.scale)
    inner = _warped(anatomy, standard)
    canvas = Canvas(points.x_mm.shape, anatomy.tissue.gas, edge_mm / anatomy.scale)
    cavity_mm = _paint_wall_(canvas, anatomy, standard)
    diaphragm_mm = _paint_lungs_(canvas, anatomy, inner, cavity_mm)
    back_mm = _paint_back_(canvas, anatomy, standard, cavity_mm)
    _paint_spine_(canvas, anatomy, standard)
    cavity_mm = np.maximum(cavity_mm, 2.0 - back_mm)
    _paint_bowel_(canvas, anatomy, inner, cavity_mm)
    pancreas_mm, vessels_mm = _paint_upper_organs_(canvas, anatomy, inner, cavity_mm, diaphragm_mm)
    kidneys_mm = _paint_kidneys_(canvas, anatomy, inner)
    liver_mm = _paint_liver_(canvas, anatomy, inner, cavity_mm, diaphragm_mm, kidneys_mm)
    pancreas_mm = np.maximum(pancreas_mm, np.maximum(-kidneys_mm, -liver_mm))
    free_mm = np.maximum(np.maximum(cavity_mm, -liver_mm), -vessels_mm)
    scale = np.float32(anatomy.scale)
    return canvas.hu, OrganPlanes(*(distance * scale for distance in (liver_mm, pancreas_mm, kidneys_mm, free_mm)))


def organ_distance(anatomy: Anatomy, points: Points, organ: str) -> Plane:
    """Signed distance to an organ in mm, negative inside. Shape (H, W)."""
    return paint_anatomy(anatomy, points, edge_mm=2.0)[1].of(organ)


def _warped(anatomy: Anatomy, points: Points) -> Points:
    size = np.float32(anatomy.warp_mm)
    shift_x, shift_y, shift_z = (size * field(points) for field in anatomy.warp)
    return Points(points.x_mm + shift_x, points.y_mm + shift_y, points.z_mm + shift_z)


def _paint_wall_(canvas: Canvas, anatomy: Anatomy, points: Points) -> Plane:
    """Skin, fat, muscle wall and ribs; returns the signed distance to the abdominal cavity."""
    body, tissue = anatomy.body, anatomy.tissue
    half_width_mm, half_depth_mm = body.semi_axes_mm
    radius_mm = np.sqrt(points.x_mm**2 + points.y_mm**2) + np.float32(1e-3)
    power = np.float32(body.squareness)
    norm = np.abs(points.x_mm / half_width_mm) ** power + np.abs(points.y_mm / half_depth_mm) ** power
    norm = norm ** (1.0 / power)
    waviness = body.outline(points)
    depth_mm = (1.0 - norm) * radius_mm / np.maximum(norm, 0.05) + 1.5 * waviness
    depth_mm = np.where(norm < 0.2, np.float32(60.0), depth_mm)
    side = np.abs(points.x_mm) / radius_mm
    fat_mm = body.fat_mm * (0.75 + 0.45 * side) + 1.2 * waviness
    wall_mm = body.wall_mm * (0.75 + 0.35 * side)
    texture = anatomy.texture(points)

    canvas.paint_(-depth_mm, 20.0)
    canvas.paint_(1.8 - depth_mm, tissue.fat + 4.0 * texture)
    layer = (depth_mm - fat_mm) / wall_mm
    streak = 70.0 * np.exp(-(((layer - 0.45) / 0.1) ** 2)) * np.clip(0.4 + 0.5 * texture, 0.0, 1.0)
    canvas.paint_(fat_mm - depth_mm, tissue.muscle - streak)
    cavity_mm = fat_mm + wall_mm - depth_mm
    canvas.paint_(cavity_mm, tissue.fat + 5.0 * texture)
    _paint_ribs_(canvas, anatomy, points, depth_mm - (fat_mm + 0.72 * wall_mm))
    return cavity_mm


def _paint_ribs_(canvas: Canvas, anatomy: Anatomy, points: Points, depth_mm: Plane) -> None:
    """Ribs fall from the spine to the front, so that a plane cuts several of them at a slant."""
    angle = np.arctan2(np.abs(points.x_mm), points.y_mm)  # 0 at the spine, pi at the front
    drop_mm = 58.0 * (1.0 - np.cos(angle))
    height_mm = points.z_mm + drop_mm - np.float32(anatomy.body.rib_phase_mm)
    nearest = np.round(height_mm / RIB_SPACING_MM) * RIB_SPACING_MM
    offset_mm = (height_mm - nearest) * 0.8
    distance_mm = np.sqrt((depth_mm * 1.5) ** 2 + offset_mm**2) - 5.6
    at_spine_mm = nearest + np.float32(anatomy.body.rib_phase_mm)
    ends = np.maximum(angle - np.clip(1.2 + 0.02 * (at_spine_mm - anatomy.body.lowest_rib_mm), 1.2, 2.2), 0.35 - angle)
    distance_mm = np.maximum(distance_mm, 60.0 * ends)
    distance_mm = np.where(at_spine_mm < anatomy.body.lowest_rib_mm, np.float32(1e3), distance_mm)
    canvas.paint_(distance_mm, anatomy.tissue.cortex)
    canvas.paint_(distance_mm + 2.0, anatomy.tissue.marrow)


def _paint_back_(canvas: Canvas, anatomy: Anatomy, points: Points, cavity_mm: Plane) -> Plane:
    """Muscles beside the spine with streaks of fat; returns the distance to the nearer one."""
    nearest_mm = np.full(points.x_mm.shape, np.float32(1e3))
    wall_mm = cavity_mm - anatomy.body.wall_mm
    for sign in (-1.0, 1.0):
        back_mm = Ellipsoid((sign * 30.0, 71.0, 0.0), (29.0, 18.0, 1e4), sign * 10.0).distance(points)
        back_mm = np.maximum(back_mm, wall_mm)
        canvas.paint_(back_mm - 2.0, anatomy.tissue.fat)
        streaks_hu = np.clip(35.0 * (anatomy.texture(points) - 1.1), 0.0, 90.0)
        canvas.paint_(back_mm, anatomy.tissue.muscle - streaks_hu)
        psoas_mm = Ellipsoid((sign * 30.0, 40.0, -120.0), (14.0, 16.0, 105.0)).distance(points)
        canvas.paint_(psoas_mm, anatomy.tissue.muscle)
        nearest_mm = np.minimum(nearest_mm, back_mm)
    return nearest_mm


def _paint_spine_(canvas: Canvas, anatomy: Anatomy, points: Points) -> None:
    tissue = anatomy.tissue
    period = np.float32(VERTEBRA_HEIGHT_MM)
    height_mm = (points.z_mm - anatomy.body.disc_phase_mm) % period  # 0 at the middle of a disc
    from_disc_mm = np.minimum(height_mm, period - height_mm)
    vertebra_mm = Ellipsoid((0.0, 42.0, 0.0), (21.0, 16.0, 1e4)).distance(points)
    canvas.paint_(vertebra_mm, tissue.cortex - 80.0)
    canvas.paint_(vertebra_mm + 1.8, tissue.marrow + 15.0 * anatomy.texture(points))
    canvas.paint_(np.maximum(vertebra_mm + 1.0, from_disc_mm - 3.5), 90.0)
    ring_mm = Ellipsoid((0.0, 63.0, 0.0), (13.5, 11.5, 1e4)).distance(points)
    canvas.paint_(np.maximum(ring_mm, 6.0 - from_disc_mm), tissue.cortex - 120.0)
    spinous = np.maximum(np.abs(points.x_mm) - 3.0, np.abs(points.y_mm - 78.0) - 9.0)
    canvas.paint_(np.maximum(spinous, 8.0 - from_disc_mm), tissue.cortex - 150.0)
    tilt_mm = np.abs(points.y_mm - 62.0 - 0.12 * np.abs(points.x_mm)) - 3.2
    across = np.maximum(tilt_mm, np.abs(np.abs(points.x_mm) - 22.0) - 14.0)
    canvas.paint_(np.maximum(across, 11.5 - from_disc_mm), tissue.cortex - 150.0)
    canvas.paint_(Ellipsoid((0.0, 63.5, 0.0), (9.0, 7.5, 1e4)).distance(points), -20.0)
    canvas.paint_(Ellipsoid((0.0, 63.5, 0.0), (6.5, 5.5, 1e4)).distance(points), 35.0)


def _paint_lungs_(canvas: Canvas, anatomy: Anatomy, points: Points, cavity_mm: Plane) -> Plane:
    """Lungs, heart and diaphragm; returns the distance below which the abdomen lies (negative below)."""
    right_mm, left_mm = anatomy.domes_mm
    x, y = points.x_mm, points.y_mm
    right = right_mm - 42.0 * ((x + 55.0) / 75.0) ** 2 - 56.0 * ((y + 30.0) / 80.0) ** 2
    left = left_mm - 50.0 * ((x - 62.0) / 65.0) ** 2 - 54.0 * ((y + 26.0) / 80.0) ** 2
    above_mm = (points.z_mm - smooth_maximum(right, left, 12.0)) * 0.75
    canvas.paint_(np.maximum(-above_mm - 2.5, cavity_mm + 0.5), anatomy.tissue.muscle - 5.0)
    texture = anatomy.texture(points)
    lung_hu = anatomy.tissue.lung + 25.0 * texture + 900.0 * np.clip(texture - 1.75, 0.0, 0.8)
    canvas.paint_(np.maximum(-above_mm, cavity_mm + 1.5), lung_hu)
    heart_mm = np.maximum(anatomy.heart.distance(points), -above_mm - 1.0)
    canvas.paint_(heart_mm - 4.0, anatomy.tissue.fat + 10.0)
    canvas.paint_(heart_mm, anatomy.tissue.vessel - 25.0)
    return above_mm


def _paint_bowel_(canvas: Canvas, anatomy: Anatomy, points: Points, cavity_mm: Plane) -> None:
    for tube in anatomy.small_vessels:
        canvas.paint_(np.maximum(tube.distance(points), cavity_mm), anatomy.tissue.vessel - 20.0)
    height_mm = float(points.z_mm.mean())
    for loop, has_gas in zip(anatomy.bowel, anatomy.bowel_has_gas, strict=True):
        if abs(height_mm - loop.centre_mm[2]) > loop.semi_axes_mm[2] + 15.0:
            continue
        loop_mm = np.maximum(loop.distance(points), cavity_mm + 3.0)
        canvas.paint_(loop_mm, 75.0)
        canvas.paint_(loop_mm + 2.5, anatomy.tissue.fluid + 12.0)
        if has_gas:
            canvas.paint_(np.maximum(loop_mm + 3.0, points.y_mm - loop.centre_mm[1]), anatomy.tissue.gas)


def _paint_upper_organs_(
    canvas: Canvas, anatomy: Anatomy, points: Points, cavity_mm: Plane, above_mm: Plane
) -> tuple[Plane, Plane]:
    """Great vessels, spleen, stomach and pancreas; returns the distances to the seen pancreas and to the vessels."""
    tissue = anatomy.tissue
    limit_mm = np.maximum(cavity_mm + 2.0, above_mm + 1.0)
    mottle = anatomy.mottle(points)
    stomach_mm = np.maximum(anatomy.stomach.distance(points), limit_mm + 1.0)
    spleen_mm = smooth_maximum(np.maximum(anatomy.spleen.distance(points), limit_mm), 5.0 - stomach_mm, 8.0)
    canvas.paint_(spleen_mm, tissue.spleen + 2.0 * mottle)
    lobules = 1.5 * anatomy.texture(points)
    pancreas_mm = anatomy.pancreas.distance(points) + lobules
    canvas.paint_(pancreas_mm, tissue.pancreas + 8.0 * lobules)
    canvas.paint_(stomach_mm, tissue.muscle + 20.0)
    content_hu = tissue.fluid + 10.0 + 6.0 * anatomy.texture(points)
    canvas.paint_(stomach_mm + 3.5, content_hu)
    gas_mm = np.maximum(stomach_mm + 3.8, points.y_mm - anatomy.stomach_level_mm)
    canvas.paint_(gas_mm, tissue.gas)
    aorta_mm, cava_mm = (vessel.distance(points) for vessel in anatomy.great_vessels)
    canvas.paint_(aorta_mm, tissue.aorta)
    canvas.paint_(cava_mm, tissue.vessel - 15.0)
    vessels_mm = np.minimum(aorta_mm, cava_mm)
    return np.maximum(pancreas_mm, np.maximum(-stomach_mm, -vessels_mm)), vessels_mm


def _paint_kidneys_(canvas: Canvas, anatomy: Anatomy, points: Points) -> Plane:
    """Both kidneys with medulla and sinus; returns the distance to the nearer one."""
    tissue = anatomy.tissue
    nearest = np.full(points.x_mm.shape, np.float32(1e3))
    for kidney in anatomy.kidneys:
        x, y, z = kidney.centre_mm
        a, b, c = kidney.semi_axes_mm
        kidney_mm = kidney.distance(points)
        medial = -np.sign(x)
        sinus = Ellipsoid((x + medial * 11.0, y - 5.0, z), (0.6 * a, 0.42 * b, 0.5 * c), kidney.turn_degrees)
        lobes = 2.5 * anatomy.texture(points)
        canvas.paint_(kidney_mm, tissue.kidney)
        canvas.paint_(kidney_mm + 7.0 + lobes, tissue.kidney - 28.0)
        sinus_mm = sinus.distance(points) + lobes
        canvas.paint_(sinus_mm, tissue.fat + 25.0)
        pelvis = Ellipsoid((x + medial * 9.0, y - 4.0, z), (5.0, 4.0, 14.0)).distance(points)
        canvas.paint_(pelvis, tissue.fluid + 20.0)
        nearest = np.minimum(nearest, kidney_mm)
    return nearest


def _paint_liver_(
    canvas: Canvas, anatomy: Anatomy, points: Points, cavity_mm: Plane, above_mm: Plane, kidneys_mm: Plane
) -> Plane:
    """Liver with veins, gallbladder and fissure; returns the signed distance to the liver."""
    tissue = anatomy.tissue
    right, left = (lobe.distance(points) for lobe in anatomy.liver_lobes)
    liver_mm = smooth_minimum(right, left, 14.0)
    liver_mm = smooth_maximum(liver_mm, -anatomy.liver_hollow.distance(points), 14.0)
    liver_mm = smooth_maximum(liver_mm, 5.0 - kidneys_mm, 6.0)
    liver_mm = smooth_maximum(liver_mm, cavity_mm + 2.0, 3.0)
    liver_mm = np.maximum(liver_mm, above_mm + 1.0)
    fissure_mm = anatomy.fissure.distance(points)
    gallbladder_mm = anatomy.gallbladder.distance(points)
    liver_mm = np.maximum(liver_mm, np.maximum(-fissure_mm, -gallbladder_mm))
    canvas.paint_(liver_mm, tissue.liver + 2.0 * anatomy.mottle(points))
    for tube in anatomy.liver_vessels:
        canvas.paint_(np.maximum(tube.distance(points), liver_mm), tissue.vessel)
    canvas.paint_(np.maximum(fissure_mm, cavity_mm), tissue.fat + 15.0)
    canvas.paint_(gallbladder_mm, tissue.muscle)
    canvas.paint_(gallbladder_mm + 1.5, tissue.fluid)
    return liver_mm
