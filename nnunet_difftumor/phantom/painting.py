"""Painting of a patient's anatomy on one transverse plane."""

from __future__ import annotations

import numpy as np

from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.geometry import FAR_MM, Ellipsoid, Plane, Points, smooth_maximum, smooth_minimum

RIB_SPACING_MM = 24.0
VERTEBRA_HEIGHT_MM = 33.0
_ENDLESS_MM = 1e4


def paint_anatomy(anatomy: Anatomy, points: Points, edge_mm: float) -> tuple[Plane, dict[str, Plane]]:
    """Paint everything except tumours on a plane.

    Args:
        points: In the patient's frame.
        edge_mm: In-plane extent of a voxel in mm.

    Returns:
        Values in HU, shape (H, W), and signed distances in mm, negative inside, of the same shape: to the liver, to
        the kidney, to what can be seen of the pancreas, and as "free" to where a tumour that grows out of a kidney may
        lie: the cavity without liver and great vessels.
    """
    painter = _Painter(anatomy, points / anatomy.scale, edge_mm / anatomy.scale)
    distances = painter.paint()
    return painter.hu, {name: distance * np.float32(anatomy.scale) for name, distance in distances.items()}


class _Painter:
    """Paints one plane of the standard anatomy, from the back to the front."""

    def __init__(self, anatomy: Anatomy, points: Points, edge_mm: float) -> None:
        self.anatomy, self.tissue = anatomy, anatomy.tissue
        self.hu: Plane = np.full(points.shape[1:], anatomy.tissue.gas, dtype=np.float32)
        self._edge_mm = np.float32(edge_mm)
        self.outer = points
        self.inner = points + np.float32(anatomy.warp_mm) * np.stack([field(points) for field in anatomy.warp])
        self.outer_texture, self.texture = anatomy.texture(self.outer), anatomy.texture(self.inner)
        self.mottle = anatomy.mottle(self.inner)

    def _fill(self, distance_mm: Plane, value_hu: float | Plane) -> None:
        """Paint a body over what is there; its edge is blurred by the voxel's extent."""
        share = np.clip(np.float32(0.5) - distance_mm / self._edge_mm, 0.0, 1.0)
        if share.any():
            self.hu += share * (value_hu - self.hu)

    def paint(self) -> dict[str, Plane]:
        """Paint all, and return the distances that tumours need."""
        cavity_mm = self._wall()
        above_mm = self._lungs(cavity_mm)
        back_mm = self._back(cavity_mm)
        self._spine()
        cavity_mm = np.maximum(cavity_mm, 2.0 - back_mm)
        self._bowel(cavity_mm)
        pancreas_mm, vessels_mm = self._upper_organs(cavity_mm, above_mm)
        kidney_mm = self._kidneys()
        liver_mm = self._liver(cavity_mm, above_mm, kidney_mm)
        return {
            "liver": liver_mm,
            "pancreas": np.maximum(pancreas_mm, np.maximum(-kidney_mm, -liver_mm)),
            "kidney": kidney_mm,
            "free": np.maximum(np.maximum(cavity_mm, -liver_mm), -vessels_mm),
        }

    def _wall(self) -> Plane:
        """Skin, fat, muscle wall and ribs; returns the distance to the abdominal cavity."""
        anatomy, tissue, texture = self.anatomy, self.tissue, self.outer_texture
        x, y, _ = self.outer
        radius_mm = np.sqrt(x**2 + y**2) + np.float32(1e-3)
        power = np.float32(anatomy.squareness)
        norm = np.abs(x / anatomy.half_width_mm) ** power + np.abs(y / anatomy.half_depth_mm) ** power
        norm = norm ** (1.0 / power)
        waviness = anatomy.outline(self.outer)
        depth_mm = (1.0 - norm) * radius_mm / np.maximum(norm, 0.05) + 1.5 * waviness
        depth_mm = np.where(norm < 0.2, np.float32(60.0), depth_mm)
        side = np.abs(x) / radius_mm
        fat_mm = anatomy.fat_mm * (0.75 + 0.45 * side) + 1.2 * waviness
        wall_mm = anatomy.wall_mm * (0.75 + 0.35 * side)

        self._fill(-depth_mm, 20.0)
        self._fill(1.8 - depth_mm, tissue.fat + 4.0 * texture)
        layer = (depth_mm - fat_mm) / wall_mm
        streak = 70.0 * np.exp(-(((layer - 0.45) / 0.1) ** 2)) * np.clip(0.4 + 0.5 * texture, 0.0, 1.0)
        self._fill(fat_mm - depth_mm, tissue.muscle - streak)
        cavity_mm = fat_mm + wall_mm - depth_mm
        self._fill(cavity_mm, tissue.fat + 5.0 * texture)
        self._ribs(depth_mm - (fat_mm + 0.72 * wall_mm))
        return cavity_mm

    def _ribs(self, depth_mm: Plane) -> None:
        """Ribs fall from the spine to the front, so that a plane cuts several of them at a slant."""
        x, y, z = self.outer
        angle = np.arctan2(np.abs(x), y)  # 0 at the spine, pi at the front
        drop_mm = 58.0 * (1.0 - np.cos(angle))
        height_mm = z + drop_mm - np.float32(self.anatomy.rib_phase_mm)
        nearest = np.round(height_mm / RIB_SPACING_MM) * RIB_SPACING_MM
        offset_mm = (height_mm - nearest) * 0.8
        distance_mm = np.sqrt((depth_mm * 1.5) ** 2 + offset_mm**2) - 5.6
        at_spine_mm, lowest_mm = nearest + np.float32(self.anatomy.rib_phase_mm), self.anatomy.lowest_rib_mm
        ends = np.maximum(angle - np.clip(1.2 + 0.02 * (at_spine_mm - lowest_mm), 1.2, 2.2), 0.35 - angle)
        distance_mm = np.maximum(distance_mm, 60.0 * ends)
        distance_mm = np.where(at_spine_mm < lowest_mm, FAR_MM, distance_mm)
        self._fill(distance_mm, self.tissue.cortex)
        self._fill(distance_mm + 2.0, self.tissue.marrow)

    def _back(self, cavity_mm: Plane) -> Plane:
        """Muscles beside the spine with streaks of fat; returns the distance to the nearer one."""
        nearest_mm = np.full(self.hu.shape, FAR_MM)
        streaks_hu = np.clip(35.0 * (self.outer_texture - 1.1), 0.0, 90.0)
        for sign in (-1.0, 1.0):
            back_mm = Ellipsoid((sign * 30.0, 71.0, 0.0), (29.0, 18.0, _ENDLESS_MM), sign * 10.0).distance(self.outer)
            back_mm = np.maximum(back_mm, cavity_mm - self.anatomy.wall_mm)
            self._fill(back_mm - 2.0, self.tissue.fat)
            self._fill(back_mm, self.tissue.muscle - streaks_hu)
            psoas = Ellipsoid((sign * 30.0, 40.0, -120.0), (14.0, 16.0, 105.0))
            self._fill(psoas.distance(self.outer), self.tissue.muscle)
            nearest_mm = np.minimum(nearest_mm, back_mm)
        return nearest_mm

    def _spine(self) -> None:
        """Vertebrae with discs, processes and the canal."""
        x, y, z = self.outer
        cortex_hu, period = self.tissue.cortex, np.float32(VERTEBRA_HEIGHT_MM)
        height_mm = (z - self.anatomy.disc_phase_mm) % period  # 0 at the middle of a disc
        from_disc_mm = np.minimum(height_mm, period - height_mm)
        vertebra_mm = self._column(42.0, 21.0, 16.0)
        self._fill(vertebra_mm, cortex_hu - 80.0)
        self._fill(vertebra_mm + 1.8, self.tissue.marrow + 15.0 * self.outer_texture)
        self._fill(np.maximum(vertebra_mm + 1.0, from_disc_mm - 3.5), 90.0)
        self._fill(np.maximum(self._column(63.0, 13.5, 11.5), 6.0 - from_disc_mm), cortex_hu - 120.0)
        spinous = np.maximum(np.abs(x) - 3.0, np.abs(y - 78.0) - 9.0)
        self._fill(np.maximum(spinous, 8.0 - from_disc_mm), cortex_hu - 150.0)
        tilt_mm = np.abs(y - 62.0 - 0.12 * np.abs(x)) - 3.2
        across = np.maximum(tilt_mm, np.abs(np.abs(x) - 22.0) - 14.0)
        self._fill(np.maximum(across, 11.5 - from_disc_mm), cortex_hu - 150.0)
        self._fill(self._column(63.5, 9.0, 7.5), -20.0)
        self._fill(self._column(63.5, 6.5, 5.5), 35.0)

    def _column(self, y_mm: float, half_width_mm: float, half_depth_mm: float) -> Plane:
        """Distance to an upright column in the middle."""
        return Ellipsoid((0.0, y_mm, 0.0), (half_width_mm, half_depth_mm, _ENDLESS_MM)).distance(self.outer)

    def _lungs(self, cavity_mm: Plane) -> Plane:
        """Lungs, heart and diaphragm; returns the distance below which the abdomen lies (negative below)."""
        (right_mm, left_mm), (x, y, z) = self.anatomy.domes_mm, self.inner
        right = right_mm - 42.0 * ((x + 55.0) / 75.0) ** 2 - 56.0 * ((y + 30.0) / 80.0) ** 2
        left = left_mm - 50.0 * ((x - 62.0) / 65.0) ** 2 - 54.0 * ((y + 26.0) / 80.0) ** 2
        above_mm = (z - smooth_maximum(right, left, 12.0)) * 0.75
        self._fill(np.maximum(-above_mm - 2.5, cavity_mm + 0.5), self.tissue.muscle - 5.0)
        lung_hu = self.tissue.lung + 25.0 * self.texture + 900.0 * np.clip(self.texture - 1.75, 0.0, 0.8)
        self._fill(np.maximum(-above_mm, cavity_mm + 1.5), lung_hu)
        heart_mm = np.maximum(self.anatomy.heart.distance(self.inner), -above_mm - 1.0)
        self._fill(heart_mm - 4.0, self.tissue.fat + 10.0)
        self._fill(heart_mm, self.tissue.vessel - 25.0)
        return above_mm

    def _bowel(self, cavity_mm: Plane) -> None:
        """Loops, and vessels of the fat between them."""
        for tube in self.anatomy.small_vessels:
            self._fill(np.maximum(tube.distance(self.inner), cavity_mm), self.tissue.vessel - 20.0)
        height_mm = float(self.inner[2].mean())
        for loop, has_gas in zip(self.anatomy.bowel, self.anatomy.bowel_has_gas, strict=True):
            if abs(height_mm - loop.centre_mm[2]) > loop.semi_axes_mm[2] + 15.0:
                continue
            loop_mm = np.maximum(loop.distance(self.inner), cavity_mm + 3.0)
            self._fill(loop_mm, 75.0)
            self._fill(loop_mm + 2.5, self.tissue.fluid + 12.0)
            if has_gas:
                self._fill(np.maximum(loop_mm + 3.0, self.inner[1] - loop.centre_mm[1]), self.tissue.gas)

    def _upper_organs(self, cavity_mm: Plane, above_mm: Plane) -> tuple[Plane, Plane]:
        """Spleen, pancreas, stomach and great vessels; returns the distances to the seen pancreas and the vessels."""
        anatomy, tissue, inner = self.anatomy, self.tissue, self.inner
        limit_mm = np.maximum(cavity_mm + 2.0, above_mm + 1.0)
        stomach_mm = np.maximum(anatomy.stomach.distance(inner), limit_mm + 1.0)
        spleen_mm = smooth_maximum(np.maximum(anatomy.spleen.distance(inner), limit_mm), 5.0 - stomach_mm, 8.0)
        self._fill(spleen_mm, tissue.spleen + 2.0 * self.mottle)
        lobules = 1.5 * self.texture
        pancreas_mm = anatomy.pancreas.distance(inner) + lobules
        self._fill(pancreas_mm, tissue.pancreas + 8.0 * lobules)
        self._fill(stomach_mm, tissue.muscle + 20.0)
        self._fill(stomach_mm + 3.5, tissue.fluid + 10.0 + 6.0 * self.texture)
        self._fill(np.maximum(stomach_mm + 3.8, inner[1] - anatomy.stomach_level_mm), tissue.gas)
        aorta_mm, cava_mm = anatomy.aorta.distance(inner), anatomy.cava.distance(inner)
        self._fill(aorta_mm, tissue.aorta)
        self._fill(cava_mm, tissue.vessel - 15.0)
        vessels_mm = np.minimum(aorta_mm, cava_mm)
        return np.maximum(pancreas_mm, np.maximum(-stomach_mm, -vessels_mm)), vessels_mm

    def _kidneys(self) -> Plane:
        """Both kidneys with medulla and sinus; returns the distance to the nearer one."""
        nearest = np.full(self.hu.shape, FAR_MM)
        lobes = 2.5 * self.texture
        for kidney in self.anatomy.kidneys:
            x, y, z = kidney.centre_mm
            a, b, c = kidney.semi_axes_mm
            medial = -np.sign(x)
            kidney_mm = kidney.distance(self.inner)
            self._fill(kidney_mm, self.tissue.kidney)
            self._fill(kidney_mm + 7.0 + lobes, self.tissue.kidney - 28.0)
            sinus = Ellipsoid((x + medial * 11.0, y - 5.0, z), (0.6 * a, 0.42 * b, 0.5 * c), kidney.turn_degrees)
            self._fill(sinus.distance(self.inner) + lobes, self.tissue.fat + 25.0)
            pelvis = Ellipsoid((x + medial * 9.0, y - 4.0, z), (5.0, 4.0, 14.0))
            self._fill(pelvis.distance(self.inner), self.tissue.fluid + 20.0)
            nearest = np.minimum(nearest, kidney_mm)
        return nearest

    def _liver(self, cavity_mm: Plane, above_mm: Plane, kidneys_mm: Plane) -> Plane:
        """Liver with veins, gallbladder and fissure; returns the distance to the liver."""
        anatomy, tissue, inner = self.anatomy, self.tissue, self.inner
        right, left = (lobe.distance(inner) for lobe in anatomy.liver_lobes)
        liver_mm = smooth_minimum(right, left, 14.0)
        liver_mm = smooth_maximum(liver_mm, -anatomy.liver_hollow.distance(inner), 14.0)
        liver_mm = smooth_maximum(liver_mm, 5.0 - kidneys_mm, 6.0)
        liver_mm = smooth_maximum(liver_mm, cavity_mm + 2.0, 3.0)
        liver_mm = np.maximum(liver_mm, above_mm + 1.0)
        fissure_mm, gallbladder_mm = anatomy.fissure.distance(inner), anatomy.gallbladder.distance(inner)
        liver_mm = np.maximum(liver_mm, np.maximum(-fissure_mm, -gallbladder_mm))
        self._fill(liver_mm, tissue.liver + 2.0 * self.mottle)
        for tube in anatomy.liver_vessels:
            self._fill(np.maximum(tube.distance(inner), liver_mm), tissue.vessel)
        self._fill(np.maximum(fissure_mm, cavity_mm), tissue.fat + 15.0)
        self._fill(gallbladder_mm, tissue.muscle)
        self._fill(gallbladder_mm + 1.5, tissue.fluid)
        return liver_mm
