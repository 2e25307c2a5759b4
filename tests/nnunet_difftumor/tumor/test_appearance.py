from __future__ import annotations

import numpy as np
import pytest

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule

EXAMPLES = (
    Appearance(contrast_hu=-30.0, heterogeneity_hu=12.0),
    Appearance(contrast_hu=-10.0, heterogeneity_hu=4.0),
    Appearance(contrast_hu=2.0, heterogeneity_hu=9.0),
)


def draw(rule: AppearanceRule, count: int = 200) -> list[Appearance]:
    rng = np.random.default_rng(0)
    return [rule.draw(rng) for _ in range(count)]


def test_contrast_and_heterogeneity_of_a_tumour_stay_together():
    assert set(draw(AppearanceRule(examples=EXAMPLES))) == set(EXAMPLES[:2])


def test_examples_without_visible_contrast_are_left_out_unless_there_are_no_others():
    assert all(look != EXAMPLES[2] for look in draw(AppearanceRule(examples=EXAMPLES)))
    assert set(draw(AppearanceRule(examples=EXAMPLES[2:]))) == {EXAMPLES[2]}


def test_a_range_replaces_one_value_and_keeps_the_other():
    looks = draw(AppearanceRule(examples=EXAMPLES, contrast_hu=(-25.0, -20.0)))
    assert all(look.contrast_hu is not None and -25.0 <= look.contrast_hu <= -20.0 for look in looks)
    assert {look.heterogeneity_hu for look in looks} == {12.0, 4.0, 9.0}


def test_nothing_known_leaves_both_to_the_generator():
    assert set(draw(AppearanceRule())) == {Appearance()}


@pytest.mark.parametrize("wrong", [{"contrast_hu": (5.0, -5.0)}, {"heterogeneity_hu": (-1.0, 4.0)}])
def test_a_wrong_range_is_named(wrong):
    with pytest.raises(DiffTumorError, match=next(iter(wrong))):
        AppearanceRule(**wrong)
