"""nnU-Net's data loader with synthetic tumours in healthy cases."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection import PADDING_LABEL, InjectedCrop, InjectionRequest, InjectionRules, TumorInjector
from nnunet_difftumor.injection_log import SamplePicture, take_picture
from nnunet_difftumor.organ_depth import lies_at_depth
from nnunet_difftumor.patch_geometry import PatchGeometry

REPORT_KEY = "difftumor"
_PICTURES_PER_WORKER = 4
_ZONE_TRIES = 20


@dataclass(frozen=True)
class SampleDraw:
    """What was drawn for one sample before its crop was cut.

    Attributes:
        is_healthy: The case is one of the healthy cases.
        request: Where tumours shall be injected; None injects none.
        refusal: Why none can be injected although it was drawn; None if there is no such reason.
    """

    is_healthy: bool
    request: InjectionRequest | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class SampleStream:
    """Random streams of one healthy sample, the same in every run that has its four words.

    Attributes:
        words: Seed of the training, rank, worker, and number of the sample in that worker.
    """

    words: tuple[int, ...]

    def rng(self, purpose: int) -> np.random.Generator:
        """Return the generator of one purpose, independent of the others."""
        return np.random.default_rng(np.random.SeedSequence(list(self.words), spawn_key=(purpose,)))


_CHOICE, _TUMORS = 0, 1  # purposes


class InjectionState:
    """What `get_bbox`, the first transform and the loader share within one worker.

    Attributes:
        case: Identifier of the case that was loaded last.
        labels: Its labels as nnU-Net stores them, until its crop is chosen. Shape (1, D, H, W).
        draws: Draws of samples whose transforms are still to run.
        outcomes: Draws and injected crops of the batch in the making.
        pictures: Pictures that were not handed over yet.
    """

    def __init__(self, seed_words: Sequence[int], first_sample: int = 0) -> None:
        """Create the state.

        Args:
            seed_words: Seed and rank: what tells this training's streams apart.
            first_sample: Number of the first sample; a continued training starts beyond those it has used.
        """
        self.case = ""
        self.labels: Any = None
        self.draws: deque[SampleDraw] = deque()
        self.outcomes: list[tuple[SampleDraw, InjectedCrop | None]] = []
        self.pictures: list[SamplePicture] = []
        self.pictures_left = _PICTURES_PER_WORKER
        self._seed_words = tuple(int(word) for word in seed_words)
        self._thread_id = 0
        self._next_sample = first_sample

    def set_worker(self, thread_id: int) -> None:
        """Take the random streams of a worker."""
        self._thread_id = thread_id

    def next_stream(self) -> SampleStream:
        """Return the streams of the next healthy sample."""
        number = self._next_sample
        self._next_sample += 1
        return SampleStream((*self._seed_words, self._thread_id, number))


class InjectTumors(BasicTransform):
    """First transform of a training sample: carries out what was drawn when its crop was chosen."""

    def __init__(self, injectors: Sequence[TumorInjector], state: InjectionState, *, is_control: bool = False) -> None:
        """Create the transform.

        Args:
            injectors: Put tumours into crops, one for each target.
            state: State shared with the loader.
            is_control: Nothing is put in: the crop stays as it is.
        """
        super().__init__()
        self._injectors = tuple(injectors)
        self._state = state
        self._is_control = is_control

    def apply(self, data_dict: dict, **params: Any) -> dict:
        """Inject tumours into the sample if that was drawn; otherwise return it untouched."""
        draw = self._state.draws.popleft()
        crop = None
        if draw.request is not None and not self._is_control:
            image, labels = data_dict["image"][0].numpy(), data_dict["segmentation"][0].numpy()
            injector = self._injectors[draw.request.target]
            crop = injector.inject(image, labels, draw.request, SampleStream(draw.request.stream).rng(_TUMORS))
            if crop.placed:
                self._take_picture(image, crop, draw.request.centre[0], injector.rules)
                data_dict["image"] = torch.from_numpy(crop.image[None])
                data_dict["segmentation"] = torch.from_numpy(crop.labels[None])
        self._state.outcomes.append((draw, crop))
        return data_dict

    def _take_picture(
        self, image: NDArray[np.float32], crop: InjectedCrop, section: int, rules: InjectionRules
    ) -> None:
        if self._state.pictures_left > 0:
            self._state.pictures_left -= 1
            is_tumor = crop.labels == rules.tumor_label
            self._state.pictures.append(take_picture(rules.intensities, image, crop.image, is_tumor, section))


class TargetReader:
    """Tells whether a training target shows the tumour, be it a label map or one channel a region."""

    def __init__(self, label_manager: LabelManager, organ_label: int, tumor_label: int) -> None:
        """Find the tumour in nnU-Net's targets.

        Args:
            label_manager: nnU-Net's label manager.
            organ_label: Value of the organ.
            tumor_label: Value of the tumour.

        Raises:
            ConfigurationError: If no region tells the tumour from the organ.
        """
        self._tumor_label = tumor_label
        self._channels: list[int] | None = None
        if label_manager.has_regions:
            regions = [_values_of(region) for region in label_manager.foreground_regions]
            self._channels = [
                index for index, region in enumerate(regions) if tumor_label in region and organ_label not in region
            ]
            if not self._channels:
                raise ConfigurationError(
                    f"None of the regions {regions} in dataset.json holds the tumour label {tumor_label} without the "
                    f"organ label {organ_label}, so nothing could be learned about tumours. Add a region, "
                    f'e.g. "tumor": {tumor_label}, and its entry in regions_class_order.'
                )

    def shows_tumor(self, target: torch.Tensor) -> bool:
        """True if a sample's target has a voxel of the tumour. Shape (1, ...), or (regions, ...) for regions."""
        if self._channels is None:
            return bool((target == self._tumor_label).any())
        return bool(target[self._channels].any())

    def predicted_share(self, logits: torch.Tensor, tumor: torch.Tensor) -> float:
        """Share of a tumour's voxels that a network predicts as tumour.

        Args:
            logits: The network's output for one sample. Shape (classes or regions, D, H, W).
            tumor: True in the tumour, not empty. Shape (D, H, W).

        Returns:
            Share from 0 to 1.
        """
        if self._channels is None:
            return float((logits.argmax(dim=0)[tumor] == self._tumor_label).float().mean())
        return float((logits[self._channels] > 0).any(dim=0)[tumor].float().mean())


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
    """nnU-Net's loader; some samples of healthy cases get synthetic tumours before all other transforms.

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
        healthy_cases: Mapping[str, Sequence[int]],
        injection_probability: float,
        in_plane_only: bool,
        seed_words: Sequence[int],
        transforms: BasicTransform,
        target_weights: Sequence[float] | None = None,
        first_sample: int = 0,
        is_control: bool = False,
        **options: Any,
    ) -> None:
        """Create a loader.

        Args:
            data: Preprocessed cases.
            batch_size: Samples in a batch.
            patch_size: Size of the raw crop in voxels. (D, H, W).
            final_patch_size: Size of the network's patch in voxels. (D, H, W).
            label_manager: nnU-Net's label manager.
            injectors: Put tumours into crops, one for each target.
            healthy_cases: The cases that may get tumours, and the numbers of the targets that each may get.
            injection_probability: Share of the drawn healthy samples that get tumours.
            in_plane_only: The transforms rotate and scale within planes only.
            seed_words: Seed and rank; the worker and the number of the sample are added to them.
            transforms: nnU-Net's transforms of a training sample.
            target_weights: How often each target is drawn, relative to the others that a case may get.
            first_sample: Number of the first healthy sample of each worker.
            is_control: Choose cases and crops as ever, but put nothing in.
            options: Further options of nnU-Net's loader.
        """
        state = InjectionState(seed_words, first_sample)
        self._inject = InjectTumors(injectors, state, is_control=is_control)
        stack = ComposeTransforms([self._inject, transforms])
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
        self._healthy_cases = {case: tuple(targets) for case, targets in healthy_cases.items()}
        self._weights = np.asarray([1.0] * len(self._rules) if target_weights is None else target_weights)
        self._injection_probability = injection_probability
        self._is_control = is_control
        self._shows_labels = False
        self._geometry = PatchGeometry(_triple(patch_size), _triple(final_patch_size), in_plane_only)

    def inject_only(self) -> None:
        """Leave out all transforms but the injection: batches are raw crops with tumours."""
        self.transforms = self._inject
        self._shows_labels = True

    def tumor_label(self, number: int) -> int:
        """Value of the tumour of a target."""
        return self._rules[number].tumor_label

    def set_thread_id(self, thread_id: int) -> None:
        """Start this worker's own random stream; called by nnU-Net inside the worker."""
        super().set_thread_id(thread_id)
        self._state.set_worker(thread_id)

    def get_bbox(
        self,
        data_shape: Any,
        force_fg: bool,
        class_locations: Any,
        overwrite_class: Any = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Choose the crop: nnU-Net's, or one around the place of a tumour to inject."""
        lower, upper = super().get_bbox(data_shape, force_fg, class_locations, overwrite_class, verbose)
        draw = self._draw(data_shape, class_locations)
        self._state.draws.append(draw)
        self._state.labels = None
        if draw.request is not None:
            lower = list(draw.request.crop_start)
            upper = [start + int(size) for start, size in zip(lower, self.patch_size, strict=True)]
        return lower, upper

    def generate_train_batch(self) -> dict[str, Any]:
        """Make a batch as nnU-Net does, with a report of the injection under "difftumor"."""
        self._state.outcomes = []
        batch = super().generate_train_batch()
        batch[REPORT_KEY] = self._report(batch["target"])
        return batch

    def _draw(self, data_shape: Sequence[int], class_locations: Mapping[Any, Any]) -> SampleDraw:
        if self._state.case not in self._healthy_cases:
            return SampleDraw(is_healthy=False)
        stream = self._state.next_stream()
        rng = stream.rng(_CHOICE)
        if rng.random() >= self._injection_probability:
            return SampleDraw(is_healthy=True)
        organs = {
            target: self._organ_voxels(class_locations, self._rules[target].organ_label)
            for target in self._healthy_cases[self._state.case]
        }
        target = _choose({key: self._weights[key] for key, voxels in organs.items() if len(voxels)}, rng)
        if target is None:
            return SampleDraw(is_healthy=True, refusal="organ_lost_in_resampling")
        voxel = self._draw_voxel(organs[target], self._rules[target], rng)
        start = self._geometry.draw_crop_start(voxel, *self._stock_range(data_shape), rng)
        depth, height, width = (int(value) for value in voxel - np.asarray(start))
        request = InjectionRequest(
            case=self._state.case,
            crop_start=start,
            centre=(depth, height, width),
            region=self._geometry.region,
            target=target,
            stream=stream.words,
        )
        return SampleDraw(is_healthy=True, request=request)

    def _draw_voxel(
        self, voxels: Sequence[Any], rules: InjectionRules, rng: np.random.Generator
    ) -> NDArray[np.integer]:
        """Draw the place of a tumour among an organ's voxels, in the zone if one of some draws lies there."""
        depth_range_mm, labels = rules.zone.surface_distance_mm, self._state.labels
        for _ in range(_ZONE_TRIES):
            voxel = np.asarray(voxels[int(rng.integers(len(voxels)))][1:])
            if depth_range_mm is None or lies_at_depth(
                labels, voxel, rules.organ_label, PADDING_LABEL, rules.spacing_mm, depth_range_mm
            ):
                break
        return voxel

    def _organ_voxels(self, class_locations: Mapping[Any, Any], organ_label: int) -> Sequence[Any]:
        """Sampled voxels of the organ's label, or of the smallest region that holds it."""
        regions = [key for key in class_locations if key != self.annotated_classes_key]
        holding = [key for key in regions if organ_label in _values_of(key)]
        smallest = min(holding, key=lambda key: len(_values_of(key)), default=None)
        return () if smallest is None else class_locations[smallest]

    def _stock_range(self, data_shape: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Smallest and largest crop start that nnU-Net draws from for a case of this shape."""
        shape, size = np.asarray(data_shape), np.asarray(self.patch_size)
        padding = np.maximum(self.need_to_pad, size - shape)
        return -padding // 2, shape + padding // 2 + padding % 2 - size

    def _report(self, target: torch.Tensor | list[torch.Tensor]) -> dict[str, Any]:
        """Count what happened to the samples of a batch, tumours as seen in the final target."""
        finest = target[0] if isinstance(target, list) else target
        counts: Counter[str] = Counter()
        records, tumors = [], []
        for index, (draw, crop) in enumerate(self._state.outcomes):
            counts["healthy_samples"] += draw.is_healthy
            if draw.request is None and draw.refusal is None:
                continue
            if self._is_control:
                counts["control_samples"] += 1
                continue
            counts["attempted"] += 1
            number = draw.request.target if draw.request is not None else 0
            if crop is not None:
                counts["tumors_placed"] += crop.placed
                counts.update({f"tumors_rejected_{reason}": count for reason, count in crop.rejected.items()})
            if crop is None or not crop.placed:
                counts[f"rejected_{crop.main_reason if crop is not None else draw.refusal}"] += 1
            elif self._shows_tumor(finest[index], number):
                counts["injected"] += 1
                records.append(crop.record)
            else:
                counts["rejected_lost_in_augmentation"] += 1
            tumors += [(number, tumor) for tumor in (() if crop is None else crop.tumors)]
        pictures, self._state.pictures = self._state.pictures, []
        return {"counts": dict(counts), "records": records, "pictures": pictures, "tumors": tumors}

    def _shows_tumor(self, target: torch.Tensor, number: int) -> bool:
        if self._shows_labels:
            return bool((target == self._rules[number].tumor_label).any())
        return self._readers[number].shows_tumor(target)


def sampling_probabilities(
    identifiers: Sequence[str], healthy: Collection[str], healthy_share: float | None
) -> NDArray[np.float64] | None:
    """Probability of each case so that healthy ones make up a share of the samples.

    Args:
        identifiers: All training cases.
        healthy: Those that are healthy.
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


def _values_of(label_or_region: Any) -> tuple[int, ...]:
    return tuple(label_or_region) if isinstance(label_or_region, (tuple, list)) else (int(label_or_region),)


def _triple(sizes: Sequence[int] | NDArray[np.integer]) -> tuple[int, int, int]:
    depth, height, width = (int(size) for size in sizes)
    return depth, height, width
