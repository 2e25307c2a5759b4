"""What an evaluation of a generator is given and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.evaluation.realism.collection import Collection
from nnunet_difftumor.evaluation.realism.summary import Probes
from nnunet_difftumor.evaluation.realism.tumors.tumors_of_a_scan import Sources


@dataclass(frozen=True)
class OtherOrgan:
    """A scan with an organ that the generator never saw."""

    case: Case
    organ_label: int


@dataclass(frozen=True, eq=False)
class EvaluationInput:
    """What is evaluated, and on what.

    Attributes:
        sources: The generator, without donors.
        autoencoder: Its autoencoder, for the reconstruction error; None leaves that out.
        cases: Cases that it never saw.
        training_cases: Cases whose tumours widen the range of plausible means; may be empty.
        other_organs: Scans of organs that it never saw.
        description: Plain values that are written into the summary as they are.
    """

    sources: Sources
    autoencoder: Any
    cases: Sequence[Case]
    organ_label: int
    tumor_label: int
    training_cases: Sequence[Case] = ()
    other_organs: Sequence[OtherOrgan] = ()
    description: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was made and found.

    Attributes:
        summary: Content of summary.json.
        other: Tumours of the other organs, by name.
        window_hu: Window of all values in HU.
    """

    summary: dict[str, Any]
    collection: Collection
    other: Mapping[str, Collection]
    probes: Probes
    window_hu: tuple[float, float]
