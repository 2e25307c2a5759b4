"""What an evaluation of a generator is given and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.evaluation.realism.collection import Collection
from nnunet_difftumor.evaluation.realism.summary import Probes
from nnunet_difftumor.evaluation.realism.tumors.fills import FillingGenerator, Reconstruct
from nnunet_difftumor.tumor.appearance import AppearanceRule


@dataclass(frozen=True)
class OtherOrgan:
    """A scan with an organ that the generator never saw.

    Attributes:
        case: CT and label map.
    """

    case: Case
    organ_label: int


@dataclass(frozen=True, eq=False)
class EvaluationInput:
    """What is evaluated, and on what.

    Attributes:
        reconstruct: Its autoencoder, for arrays.
        autoencoder: Its autoencoder, for the reconstruction error; None leaves that out.
        cases: Cases that it never saw.
        tumor_label: Value of the tumour.
        looks: What requested looks are drawn from; without examples, the generator's training tumours.
        training_cases: Cases whose tumours widen the range of plausible means; may be empty.
        other_organs: Scans of organs that it never saw.
        description: Plain values that are written into the summary as they are.
    """

    generator: FillingGenerator
    reconstruct: Reconstruct
    autoencoder: Any
    cases: Sequence[Case]
    organ_label: int
    tumor_label: int
    looks: AppearanceRule = field(default_factory=AppearanceRule)
    training_cases: Sequence[Case] = ()
    other_organs: Sequence[OtherOrgan] = ()
    description: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was made and found.

    Attributes:
        summary: Content of summary.json.
        collection: Tumours of the data set.
        other: Tumours of the other organs, by name.
        probes: Results of the classifiers.
        window_hu: Window of all values in HU.
    """

    summary: dict[str, Any]
    collection: Collection
    other: Mapping[str, Collection]
    probes: Probes
    window_hu: tuple[float, float]
