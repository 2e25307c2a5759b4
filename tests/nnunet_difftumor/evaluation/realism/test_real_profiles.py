"""Real tumours and synthetic ones in their places: the same share of the depth at every millimetre from the outline.

Soft-tissue sarcomas of DIFFTUMOR_REAL_CT, not the paper's data. Odd patients get the edges of even ones, and so on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from diffusion.generator_folder import load_generator, read_generator_info
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.evaluation.realism.tumors.healthy_host import free_tissue
from nnunet_difftumor.evaluation.realism.tumors.making import make, place_of_target
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, read_scan
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.generator_names import resolve_generator
from nnunet_difftumor.synthesis.tissue.handcrafted import HandcraftedTissue
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.edge_law import pool_edges
from nnunet_difftumor.tumor.edge_profile import PROFILE_EDGES_MM, TumorEdge, measure_edge

REAL = Path(os.environ.get("DIFFTUMOR_REAL_CT", Path(__file__).parents[5] / "shared" / "data"))
DRAWS, LEAST_DEPTH_HU = 6, 15.0
JUDGED = slice(PROFILE_EDGES_MM.index(-6), PROFILE_EDGES_MM.index(6))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REAL / "sts").is_dir(), reason="DIFFTUMOR_REAL_CT names no folder with sts/"),
]


@pytest.fixture(scope="module")
def tumors() -> dict[str, tuple[EvaluationScan, TumorEdge]]:
    """The largest tumour of each patient in its scan, on the scan's own grid, and its edge."""
    found = {}
    for path in sorted((REAL / "sts").glob("*_ct.nii.gz")):
        name = path.name.removesuffix("_ct.nii.gz")
        case = Case(name, path, path.with_name(f"{name}_label.nii.gz"))
        scan = next(read_scan(case, 1, 2, (-175.0, 250.0), native=True).targets())
        edge = edge_of(scan, scan.image_hu)
        if edge is not None:
            found[name] = (scan, edge)
    return found


def edge_of(scan: EvaluationScan, image_hu: np.ndarray) -> TumorEdge | None:
    return measure_edge(image_hu, scan.target, scan.organ & ~scan.target, scan.spacing_mm)


def shares(edges: Sequence[TumorEdge | None]) -> np.ndarray:
    """Mean contrast over depth by millimetre, of one patient's tumours. Shape (bins,)."""
    profiles = [
        [np.nan if hu is None else hu / each.depth_hu for hu in each.profile_hu] for each in edges if each is not None
    ]
    return np.nanmean(profiles, axis=0)


def made_in_place(
    tumors: Mapping[str, tuple[EvaluationScan, TumorEdge]], name: str, synthesizer: TumorSynthesizer
) -> list[TumorEdge | None]:
    """Edges of tumours with the look of a patient's, drawn with the edges of the other half of the patients."""
    odd = {each: int(each[-3:]) % 2 for each in tumors}
    others = [each for each in tumors if odd[each] != odd[name]]
    law = pool_edges([tumors[each][1] for each in others], others, np.random.default_rng(0))
    (scan, real), rng = tumors[name], np.random.default_rng(int(name[-3:]))
    place = place_of_target(scan, "tumour", free_tissue(scan), rng, law)
    look = Appearance(contrast_hu=real.depth_hu, heterogeneity_hu=5.0)
    made = [make(place.asking(look, int(rng.integers(2**62)), draw), synthesizer) for draw in range(DRAWS)]
    edges = []
    for each in made:
        if each is not None:
            image_hu = place.host.image_hu.copy()
            image_hu[each.box] = each.image_hu
            edges.append(edge_of(scan, image_hu))
    return edges


@pytest.mark.parametrize("tissue", ["handcrafted", "builtin"])
def test_sarcomas_show_the_same_share_of_their_depth_real_and_synthetic(tumors, tissue) -> None:
    folder = resolve_generator("builtin:soft-tissue-tiny")
    if tissue == "builtin":
        synthesizer = TumorSynthesizer(DiffusionTissue(load_generator(folder)))
    else:
        synthesizer = TumorSynthesizer(HandcraftedTissue(read_generator_info(folder)))
    deep = {
        name: (scan, edge)
        for name, (scan, edge) in tumors.items()
        if edge.is_clear and abs(edge.depth_hu) >= LEAST_DEPTH_HU
    }
    drawn = {name: made_in_place(tumors, name, synthesizer) for name in deep}
    seen = {name: edges for name, edges in drawn.items() if edges}
    real = np.array([shares([deep[name][1]]) for name in seen])[:, JUDGED]
    made = np.array([shares(edges) for edges in seen.values()])[:, JUDGED]
    spread = np.nanstd(real, axis=0, ddof=1) * np.sqrt(2.0 / len(seen))  # between the means of two such groups
    difference = np.abs(np.nanmean(made, axis=0) - np.nanmean(real, axis=0))
    for name, values in (("real", np.nanmean(real, axis=0)), ("made", np.nanmean(made, axis=0)), ("sd", spread)):
        print(f"{tissue}, {len(seen)} of {len(deep)} patients, {name}: {np.round(values, 2)}")
    assert len(seen) >= 6
    assert (difference <= np.maximum(0.15, spread)).all(), np.round(difference, 2)
