"""Making of tumours at their places, by the synthesizer that training uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.evaluation.realism.tumors.places import Place
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.support.pictures.montage import crop_around
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.tumor.rim import signed_distance_mm

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

REAL = "real"
GENERATED = "generated"
NO_RESIDUAL = "generated, no residual"
COPY_PASTE = "copy-paste"
NO_DIFFUSION = "no diffusion"
TEXTURED_FILL = "textured fill"
AUTOENCODER = "autoencoder"
METHODS = (REAL, GENERATED, NO_RESIDUAL, COPY_PASTE, NO_DIFFUSION, TEXTURED_FILL, AUTOENCODER)

_MARGIN_MM = 12.0


@dataclass(frozen=True, eq=False)
class MadeTumor:
    """A tumour in its scan, real or made, in the box of its label with a margin of 12 mm.

    Attributes:
        box: Where the arrays lie in the scan.
        label: True inside the tumour. Shape of the box.
        distance_mm: Signed distance to the label's surface in mm. Shape of the box.
        image_hu: The scan with the tumour. Shape of the box.
        drawn_mm3: Volume that was drawn, before clipping to the organ, in mm3.
    """

    scan: EvaluationScan
    box: tuple[slice, slice, slice]
    label: BoolArray
    distance_mm: FloatArray
    image_hu: FloatArray
    drawn_mm3: float

    @property
    def host_hu(self) -> FloatArray:
        """The scan as it is, in HU. Shape of the box."""
        return self.scan.image_hu[self.box]

    @property
    def organ(self) -> BoolArray:
        """The organ, tumours left out. Shape of the box."""
        return self.scan.organ[self.box]

    @property
    def label_mm3(self) -> float:
        """Volume of the label in mm3."""
        return float(self.label.sum() * np.prod(self.scan.spacing_mm))


def make(place: Place, synthesizer: TumorSynthesizer) -> MadeTumor | None:
    """Make the tumour of a place as training would.

    Returns:
        The tumour, or None if training would leave it out: it cannot be seen as it was requested.
    """
    result = synthesizer.synthesize(place.host, [place.tumor])
    if not result.tumors:
        return None
    image_hu, record = result.apply_to(place.host.image_hu), result.tumors[0].record
    return _in_box(place.scan, image_hu, result.label_mask(image_hu.shape), record.drawn_mm3)


def real_tumor(scan: EvaluationScan) -> MadeTumor:
    """The largest tumour of a scan as it is."""
    return _in_box(scan, scan.image_hu, scan.target, float(scan.target.sum() * np.prod(scan.spacing_mm)))


def _in_box(scan: EvaluationScan, image_hu: FloatArray, label: BoolArray, drawn_mm3: float) -> MadeTumor:
    box = crop_around(label, scan.spacing_mm, _MARGIN_MM)
    return MadeTumor(scan, box, label[box], signed_distance_mm(label[box], scan.spacing_mm), image_hu[box], drawn_mm3)
