"""Synthetic tumours in one crop of nnU-Net's preprocessed data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from threadpoolctl import threadpool_limits

from nnunet_difftumor.injection.records import InjectedCrop, InjectionRequest, describe_all
from nnunet_difftumor.injection.rules import InjectionRules
from nnunet_difftumor.injection.sources import SynthesizerSource
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import with_look
from nnunet_difftumor.synthesis.results import INVISIBLE, SynthesisResult
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.tumor.appearance import AppearanceRule
from nnunet_difftumor.tumor.drawing import draw_on_grid
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

PADDING_LABEL = -1
REAL_TUMOR_RIM_MM = 4.0
"""Distance that synthetic tumours, their soft rims included, keep from annotated ones, in mm."""

_LOOKS = 3  # looks that are tried for the tumours of a crop that cannot be seen


class TumorInjector:
    """Puts synthetic tumours into crops."""

    def __init__(self, source: SynthesizerSource | None, rules: InjectionRules) -> None:
        """Prepare an injector; nothing is loaded yet.

        Args:
            source: Where the synthesizer comes from, asked at every use: a `LoadedOnce` for what takes time to load.
                None if nothing will be injected.
        """
        self.rules = rules
        self._source = source

    @property
    def synthesizer(self) -> TumorSynthesizer:
        """The synthesizer of this process."""
        if self._source is None:
            raise RuntimeError("This injector was made without a generator; nothing can be injected with it.")
        return self._source()

    def inject(self, image: NDArray[np.float32], labels: NDArray[np.int16], request: InjectionRequest) -> InjectedCrop:
        """Put the tumours of a crop into it.

        Voxels outside the tumours' supports keep their value to the bit. A tumour that cannot be seen keeps its place
        and size and gets another look, three in all; then it is left out.

        Args:
            image: Normalised image. Shape (D, H, W). Not changed.
            labels: Labels, -1 in padding. Shape (D, H, W). Not changed.

        Returns:
            New image and labels, or the given ones if no tumour could be put in.
        """
        host, appearances = self.make_host(image, labels), self._appearances()
        specs = [with_look(spec, appearances) for spec in request.specs]
        result = self.synthesizer.synthesize(host, specs)
        for attempt in range(1, _LOOKS):
            seen = {tumor.record.spec.seed for tumor in result.tumors}
            if not result.rejected.get(INVISIBLE):
                break
            specs = [spec if spec.seed in seen else with_look(spec, appearances, attempt) for spec in specs]
            result = self.synthesizer.synthesize(host, specs)
        tumors = describe_all(specs, result)
        is_misplaced = request.labelled != request.specs
        if not result.tumors and not is_misplaced:
            return InjectedCrop(image, labels, 0, dict(result.rejected), tumors)
        new_image, new_labels = self.apply(image, labels, result)
        if is_misplaced:
            new_labels = self._label(labels, request.labelled)
        record = _record(request, image.shape, self.rules, specs, result)
        return InjectedCrop(new_image, new_labels, len(result.tumors), dict(result.rejected), tumors, record)

    def replay(
        self, image: NDArray[np.float32], labels: NDArray[np.int16], record: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Put recorded tumours into the same crop again, with one thread as in nnU-Net's loaders: bit by bit the same.

        Args:
            image: Normalised image of the recorded crop. Shape (D, H, W).
            labels: Its labels. Shape (D, H, W).
            record: A line of difftumor_records.jsonl.
        """
        specs = [TumorSpec.from_json(values) for values in record["drawn"]]
        with threadpool_limits(limits=1, user_api=None):
            result = self.synthesizer.synthesize(self.make_host(image, labels), specs)
        new_image, new_labels = self.apply(image, labels, result)
        if record.get("labelled") is not None:
            new_labels = self._label(labels, [TumorSpec.from_json(values) for values in record["labelled"]])
        return new_image, new_labels

    def make_host(self, image: NDArray[np.float32], labels: NDArray[np.int16]) -> Host:
        """Describe a crop as a host in HU; padding is not valid and cannot be replaced.

        Args:
            image: Normalised image. Shape (D, H, W).
            labels: Labels, -1 in padding. Shape (D, H, W).
        """
        rules = self.rules
        replaceable = rules.replaceable(labels)
        real = np.isin(labels, rules.real_tumor_labels)
        if real.any():
            replaceable &= np.asarray(distance_transform_edt(~real, sampling=rules.spacing_mm)) > REAL_TUMOR_RIM_MM
        return Host(
            image_hu=rules.intensities.to_hu(image),
            spacing_mm=rules.spacing_mm,
            organ_mask=labels == rules.organ_label,
            replaceable_mask=replaceable,
            valid_mask=labels != PADDING_LABEL,
            avoid_mask=np.isin(labels, rules.avoid_labels) if rules.avoid_labels else None,
            clipped_to_hu=(rules.intensities.low_hu, rules.intensities.high_hu),
        )

    def apply(
        self, image: NDArray[np.float32], labels: NDArray[np.int16], result: SynthesisResult
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Write tumours into copies of a crop: image in the supports only, labels in organ or background only.

        Args:
            image: Normalised image, clipped to the plans' window inside the supports. Shape (D, H, W).
            labels: Labels. Shape (D, H, W).
        """
        image, labels = image.copy(), labels.copy()
        for tumor in result.tumors:
            part = labels[tumor.box]
            support = tumor.support & (part != PADDING_LABEL)
            image[tumor.box][support] = self.rules.intensities.normalise(tumor.image_hu[support])
            part[tumor.label & self.rules.replaceable(part)] = self.rules.tumor_label
        return image, labels

    def _label(self, labels: NDArray[np.int16], specs: Sequence[TumorSpec]) -> NDArray[np.int16]:
        """Label places without looking at the image: the negative control."""
        labels = labels.copy()
        for spec in specs:
            drawn = draw_on_grid(TumorSurface(spec), self.rules.spacing_mm)
            voxels = np.argwhere(drawn.label) + drawn.start  # (N, 3)
            voxels = voxels[np.all((voxels >= 0) & (voxels < labels.shape), axis=1)]
            index = tuple(voxels.T)
            labels[index] = np.where(self.rules.replaceable(labels[index]), self.rules.tumor_label, labels[index])
        return labels

    def _appearances(self) -> AppearanceRule:
        appearances = self.rules.appearances
        return (
            appearances if appearances.examples else replace(appearances, examples=self.synthesizer.tissue.appearances)
        )


def _record(
    request: InjectionRequest,
    crop_size: tuple[int, ...],
    rules: InjectionRules,
    specs: Sequence[TumorSpec],
    result: SynthesisResult,
) -> dict[str, Any]:
    """Everything that replays a crop's tumours, and what became of them."""
    return {
        "case": request.case,
        "stream": list(request.stream),
        "target": request.target,
        "crop_start": list(request.crop_start),
        "crop_size": [int(size) for size in crop_size],
        "spacing_mm": list(rules.spacing_mm),
        "organ_label": rules.organ_label,
        "tumor_label": rules.tumor_label,
        "exophytic": rules.exophytic,
        "drawn": [asdict(spec) for spec in specs],
        "labelled": [asdict(spec) for spec in request.labelled] if request.labelled != request.specs else None,
        "tumors": [asdict(tumor.record) for tumor in result.tumors],
    }
