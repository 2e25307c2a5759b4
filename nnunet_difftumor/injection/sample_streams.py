"""Which samples carry tumours, the random numbers of a worker's samples, and what its samples were."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_difftumor.injection.case_tumors import CaseTumors
from nnunet_difftumor.injection.log import SamplePicture
from nnunet_difftumor.injection.records import InjectedCrop, InjectionRequest

_PICTURES_PER_WORKER = 4


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
        target_weights: How often each target is drawn, relative to the others that a case may get; None: all alike.
        first_sample: Number of the first sample of each worker.
        is_control: Choose cases and crops as ever, but put nothing in.
        is_misplaced: Label the tumours at other places than those they are put in.
    """

    healthy: HostCases
    annotated: HostCases
    seed_words: Sequence[int]
    target_weights: Sequence[float] | None = None
    first_sample: int = 0
    is_control: bool = False
    is_misplaced: bool = False


@dataclass(frozen=True)
class SampleStream:
    """Random streams of one sample of a case that may carry tumours, the same in every run that has its four words.

    Attributes:
        words: Seed of the training, rank, worker, and number of the sample in that worker.
    """

    words: tuple[int, ...]

    def rng(self, purpose: int) -> np.random.Generator:
        """Return the generator of one purpose, independent of the others."""
        return np.random.default_rng(np.random.SeedSequence(list(self.words), spawn_key=(purpose,)))


@dataclass(frozen=True)
class SampleDraw:
    """What was drawn for one sample before its crop was cut.

    Attributes:
        is_carrying: The case carries synthetic tumours.
        request: Those that reach the crop; None if none does.
        refusal: Why the case carries none although it was drawn; None if there is no such reason.
        tumors: The tumours of the whole case, those that no place has room for included.
    """

    case: str
    is_carrying: bool = False
    request: InjectionRequest | None = None
    refusal: str | None = None
    tumors: CaseTumors = field(default_factory=CaseTumors)
    target: int = 0
    stream: SampleStream = SampleStream(())


class InjectionState:
    """What `get_bbox`, the first transform and the loader share within one worker.

    Attributes:
        case: Identifier of the case that was loaded last.
        labels: Its labels as nnU-Net stores them, until its crop is chosen. Shape (1, D, H, W).
        real_voxels: Voxels of the annotated tumours of cases, by case and class, as far as they were counted.
        draws: Draws of samples whose transforms are still to run.
        outcomes: Draws and injected crops of the batch in the making.
        pictures: Pictures that were not handed over yet.
    """

    def __init__(self, seed_words: Sequence[int], first_sample: int = 0) -> None:
        """Start at the first sample; a continued training starts beyond those it has used (see `SamplingPlan`)."""
        self.case = ""
        self.labels: Any = None
        self.real_voxels: defaultdict[str, dict[Any, int]] = defaultdict(dict)
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
        """Return the streams of the next sample of a case that may carry tumours."""
        number = self._next_sample
        self._next_sample += 1
        return SampleStream((*self._seed_words, self._thread_id, number))
