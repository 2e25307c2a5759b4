"""nnU-Net's data loader with synthetic tumours in healthy cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import Box, as_box, ends_of
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection.case_tumors import CaseTumors, draw_case_tumors, locations_with_tumors, values_of
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.log import take_picture
from nnunet_difftumor.injection.records import InjectedCrop, InjectionRequest, describe_tumor
from nnunet_difftumor.injection.rules import InjectionRules
from nnunet_difftumor.injection.sample_shares import ANNOTATED, INJECTED, count_sample
from nnunet_difftumor.injection.sample_streams import InjectionState, SampleDraw, SamplingPlan
from nnunet_difftumor.injection.seen_region import find_seen_region, kept_random_state
from nnunet_difftumor.injection.target_reader import TargetReader
from nnunet_difftumor.synthesis.results import OUT_OF_VIEW
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

REPORT_KEY = "difftumor"
_CHOICE, _TUMORS, _CROP = 0, 1, 2  # purposes


class InjectTumors(BasicTransform):
    """First transform of a training sample: makes the tumours that reach what the network will see of its crop."""

    def __init__(
        self,
        injectors: Sequence[TumorInjector],
        state: InjectionState,
        following: BasicTransform | None,
        *,
        is_control: bool = False,
    ) -> None:
        """Create the transform.

        Args:
            injectors: One for each target.
            following: nnU-Net's transforms, which read a part of the crop alone.
            is_control: Nothing is put in: the crop stays as it is.
        """
        super().__init__()
        self._injectors = tuple(injectors)
        self._state = state
        self.following = following
        self._is_control = is_control

    def apply(self, data_dict: dict, **params: Any) -> dict:
        """Inject tumours into the sample if that was drawn; otherwise return it untouched."""
        draw = self._state.draws.popleft()
        crop = None
        if draw.request is not None:
            request = self._only_seen(draw.request, data_dict["image"])
            draw = replace(draw, request=request if request.specs or request.labelled else None)
        if draw.request is not None and not self._is_control:
            image, labels = data_dict["image"][0].numpy(), data_dict["segmentation"][0].numpy()
            injector = self._injectors[draw.request.target]
            crop = injector.inject(image, labels, draw.request)
            if crop.record is not None:
                self._take_picture(image, crop, injector.rules)
                data_dict["image"] = torch.from_numpy(crop.image[None])
                data_dict["segmentation"] = torch.from_numpy(crop.labels[None])
        self._state.outcomes.append((draw, crop))
        return data_dict

    def _only_seen(self, request: InjectionRequest, image: torch.Tensor) -> InjectionRequest:
        region = None if self.following is None else find_seen_region(self.following, image)
        if region is None:
            return request
        spacing_mm = self._injectors[request.target].rules.spacing_mm
        return request.only(lambda spec: _reaches(spec, region, spacing_mm))

    def _take_picture(self, image: NDArray[np.float32], crop: InjectedCrop, rules: InjectionRules) -> None:
        if self._state.pictures_left > 0:
            self._state.pictures_left -= 1
            is_tumor = crop.labels == rules.tumor_label
            self._state.pictures.append(take_picture(rules.intensities, image, crop.image, is_tumor))


class _CaseTracker:
    """A data set that remembers which case was loaded last, and its labels."""

    def __init__(self, dataset: nnUNetBaseDataset, state: InjectionState) -> None:
        self._dataset = dataset
        self._state = state
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str) -> Any:
        loaded: Any = self._dataset.load_case(identifier)
        self._state.case, self._state.labels = identifier, loaded[1]
        return loaded


class DiffTumorDataLoader(nnUNetDataLoader):
    """nnU-Net's loader; some cases carry synthetic tumours, and are sampled as nnU-Net samples annotated ones.

    First the tumours of the case are drawn, then nnU-Net chooses the crop as if they were annotated, then those that
    reach it are made, before all other transforms.

    nnU-Net's own random stream is never advanced by the injection, so that with probability 0 every batch
    equals stock nnU-Net's to the bit. Batches carry what happened under the key "difftumor".
    """

    def __init__(
        self,
        data: nnUNetBaseDataset,
        batch_size: int,
        patch_size: Sequence[int] | NDArray[np.integer],
        final_patch_size: Sequence[int] | NDArray[np.integer],
        label_manager: LabelManager,
        *,
        injectors: Sequence[TumorInjector],
        plan: SamplingPlan,
        transforms: BasicTransform | None,
        **options: Any,
    ) -> None:
        """Create a loader.

        Args:
            patch_size: Size of the raw crop in voxels. (D, H, W).
            final_patch_size: Size of the network's patch in voxels. (D, H, W).
            injectors: One for each target.
            options: Further options of nnU-Net's loader.
        """
        state = InjectionState(plan.seed_words, plan.first_sample)
        self._inject = InjectTumors(injectors, state, transforms, is_control=plan.is_control)
        stack = self._inject if transforms is None else ComposeTransforms([self._inject, transforms])
        super().__init__(
            _CaseTracker(data, state),  # type: ignore[arg-type]
            batch_size,
            patch_size,  # type: ignore[arg-type]
            final_patch_size,  # type: ignore[arg-type]
            label_manager,
            transforms=stack,
            **options,
        )
        self._state = state
        self._rules = tuple(injector.rules for injector in injectors)
        self._readers = [TargetReader(label_manager, rules.organ_label, rules.tumor_label) for rules in self._rules]
        self._plan, self._healthy, self._annotated = plan, plan.healthy, plan.annotated
        self._weights = [1.0] * len(self._rules) if plan.target_weights is None else plan.target_weights

    def inject_only(self) -> None:
        """Leave out all transforms but the injection: batches are raw crops with tumours."""
        self._inject.following = None
        self.transforms = self._inject
        for reader in self._readers:
            reader.read_labels()

    def set_thread_id(self, thread_id: int) -> None:
        """Start this worker's own random stream; called by nnU-Net inside the worker."""
        super().set_thread_id(thread_id)
        self._state.set_worker(thread_id)

    def get_bbox(
        self, data_shape: Any, force_fg: bool, class_locations: Any, overwrite_class: Any = None, verbose: bool = False
    ) -> tuple[list[int], list[int]]:
        """Choose the crop as nnU-Net does, as if the synthetic tumours of the case were annotated."""
        choose = super().get_bbox
        lower, upper = choose(data_shape, force_fg, class_locations, overwrite_class, verbose)
        draw = self._draw(class_locations)
        if draw.is_carrying:
            rules, counted = self._rules[draw.target], self._state.real_voxels[draw.case]
            labelled = draw.tumors.labelled
            locations = locations_with_tumors(class_locations, labelled, self._state.labels, rules, counted)
            with kept_random_state(int(draw.stream.rng(_CROP).integers(2**32))):
                lower, upper = choose(data_shape, force_fg, locations, overwrite_class, verbose)
            draw = replace(draw, request=self._request(draw, lower))
        self._state.draws.append(draw)
        self._state.labels = None
        return lower, upper

    def generate_train_batch(self) -> dict[str, Any]:
        """Make a batch as nnU-Net does, with a report of the injection under "difftumor"."""
        self._state.outcomes = []
        batch = super().generate_train_batch()
        batch[REPORT_KEY] = self._report(batch["target"])
        return batch

    def preview(self, samples: int) -> dict[str, int]:
        """Count what samples would show, by their labels and without rotation or scaling; nothing is made.

        Args:
            samples: Samples of each kind, annotated and healthy, as far as there are such cases.

        Returns:
            Sums of `sample_shares.count_sample`.
        """
        counts: Counter[str] = Counter()
        state, kept = self._state, (self._state._next_sample, self.patch_size, self.need_to_pad)
        self.patch_size, self.need_to_pad = self.final_patch_size, np.zeros(3, dtype=int)
        with kept_random_state(0):
            for kind, hosts in ((ANNOTATED, self._annotated), (INJECTED, self._healthy)):
                cases = sorted(hosts.targets)
                for number in range(samples if cases and (kind == ANNOTATED or hosts.probability > 0) else 0):
                    case = cases[int(np.random.randint(len(cases)))]  # noqa: NPY002
                    counts.update(self._preview_one(case, kind, self.get_do_oversample(number % self.batch_size)))
        state._next_sample, self.patch_size, self.need_to_pad = kept
        return dict(counts)

    def _preview_one(self, case: str, kind: str, force_fg: bool) -> dict[str, int]:
        data, labels, _, properties = self._data.load_case(case)
        lower, upper = self.get_bbox(data.shape[1:], force_fg, properties["class_locations"])
        draw = self._state.draws.pop()
        if kind == INJECTED and not draw.is_carrying:
            return {}
        box = as_box(np.maximum(lower, 0), np.minimum(upper, labels.shape[1:]))
        seen = np.asarray(labels[(0, *box)])
        tumors, organs = ([getattr(rules, name) for rules in self._rules] for name in ("tumor_label", "organ_label"))
        shows_tumor = bool(np.isin(seen, tumors).any()) or draw.request is not None
        shows_organ = shows_tumor or bool(np.isin(seen, organs).any())
        return count_sample(kind, shows_tumor=shows_tumor, shows_organ=shows_organ)

    def _draw(self, class_locations: Mapping[Any, Any]) -> SampleDraw:
        """Draw whether the case carries tumours, of which target, and where; from its own random stream alone."""
        draw = SampleDraw(self._state.case)
        hosts = self._healthy if draw.case in self._healthy.targets else self._annotated
        if draw.case not in hosts.targets or (hosts is self._annotated and hosts.probability == 0):
            return draw
        draw = replace(draw, stream=self._state.next_stream())
        rng = draw.stream.rng(_CHOICE)
        if rng.random() >= hosts.probability:
            return draw
        organs = {
            target: self._organ_voxels(class_locations, self._rules[target].organ_label)
            for target in hosts.targets[draw.case]
        }
        target = _choose({key: self._weights[key] for key, voxels in organs.items() if len(voxels)}, rng)
        if target is None:
            return replace(draw, refusal="organ_lost_in_resampling")
        tumors = self._draw_tumors(np.asarray(organs[target])[:, 1:], target, draw.stream.rng(_TUMORS))
        refusal = None if tumors.labelled else "no_room"
        return replace(draw, target=target, tumors=tumors, refusal=refusal, is_carrying=refusal is None)

    def _draw_tumors(self, organ_voxels: NDArray[np.integer], target: int, rng: np.random.Generator) -> CaseTumors:
        rules, labels = self._rules[target], self._state.labels
        return draw_case_tumors(labels, organ_voxels, rules, rng, is_misplaced=self._plan.is_misplaced)

    def _request(self, draw: SampleDraw, lower: Sequence[int]) -> InjectionRequest | None:
        """The tumours that reach the crop, in its frame; None if none does."""
        spacing_mm, crop = self._rules[draw.target].spacing_mm, as_box((0, 0, 0), self.patch_size)
        offset_mm = np.multiply(lower, spacing_mm)

        def in_crop(specs: Sequence[TumorSpec]) -> tuple[TumorSpec, ...]:
            moved = (spec.moved_to(np.subtract(spec.centre_mm, offset_mm)) for spec in specs)
            return tuple(spec for spec in moved if _reaches(spec, crop, spacing_mm))

        specs, labelled = in_crop(draw.tumors.specs), in_crop(draw.tumors.labelled)
        depth, height, width = (int(start) for start in lower)
        request = InjectionRequest(
            draw.case, (depth, height, width), specs, labelled, target=draw.target, stream=draw.stream.words
        )
        return request if specs or labelled else None

    def _organ_voxels(self, class_locations: Mapping[Any, Any], organ_label: int) -> Sequence[Any]:
        """Sampled voxels of the organ's label, or of the smallest region that holds it."""
        regions = [key for key in class_locations if key != self.annotated_classes_key]
        holding = [key for key in regions if organ_label in values_of(key)]
        smallest = min(holding, key=lambda key: len(values_of(key)), default=None)
        return () if smallest is None else class_locations[smallest]

    def _report(self, target: torch.Tensor | list[torch.Tensor]) -> dict[str, Any]:
        """Count what happened to the samples of a batch, tumours as seen in the final target."""
        finest = target[0] if isinstance(target, list) else target
        counts: Counter[str] = Counter()
        records, tumors = [], []
        for index, (draw, crop) in enumerate(self._state.outcomes):
            is_healthy = draw.case in self._healthy.targets
            shows_tumor = any(reader.shows_tumor(finest[index]) for reader in self._readers)
            counts["healthy_samples"] += is_healthy
            if draw.case in self._annotated.targets or (draw.is_carrying and not self._plan.is_control):
                shows_organ = any(reader.shows_organ(finest[index]) for reader in self._readers)
                kind = INJECTED if is_healthy else ANNOTATED
                counts.update(count_sample(kind, shows_tumor=shows_tumor, shows_organ=shows_organ))
            if not draw.is_carrying and draw.refusal is None:
                continue
            if self._plan.is_control:
                counts["control_samples"] += 1
                continue
            counts["carrying"] += 1
            counts["tumors_rejected_no_room"] += len(draw.tumors.given_up)
            tumors += [(draw.target, describe_tumor(spec)) for spec in draw.tumors.given_up]
            counts[self._outcome(draw, crop, shows_tumor=shows_tumor)] += 1
            if crop is not None:
                counts["tumors_placed"] += crop.placed
                counts.update({f"tumors_rejected_{reason}": count for reason, count in crop.rejected.items()})
                records += [] if crop.record is None else [crop.record]
                tumors += [(draw.target, tumor) for tumor in crop.tumors]
        pictures, self._state.pictures = self._state.pictures, []
        return {"counts": dict(+counts), "records": records, "pictures": pictures, "tumors": tumors}

    def _outcome(self, draw: SampleDraw, crop: InjectedCrop | None, *, shows_tumor: bool) -> str:
        """Name of what became of a sample whose case carries tumours."""
        if draw.refusal is not None:
            return f"rejected_{draw.refusal}"
        if crop is not None and crop.record is None and crop.main_reason != OUT_OF_VIEW:
            return f"rejected_{crop.main_reason}"
        return "injected" if crop is not None and crop.record is not None and shows_tumor else OUT_OF_VIEW


def sampling_probabilities(
    identifiers: Sequence[str], healthy: Collection[str], healthy_share: float | None
) -> NDArray[np.float64] | None:
    """Probability of each case so that healthy ones make up a share of the samples.

    Args:
        healthy_share: Their share; None draws every case alike, as stock nnU-Net does.

    Returns:
        Probabilities that add up to 1, or None.

    Raises:
        ConfigurationError: If one of the two kinds is wanted, but there is none.
    """
    if healthy_share is None:
        return None
    is_healthy = np.array([identifier in healthy for identifier in identifiers])
    shares = {True: healthy_share, False: 1.0 - healthy_share}
    for kind, share in shares.items():
        if share > 0 and not (is_healthy == kind).any():
            raise ConfigurationError(
                f"healthy_share is {healthy_share:g}, but no training case is {'healthy' if kind else 'not healthy'}."
            )
    counts = {kind: max(1, int((is_healthy == kind).sum())) for kind in shares}
    return np.array([shares[bool(kind)] / counts[bool(kind)] for kind in is_healthy])


def _choose(weights: Mapping[int, float], rng: np.random.Generator) -> int | None:
    """Draw one key by its weight; None where there is none with a weight above 0."""
    total = sum(weights.values())
    if not total > 0:
        return None
    return int(rng.choice(list(weights), p=[weight / total for weight in weights.values()]))


def _reaches(spec: TumorSpec, box: Box, spacing_mm: Sequence[float]) -> bool:
    """True if the box that holds a tumour's label reaches into a box of voxels."""
    spacing, half_mm = np.asarray(spacing_mm), TumorSurface(spec).half_extent_mm
    low, high = (np.asarray(spec.centre_mm) + sign * half_mm for sign in (-1.0, 1.0))
    starts, stops = ends_of(box)
    return bool(np.all(high >= (starts - 0.5) * spacing) and np.all(low <= (stops - 0.5) * spacing))
