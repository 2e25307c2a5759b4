"""All tumours of an evaluation, made scan by scan and measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.evaluation.realism.measures.textures import seed_diversity_hu
from nnunet_difftumor.evaluation.realism.measures.tumors import TumorMeasures, measure_tumor
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors import tumors_of_a_scan as experiments
from nnunet_difftumor.evaluation.realism.tumors.making import MadeTumor
from nnunet_difftumor.evaluation.realism.tumors.places import find_places
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, read_scan
from nnunet_difftumor.evaluation.realism.tumors.tumors_of_a_scan import Sources


@dataclass(frozen=True, eq=False)
class MeasuredTumor:
    """A tumour with its measures."""

    made: MadeTumor
    measures: TumorMeasures


@dataclass(frozen=True, eq=False)
class Collection:
    """Everything that was made of a group of scans.

    Attributes:
        in_place: Real tumours, and what replaced them.
        transplants: Tumours in tumour-free tissue.
        contrasts: Transplants with requested contrasts.
        heterogeneities: Transplants with requested heterogeneities.
        native: Transplants on the scans' own grids.
        balls: Radius in mm, low-pass and high-pass sd in HU of balls in real tumours, by patient.
        shrunken: The same of real tumours made as small as the transplants.
        diversity: Difference between seeds in HU, by patient.
        failed: Transplants without a place by radius.
    """

    in_place: list[MeasuredTumor] = field(default_factory=list)
    transplants: list[MeasuredTumor] = field(default_factory=list)
    contrasts: list[MeasuredTumor] = field(default_factory=list)
    heterogeneities: list[MeasuredTumor] = field(default_factory=list)
    native: list[MeasuredTumor] = field(default_factory=list)
    balls: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    shrunken: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    diversity: dict[str, list[float]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)

    def rows(self) -> list[tuple[str, TumorMeasures]]:
        """Measures of all tumours with the name of their experiment."""
        groups = {
            "in place": self.in_place,
            "transplant": self.transplants,
            "requested contrast": self.contrasts,
            "requested heterogeneity": self.heterogeneities,
            "transplant, native grid": self.native,
        }
        return [(name, tumor.measures) for name, group in groups.items() for tumor in group]


def collect(
    scans: Sequence[EvaluationScan],
    sources: Sources,
    settings: EvaluationSettings,
    rng: np.random.Generator,
    *,
    heading: str,
) -> Collection:
    """Make and measure the tumours of scans.

    Args:
        scans: Scans that the generator never saw.
        sources: Where tissue comes from.
        heading: What the progress bar says.
    """
    window_hu = sources.generator.window_hu
    collection = Collection()
    for scan in tqdm(scans, desc=heading, unit="scan"):
        organ_sd_hu = experiments.organ_highpass_sd_hu(scan, window_hu)

        def measured(made: Sequence[MadeTumor], organ_sd_hu: float = organ_sd_hu) -> list[MeasuredTumor]:
            return [MeasuredTumor(tumor, measure_tumor(tumor, window_hu, organ_sd_hu)) for tumor in made]

        if scan.has_target:
            collection.in_place.extend(measured(experiments.replace_target(scan, sources, settings, rng)))
            collection.balls[scan.identifier] = experiments.balls_in_target(scan, settings, window_hu, rng)
            collection.shrunken[scan.identifier] = experiments.shrunken_target(scan, settings, window_hu)
        transplants, failed = experiments.transplant(scan, sources, settings, rng)
        collection.failed.update(failed)
        collection.diversity[scan.identifier] = _diversity(transplants)
        collection.transplants.extend(measured([made for made in transplants if experiments.is_first_draw(made)]))
        contrasts, heterogeneities = experiments.request_looks(scan, sources, settings, rng)
        collection.contrasts.extend(measured(contrasts))
        collection.heterogeneities.extend(measured(heterogeneities))
    return collection


def collect_native(
    collection: Collection,
    cases: Sequence[Case],
    labels: tuple[int, int | None],
    sources: Sources,
    settings: EvaluationSettings,
    rng: np.random.Generator,
) -> None:
    """Add transplants on the scans' own grids, one for each radius.

    Args:
        collection: Where to add them.
        labels: Values of organ and tumour.
        sources: Where tissue comes from; its donors are not used, since they lie on another grid.
    """
    window_hu = sources.generator.window_hu
    without_donors = Sources(sources.generator, sources.reconstruct, looks=sources.looks)
    for case in tqdm(cases, desc="native grid", unit="scan"):
        scan = read_scan(case, *labels, native=True)
        rule = sources.generator.roi_rule
        places, _ = find_places(scan, settings.native_radii_mm, 1, sources.looks, rule, rng)
        for made in experiments.make_at(places, without_donors, rng):
            collection.native.append(MeasuredTumor(made, measure_tumor(made, window_hu, float("nan"))))


def _diversity(transplants: Sequence[MadeTumor]) -> list[float]:
    """Difference between the seeds of every transplant that was repeated, in HU."""
    repeated = {made.place.name for made in transplants if not experiments.is_first_draw(made)}
    result = []
    for name in sorted(repeated):
        same = [made for made in transplants if made.place.name == name and made.method == making.GENERATED]
        images = [made.image_hu for made in same]
        result.append(seed_diversity_hu(images, same[0].place.label, same[0].place.scan.spacing_mm))
    return result
