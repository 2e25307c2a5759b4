"""nnU-Net's data loader with synthetic tumours in healthy cases."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import as_box
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection.case_tumors import draw_case_tumors, locations_with_tumors, values_of
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.records import CaseTumors, InjectedCrop, SampleDraw, describe_tumor
from nnunet_difftumor.injection.sample_shares import ANNOTATED, INJECTED, TargetReader, count_sample
from nnunet_difftumor.injection.transform import InjectTumors, WorkerState, kept_random_state
from nnunet_difftumor.synthesis.results import OUT_OF_VIEW

REPORT_KEY = "difftumor"
_CHOICE, _TUMORS, _CROP, _SHAM = 0, 1, 2, 3  # purposes


@dataclass(frozen=True)
class HostCases:
    """Cases of one kind that may carry synthetic tumours.

    Attributes:
        targets: The cases, and the numbers of the targets that each may get.
        probability: Share of the samples of these cases in which the case carries tumours.
    """

    targets: Mapping[str, Sequence[int]]
    probability: float


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """Which cases carry synthetic tumours, how often, and from which random streams.

    Attributes:
        seed_words: Seed and rank; the worker and the number of the sample are added to them.
        target_weights: How often each target is drawn, relative to the others that a case may get.
        first_sample: Number of the first sample of each worker; a continued training starts beyond those it has used.
        is_control: Choose cases and crops as ever, but put nothing in.
        is_misplaced: Label the tumours at other places than those they are put in.
        sham_probability: Share of the samples without synthetic tumours whose case carries unlabelled shams.
    """

    healthy: HostCases
    annotated: HostCases
    seed_words: tuple[int, int]
    target_weights: Sequence[float] = (1.0,)
    first_sample: int = 0
    is_control: bool = False
    is_misplaced: bool = False
    sham_probability: float = 0.0


class _CaseTracker:
    """A data set that remembers which case was loaded last, and its labels."""

    def __init__(self, dataset: nnUNetBaseDataset, state: WorkerState) -> None:
        self._dataset = dataset
        self._state = state
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str) -> Any:
        loaded: Any = self._dataset.load_case(identifier)
        self._state.case, self._state.image, self._state.labels = identifier, loaded[0], loaded[1]
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
        """
        self._state, self._plan = WorkerState(), plan
        self._inject = InjectTumors(injectors, self._state, transforms, is_control=plan.is_control)
        super().__init__(
            _CaseTracker(data, self._state),  # type: ignore[arg-type]
            batch_size,
            patch_size,  # type: ignore[arg-type]
            final_patch_size,  # type: ignore[arg-type]
            label_manager,
            transforms=self._inject if transforms is None else ComposeTransforms([self._inject, transforms]),
            **options,
        )
        self._rules = tuple(injector.rules for injector in injectors)
        self._readers = [TargetReader(label_manager, rules.organ_label, rules.tumor_label) for rules in self._rules]
        self._next_sample = plan.first_sample
        self._real_voxels: defaultdict[str, dict[Any, int]] = defaultdict(dict)  # of annotated tumours, by case

    def get_bbox(
        self, data_shape: Any, force_fg: bool, class_locations: Any, overwrite_class: Any = None, verbose: bool = False
    ) -> tuple[list[int], list[int]]:
        """Choose the crop as nnU-Net does, as if the synthetic tumours of the case were annotated."""
        choose = super().get_bbox
        lower, upper = choose(data_shape, force_fg, class_locations, overwrite_class, verbose)
        draw = self._draw(class_locations)
        rules, crop = self._rules[draw.target], as_box((0, 0, 0), self.patch_size)
        if draw.is_carrying:
            labelled = draw.tumors.labelled
            counted = self._real_voxels[draw.case]
            locations = locations_with_tumors(class_locations, labelled, self._state.labels, rules, counted)
            with kept_random_state(int(draw.rng(_CROP).integers(2**32))):
                lower, upper = choose(data_shape, force_fg, locations, overwrite_class, verbose)
        depth, height, width = (int(start) for start in lower)
        in_crop, shams = (each.reaching(crop, rules.spacing_mm, lower) for each in (draw.tumors, draw.shams))
        draw = replace(draw, crop_start=(depth, height, width), in_crop=in_crop, shams=shams)
        self._state.draws.append(draw)
        self._state.image = self._state.labels = None
        return lower, upper

    def generate_train_batch(self) -> dict[str, Any]:
        """Make a batch as nnU-Net does, with a report of the injection under "difftumor"."""
        self._state.outcomes = []
        batch = super().generate_train_batch()
        batch[REPORT_KEY] = self._report(batch["target"])
        return batch

    def preview(self, samples: int) -> dict[str, int]:
        """Sum up `count_sample` of samples, by their labels and without rotation or scaling; nothing is made.

        Args:
            samples: Samples of each kind, annotated and healthy, as far as there are such cases.
        """
        counts: Counter[str] = Counter()
        kept = self._next_sample, self.patch_size, self.need_to_pad
        self.patch_size, self.need_to_pad = self.final_patch_size, np.zeros(3, dtype=int)
        with kept_random_state(0):
            for kind, hosts in ((ANNOTATED, self._plan.annotated), (INJECTED, self._plan.healthy)):
                cases = sorted(hosts.targets)
                for number in range(samples if cases and (kind == ANNOTATED or hosts.probability > 0) else 0):
                    case = cases[int(np.random.randint(len(cases)))]  # noqa: NPY002
                    counts.update(self._preview_one(case, kind, self.get_do_oversample(number % self.batch_size)))
        self._next_sample, self.patch_size, self.need_to_pad = kept
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
        shows_tumor = bool(np.isin(seen, tumors).any()) or not draw.in_crop.is_empty
        shows_organ = shows_tumor or bool(np.isin(seen, organs).any())
        return count_sample(kind, shows_tumor=shows_tumor, shows_organ=shows_organ)

    def _draw(self, class_locations: Mapping[Any, Any]) -> SampleDraw:
        """Draw whether the case carries tumours or shams, of which target, and where; from its own random stream."""
        case, plan = self._state.case, self._plan
        hosts = plan.healthy if case in plan.healthy.targets else plan.annotated
        if case not in hosts.targets or (
            hosts is plan.annotated and max(hosts.probability, plan.sham_probability) == 0
        ):
            return SampleDraw(case)
        draw = SampleDraw(case, stream=self._next_stream())
        rng = draw.rng(_CHOICE)
        is_sham = rng.random() >= hosts.probability
        if is_sham and draw.rng(_SHAM).random() >= plan.sham_probability:
            return draw
        organs = {
            target: self._organ_voxels(class_locations, self._rules[target].organ_label)
            for target in hosts.targets[case]
        }
        weights = {key: plan.target_weights[key] for key, voxels in organs.items() if len(voxels)}
        total = sum(weights.values())
        if not total > 0:
            return draw if is_sham else replace(draw, refusal="organ_lost_in_resampling")
        target = int(rng.choice(list(weights), p=[weight / total for weight in weights.values()]))
        tumors = self._draw_tumors(np.asarray(organs[target])[:, 1:], target, draw.rng(_TUMORS))
        if is_sham:
            return replace(draw, target=target, shams=tumors)
        return replace(draw, target=target, tumors=tumors, refusal=None if tumors.labelled else "no_room")

    def _next_stream(self) -> tuple[int, ...]:
        """Words of the next sample of a case that may carry tumours."""
        self._next_sample += 1
        return (*self._plan.seed_words, self.thread_id, self._next_sample - 1)

    def _draw_tumors(self, organ_voxels: NDArray[np.integer], target: int, rng: np.random.Generator) -> CaseTumors:
        rules, state = self._rules[target], self._state
        return draw_case_tumors(
            state.labels, organ_voxels, rules, rng, image=state.image, is_misplaced=self._plan.is_misplaced
        )

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
            is_healthy = draw.case in self._plan.healthy.targets
            shows_tumor = any(reader.shows_tumor(finest[index]) for reader in self._readers)
            counts["healthy_samples"] += is_healthy
            counts.update(self._count(draw, finest[index], shows_tumor=shows_tumor))
            if not draw.is_carrying and draw.refusal is None:
                if crop is not None and crop.record is not None:
                    counts.update(sham_samples=1, shams=crop.placed)
                    records.append({**draw.to_json(), **crop.record})
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
                records += [] if crop.record is None else [{**draw.to_json(), **crop.record}]
                tumors += [(draw.target, tumor) for tumor in crop.tumors]
        pictures, self._state.pictures = self._state.pictures, []
        return {"counts": dict(+counts), "records": records, "pictures": pictures, "tumors": tumors}

    def _count(self, draw: SampleDraw, target: torch.Tensor, *, shows_tumor: bool) -> Mapping[str, int]:
        """Count what a sample of an annotated case, or of one that carries tumours, shows."""
        if draw.case not in self._plan.annotated.targets and (self._plan.is_control or not draw.is_carrying):
            return {}
        kind = INJECTED if draw.case in self._plan.healthy.targets else ANNOTATED
        shows_organ = any(reader.shows_organ(target) for reader in self._readers)
        return count_sample(kind, shows_tumor=shows_tumor, shows_organ=shows_organ)

    def _outcome(self, draw: SampleDraw, crop: InjectedCrop | None, *, shows_tumor: bool) -> str:
        """Name of what became of a sample whose case carries tumours; a rejection has its most frequent reason."""
        if draw.refusal is not None:
            return f"rejected_{draw.refusal}"
        if crop is None or crop.record is not None:
            return "injected" if crop is not None and shows_tumor else OUT_OF_VIEW
        reason = max(crop.rejected, key=crop.rejected.__getitem__, default="unknown")
        return OUT_OF_VIEW if reason == OUT_OF_VIEW else f"rejected_{reason}"


def sampling_probabilities(
    identifiers: Sequence[str], healthy: Collection[str], healthy_share: float | None
) -> NDArray[np.float64] | None:
    """Probability of each case so that healthy ones make up a share of the samples.

    Args:
        healthy_share: Their share; None gives None, for which nnU-Net draws every case alike.

    Raises:
        ConfigurationError: If one of the two kinds is wanted, but there is none.
    """
    if healthy_share is None:
        return None
    is_healthy = np.array([identifier in healthy for identifier in identifiers], dtype=bool)
    healthy_cases, other_cases = int(is_healthy.sum()), int((~is_healthy).sum())
    other_share = 1.0 - healthy_share
    if (healthy_share > 0 and not healthy_cases) or (other_share > 0 and not other_cases):
        lacking = "not healthy" if healthy_cases else "healthy"
        raise ConfigurationError(f"healthy_share is {healthy_share:g}, but no training case is {lacking}.")
    return np.where(is_healthy, healthy_share / max(1, healthy_cases), other_share / max(1, other_cases))
