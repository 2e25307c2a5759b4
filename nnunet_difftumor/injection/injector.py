"""Synthetic tumours in one crop of nnU-Net's preprocessed data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from threadpoolctl import threadpool_limits

from nnunet_difftumor.injection.records import CaseTumors, InjectedCrop, describe_tumor
from nnunet_difftumor.injection.rules import PADDING_LABEL, REAL_TUMOR_RIM_MM, InjectionRules
from nnunet_difftumor.injection.sources import SynthesizerSource
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import with_look
from nnunet_difftumor.synthesis.results import CUT_OFF, INVISIBLE, SynthesisResult
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.tumor.appearance import AppearanceRule
from nnunet_difftumor.tumor.drawing import draw_on_grid
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

_LOOKS = 3  # looks that are tried for the tumours of a crop that cannot be seen


class TumorInjector:
    """Puts synthetic tumours into crops.

    Images are normalised, labels -1 in padding; both have the shape (D, H, W) of a crop, and are not changed.
    """

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

    @property
    def appearances(self) -> AppearanceRule:
        """What looks are drawn from: without examples in the rules, those of the generator's training tumours."""
        rule = self.rules.appearances
        return rule if rule.examples else replace(rule, examples=self.synthesizer.tissue.appearances)

    def inject(self, image: NDArray[np.float32], labels: NDArray[np.int16], tumors: CaseTumors) -> InjectedCrop:
        """Put the tumours of a crop into it.

        Voxels outside the tumours' supports keep their value to the bit. A tumour that cannot be seen keeps its place
        and size and gets another look, three in all; then it is left out.

        Args:
            tumors: Those that reach the crop, in mm from its voxel (0, 0, 0).

        Returns:
            New image and labels, or the given ones if no tumour could be put in.
        """
        specs, result = self._synthesize(self.make_host(image, labels), tumors.specs)
        by_seed = {tumor.record.spec.seed: tumor for tumor in result.tumors}
        described = tuple(describe_tumor(spec, by_seed.get(spec.seed)) for spec in specs)
        labelled = None if tumors.labelled == tumors.specs else tumors.labelled
        if not result.tumors and labelled is None:
            return InjectedCrop(image, labels, 0, dict(result.rejected), described)
        new_image, new_labels = self.apply(image, labels, result, labelled)
        record = {
            **self._describe(image),
            "drawn": [asdict(spec) for spec in specs],
            "labelled": None if labelled is None else [asdict(spec) for spec in labelled],
            "tumors": [asdict(tumor.record) for tumor in result.tumors],
        }
        return InjectedCrop(new_image, new_labels, len(result.tumors), dict(result.rejected), described, record)

    def _describe(self, image: NDArray[np.float32]) -> dict[str, Any]:
        rules = self.rules
        return {
            "crop_size": [int(size) for size in image.shape],
            "spacing_mm": list(rules.spacing_mm),
            "organ_label": rules.organ_label,
            "tumor_label": rules.tumor_label,
            "exophytic": rules.exophytic,
        }

    def put_shams(
        self, image: NDArray[np.float32], labels: NDArray[np.int16], shams: Sequence[TumorSpec]
    ) -> InjectedCrop:
        """Let tissue of a crop go the way of tumours without becoming any: unlabelled, seen or not.

        Args:
            shams: Tumours that reach the crop, in mm from its voxel (0, 0, 0); their looks do not matter.

        Returns:
            New image and the given labels, or the given image if no sham has a place.
        """
        host, synthesizer = self.make_host(image, labels), self.synthesizer.without_tumors()
        pending, rejected = synthesizer.prepared(host, shams)
        if not pending:
            return InjectedCrop(image, labels, 0, rejected)
        image = image.copy()
        for prepared, image_hu in synthesizer.blended(host, pending, 0):
            support = (prepared.weight > 0) & host.valid_mask[prepared.box]
            image[prepared.box][support] = self.rules.intensities.normalise(image_hu[support])
        record = {**self._describe(image), "shams": [asdict(spec) for spec in shams]}
        return InjectedCrop(image, labels, len(pending), rejected, record=record)

    def _synthesize(self, host: Host, drawn: Sequence[TumorSpec]) -> tuple[list[TumorSpec], SynthesisResult]:
        """Make tumours; gives them with the looks that were tried last."""
        appearances = self.appearances
        levels_hu = {spec.seed: host.level_hu(spec.centre_mm) for spec in drawn}
        specs = [with_look(spec, appearances, host_hu=levels_hu[spec.seed]) for spec in drawn]
        result = self.synthesizer.synthesize(host, specs)
        for attempt in range(1, _LOOKS):
            seen = {tumor.record.spec.seed for tumor in result.tumors}
            if not (result.rejected.get(INVISIBLE) or result.rejected.get(CUT_OFF)):
                break
            specs = [
                spec if spec.seed in seen else with_look(spec, appearances, attempt, host_hu=levels_hu[spec.seed])
                for spec in specs
            ]
            result = self.synthesizer.synthesize(host, specs)
        return specs, result

    def replay(
        self, image: NDArray[np.float32], labels: NDArray[np.int16], record: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Put recorded tumours into the same crop again, with one thread as in nnU-Net's loaders: bit by bit the same.

        Args:
            record: A line of difftumor_records.jsonl.
        """
        if "shams" in record:
            shams = [TumorSpec.from_json(values) for values in record["shams"]]
            with threadpool_limits(limits=1, user_api=None):
                return self.put_shams(image, labels, shams).image, labels
        specs = [TumorSpec.from_json(values) for values in record["drawn"]]
        labelled = record.get("labelled")
        with threadpool_limits(limits=1, user_api=None):
            result = self.synthesizer.synthesize(self.make_host(image, labels), specs)
        elsewhere = None if labelled is None else [TumorSpec.from_json(values) for values in labelled]
        return self.apply(image, labels, result, elsewhere)

    def make_host(self, image: NDArray[np.float32], labels: NDArray[np.int16]) -> Host:
        """Describe a crop as a host in HU; padding is not valid and cannot be replaced."""
        rules = self.rules
        replaceable = rules.replaceable(labels)
        avoided, real = (np.isin(labels, values) for values in (rules.avoid_labels, rules.real_tumor_labels))
        if real.any():
            near = np.asarray(distance_transform_edt(~real, sampling=rules.spacing_mm)) <= REAL_TUMOR_RIM_MM
            replaceable, avoided = replaceable & ~near, avoided | near
        return Host(
            image_hu=rules.intensities.to_hu(image),
            spacing_mm=rules.spacing_mm,
            organ_mask=labels == rules.organ_label,
            replaceable_mask=replaceable,
            valid_mask=labels != PADDING_LABEL,
            avoid_mask=avoided,
            clipped_to_hu=(rules.intensities.low_hu, rules.intensities.high_hu),
        )

    def apply(
        self,
        image: NDArray[np.float32],
        labels: NDArray[np.int16],
        result: SynthesisResult,
        labelled: Sequence[TumorSpec] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Write tumours into copies of a crop: image in the supports only, labels in organ or background only.

        The image is clipped to the plans' window inside the supports.

        Args:
            labelled: Labelled in place of the tumours, without looking at the image: the negative control.
        """
        image, labels = image.copy(), labels.copy()
        for tumor in result.tumors:
            part = labels[tumor.box]
            support = tumor.support & (part != PADDING_LABEL)
            image[tumor.box][support] = self.rules.intensities.normalise(tumor.image_hu[support])
            if labelled is None:
                part[tumor.label & self.rules.replaceable(part)] = self.rules.tumor_label
        for spec in labelled or ():
            drawn = draw_on_grid(TumorSurface(spec), self.rules.spacing_mm)
            voxels = np.argwhere(drawn.label) + drawn.start  # (N, 3)
            voxels = voxels[np.all((voxels >= 0) & (voxels < labels.shape), axis=1)]
            index = tuple(voxels.T)
            labels[index] = np.where(self.rules.replaceable(labels[index]), self.rules.tumor_label, labels[index])
        return image, labels
