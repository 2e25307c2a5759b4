from __future__ import annotations

import numpy as np
import pytest

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.appearance import (
    LARGEST_CONTRAST_HU,
    LOWEST_TISSUE_HU,
    Appearance,
    AppearanceRule,
    TruncatedNormal,
)

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


def contrasts_hu(rule: AppearanceRule, scans: int, tumors: int, host_hu: float | None = None) -> np.ndarray:
    """Contrasts of shape (scans, tumors)."""
    rng = np.random.default_rng(0)
    looks = [[rule.draw(rng, scan_seed=scan, host_hu=host_hu) for _ in range(tumors)] for scan in range(scans)]
    return np.array([[look.contrast_hu for look in of_scan] for of_scan in looks])


PRIOR = TruncatedNormal(mean=-40.0, sd=15.0, low=-70.0, high=-10.0)
MANY = tuple(Appearance(contrast_hu=-70.0 + 0.1 * index, heterogeneity_hu=5.0) for index in range(600))


@pytest.mark.parametrize(
    "rule",
    [
        AppearanceRule(contrast_hu=(-70.0, -10.0)),
        AppearanceRule(contrast_prior_hu=PRIOR),
        AppearanceRule(examples=MANY),
    ],
    ids=["range", "prior", "examples"],
)
def test_contrasts_of_a_scan_are_alike_and_those_of_all_scans_follow_the_rule(rule):
    drawn = contrasts_hu(rule, 400, 3)
    ranks = drawn.argsort(axis=None).argsort().reshape(drawn.shape)
    assert np.corrcoef(ranks[:, 0], ranks[:, 1])[0, 1] == pytest.approx(0.48, abs=0.12)  # of ranks, at 0.5 of scores
    expected = [PRIOR.at(share) if rule.contrast_prior_hu else -70.0 + 60.0 * share for share in (0.1, 0.5, 0.9)]
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(expected, abs=3.0)


def test_the_share_of_a_scan_does_not_depend_on_its_other_tumours():
    rule = AppearanceRule(contrast_hu=(-70.0, -10.0))
    first = rule.draw(np.random.default_rng(5), scan_seed=3)
    rule.draw(np.random.default_rng(6), scan_seed=3)
    assert rule.draw(np.random.default_rng(5), scan_seed=3) == first
    assert rule.draw(np.random.default_rng(5), scan_seed=4) != first


@pytest.mark.parametrize("host_hu", [0.0, 20.0, 60.0, 115.0])
def test_no_rule_asks_for_tissue_below_the_floor(host_hu):
    for rule in (AppearanceRule(contrast_prior_hu=PRIOR), AppearanceRule(examples=MANY)):
        assert host_hu + contrasts_hu(rule, 50, 2, host_hu).min() >= LOWEST_TISSUE_HU - 1e-9


def test_a_given_range_is_stronger_than_the_floor():
    rule = AppearanceRule(contrast_hu=(-40.0, -20.0))
    assert set(contrasts_hu(rule, 20, 2, 0.0).ravel()) == {-20.0}
    assert contrasts_hu(rule, 50, 2, 40.0).min() == LOWEST_TISSUE_HU - 40.0
    assert contrasts_hu(rule, 50, 2, 115.0).min() < -35.0


def test_contrasts_are_limited_unless_a_range_is_given():
    limit_hu = LARGEST_CONTRAST_HU
    deep = (Appearance(contrast_hu=-2.0 * limit_hu), Appearance(contrast_hu=2.0 * limit_hu))
    assert set(contrasts_hu(AppearanceRule(examples=deep), 20, 2).ravel()) == {-limit_hu, limit_hu}
    given = AppearanceRule(contrast_hu=(-2.0 * limit_hu, -1.5 * limit_hu))
    assert contrasts_hu(given, 5, 2).max() <= -1.5 * limit_hu


def test_heterogeneity_has_the_room_of_the_tumours_size_and_nine_in_ten_examples_have_more_than_the_rest():
    sds_hu = [*np.linspace(2.0, 20.0, 19), 60.0]
    examples = tuple(Appearance(contrast_hu=-30.0, heterogeneity_hu=sd_hu) for sd_hu in sds_hu)
    rng = np.random.default_rng(0)
    for radius_mm, largest_hu in ((3.0, 5.0), (5.0, 5.0), (10.0, 10.0), (40.0, np.percentile(sds_hu, 90))):
        drawn = [AppearanceRule(examples=examples).draw(rng, radius_mm=radius_mm) for _ in range(300)]
        assert max(look.heterogeneity_hu or 0.0 for look in drawn) == pytest.approx(largest_hu)
    given = AppearanceRule(examples=examples, heterogeneity_hu=(30.0, 30.0))
    assert given.draw(rng, radius_mm=3.0).heterogeneity_hu == 30.0


def test_nothing_known_leaves_both_to_the_generator():
    assert set(draw(AppearanceRule())) == {Appearance()}


@pytest.mark.parametrize("wrong", [{"contrast_hu": (5.0, -5.0)}, {"heterogeneity_hu": (-1.0, 4.0)}])
def test_a_wrong_range_is_named(wrong):
    with pytest.raises(DiffTumorError, match=next(iter(wrong))):
        AppearanceRule(**wrong)
