from __future__ import annotations

import numpy as np
import pytest

from diffusion.generator.folder_check import GeneratorFolderError
from diffusion.generator.info import EdgeStatistics
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.edge import Edge, draw_edge


def law_of(*bins: tuple[float, float, float]) -> tuple[EdgeStatistics, ...]:
    """A law from (smallest diameter, offset, width) in mm, with deviations of 0.5 and 0.3 mm."""
    return tuple(
        EdgeStatistics(
            from_diameter_mm=diameter_mm,
            tumors=5,
            offset_mm=offset_mm,
            offset_sd_mm=0.5,
            offset_interval_mm=(offset_mm - 1, offset_mm + 1),
            width_mm=width_mm,
            width_sd_mm=0.3,
            width_interval_mm=(width_mm - 1, width_mm + 1),
        )
        for diameter_mm, offset_mm, width_mm in bins
    )


def test_half_of_the_depth_lies_at_the_offset_and_the_width_is_from_a_quarter_to_three_quarters():
    edge = Edge(offset_mm=-2.0, width_mm=3.0)
    np.testing.assert_allclose(edge.share(np.array([-2.0, -3.5, -0.5])), [0.5, 0.75, 0.25], atol=1e-4)
    assert edge.share(np.array([edge.outer_mm, np.inf, -40.0])).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("radius_mm", [2.0, 4.0, 9.0, 30.0])
def test_a_small_tumour_keeps_a_visible_part_with_full_depth_in_its_middle(radius_mm: float):
    edge = Edge(offset_mm=-3.0, width_mm=4.0).limited_to(radius_mm)
    assert edge.offset_mm >= -0.6 * radius_mm - 1e-9
    assert edge.share(np.array([-radius_mm]))[0] == pytest.approx(1.0, abs=1e-6)
    assert edge.limited_to(radius_mm) == edge


def test_edges_follow_the_law_of_their_size():
    law, rng = law_of((0.0, -1.0, 1.5), (10.0, -2.0, 2.0), (20.0, 1.0, 3.0)), np.random.default_rng(0)
    for radius_mm, offset_mm, width_mm in ((4.9, -1.0, 1.5), (9.0, -2.0, 2.0), (15.0, 1.0, 3.0)):
        edges = [draw_edge(law, radius_mm, rng) for _ in range(800)]
        assert np.mean([edge.offset_mm for edge in edges]) == pytest.approx(offset_mm, abs=0.1)
        assert np.mean([edge.width_mm for edge in edges]) == pytest.approx(width_mm, abs=0.1)
        assert 0.3 < np.std([edge.offset_mm for edge in edges]) < 0.5


def test_without_a_law_half_of_the_depth_lies_at_the_outline():
    assert draw_edge((), 10.0, np.random.default_rng(0)) == Edge(offset_mm=0.0, width_mm=1.3)


def test_a_given_edge_is_drawn_as_it_is():
    law = (EdgeStatistics.exactly(-2.5, 2.0),)
    assert draw_edge(law, 20.0, np.random.default_rng(0)) == Edge(offset_mm=-2.5, width_mm=2.0)


def test_an_edge_without_width_is_refused():
    with pytest.raises(DiffTumorError, match="width_mm > 0, got 0"):
        Edge(offset_mm=-2.5, width_mm=0.0)


def test_a_law_of_no_numbers_is_refused():
    with pytest.raises((GeneratorFolderError, ValueError), match="offset_mm"):
        law_of((0.0, float("nan"), 1.0))
