"""What a phantom patient consists of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nnunet_difftumor.phantom.geometry import Ellipsoid, SmoothField, Tube
from nnunet_difftumor.phantom.organs import ARTERIAL, UNENHANCED


@dataclass(frozen=True, kw_only=True)
class TissueValues:
    """Mean values of the tissues in HU, in the portal venous phase.

    Attributes:
        vessel: Blood in veins.
        kidney: Renal cortex.
        marrow: Cancellous bone.
        cortex: Cortical bone.
        fluid: Bile, water and stomach content.
    """

    fat: float
    muscle: float
    liver: float
    vessel: float
    aorta: float
    kidney: float
    spleen: float
    pancreas: float
    marrow: float
    cortex: float
    fluid: float
    gas: float = -1000.0
    lung: float = -840.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> TissueValues:
        """Draw the values of one patient and one contrast injection."""
        liver = float(np.clip(rng.normal(110.0, 8.0), 92.0, 128.0))
        vessel = liver + float(rng.uniform(45.0, 70.0))
        return cls(
            fat=float(rng.normal(-102.0, 4.0)),
            muscle=float(rng.normal(56.0, 4.0)),
            liver=liver,
            vessel=vessel,
            aorta=vessel + float(rng.uniform(-10.0, 15.0)),
            kidney=float(rng.normal(165.0, 12.0)),
            spleen=float(rng.normal(122.0, 7.0)),
            pancreas=float(rng.normal(98.0, 7.0)),
            marrow=float(rng.uniform(170.0, 240.0)),
            cortex=float(rng.uniform(420.0, 600.0)),
            fluid=float(rng.normal(12.0, 5.0)),
        )

    def in_phase(self, phase: str) -> TissueValues:
        """The same patient in another contrast phase; differences between patients are kept.

        Args:
            phase: One of the contrast phases of `phantom.organs`.

        Returns:
            Values in that phase: the enhanced tissues change.
        """
        if phase == ARTERIAL:
            return replace(
                self,
                liver=self.liver - 36.0,
                vessel=self.liver + 15.0,
                aorta=self.aorta + 140.0,
                kidney=self.kidney + 25.0,
                spleen=self.spleen + 18.0,
                pancreas=self.pancreas + 14.0,
                muscle=self.muscle - 4.0,
            )
        if phase == UNENHANCED:
            return replace(
                self,
                liver=self.liver - 54.0,
                vessel=40.0 + 0.1 * (self.vessel - self.liver),
                aorta=42.0,
                kidney=0.3 * (self.kidney - 165.0) + 32.0,
                spleen=self.spleen - 74.0,
                pancreas=self.pancreas - 58.0,
                muscle=self.muscle - 6.0,
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Body:
    """Outer layers of the trunk.

    Attributes:
        semi_axes_mm: Half width and half depth of the trunk.
        squareness: Exponent of the superellipse; 2 is an ellipse.
        fat_mm: Mean thickness of the subcutaneous fat.
        wall_mm: Mean thickness of the muscle wall.
        rib_phase_mm: Height of one rib at the spine.
        lowest_rib_mm: Height at the spine below which there are no ribs.
        disc_phase_mm: Height of one intervertebral disc.
        outline: Deformation of the outline and of the fat layer.
    """

    semi_axes_mm: tuple[float, float]
    squareness: float
    fat_mm: float
    wall_mm: float
    rib_phase_mm: float
    lowest_rib_mm: float
    disc_phase_mm: float
    outline: SmoothField


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One patient, in mm, with the origin at the middle of the upper abdomen.

    Attributes:
        scale: Size of the patient relative to the standard anatomy.
        tissue: Mean HU of the tissues.
        body: Outer layers.
        warp: Deformation of the organs along x, y and z.
        warp_mm: Standard deviation of the deformation.
        texture: Fine texture of fat and muscle.
        mottle: Coarse texture of the organs.
        liver_lobes: Right and left lobe.
        liver_hollow: Body that is taken out of the liver at its lower surface.
        liver_vessels: Portal and hepatic veins.
        fissure: Fat between the lobes.
        kidneys: Right and left kidney.
        stomach_level_mm: Height (y) of the surface of the fluid in the stomach.
        heart: Heart above the diaphragm.
        great_vessels: Aorta and inferior vena cava.
        small_vessels: Vessels in the mesenteric fat.
        bowel_has_gas: Whether each loop holds gas.
        domes_mm: Height of the right and the left dome of the diaphragm.
    """

    scale: float
    tissue: TissueValues
    body: Body
    warp: tuple[SmoothField, SmoothField, SmoothField]
    warp_mm: float
    texture: SmoothField
    mottle: SmoothField
    liver_lobes: tuple[Ellipsoid, Ellipsoid]
    liver_hollow: Ellipsoid
    liver_vessels: tuple[Tube, ...]
    fissure: Tube
    gallbladder: Ellipsoid
    kidneys: tuple[Ellipsoid, Ellipsoid]
    spleen: Ellipsoid
    stomach: Ellipsoid
    stomach_level_mm: float
    heart: Ellipsoid
    pancreas: Tube
    great_vessels: tuple[Tube, Tube]
    small_vessels: tuple[Tube, ...]
    bowel: tuple[Ellipsoid, ...]
    bowel_has_gas: tuple[bool, ...]
    domes_mm: tuple[float, float]
