from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import truncnorm

from diffusion.generator.info import EdgeStatistics
from nnunet_difftumor.errors import ConfigurationError, DiffTumorError
from nnunet_difftumor.synthesis.tissue.generator_names import DEFAULT_GENERATOR, default_target
from nnunet_difftumor.tumor.appearance import (
    LOWEST_TISSUE_HU,
    Appearance,
    AppearanceRule,
    TruncatedNormal,
)
from nnunet_difftumor.tumor.published_contrasts import (
    PUBLISHED_CONTRASTS_HU,
    TARGETS,
    edges_in_use,
    find_target,
    make_appearance_rule,
    published_edges,
)

EXAMPLES = (
    Appearance(contrast_hu=-30.0, heterogeneity_hu=12.0),
    Appearance(contrast_hu=-10.0, heterogeneity_hu=4.0),
    Appearance(contrast_hu=2.0, heterogeneity_hu=9.0),
    Appearance(contrast_hu=59.0, heterogeneity_hu=20.0),
)


def draw(rule: AppearanceRule, count: int = 400, seed: int = 0) -> list[Appearance]:
    rng = np.random.default_rng(seed)
    return [rule.draw(rng) for _ in range(count)]


def contrasts_hu(looks: list[Appearance]) -> list[float]:
    return [look.contrast_hu for look in looks if look.contrast_hu is not None]


def liver_contrasts_hu(host_hu: float | None, count: int = 1000) -> np.ndarray:
    rule, rng = make_appearance_rule("liver", examples=EXAMPLES), np.random.default_rng(0)
    return np.array([rule.draw(rng, scan_seed=scan, host_hu=host_hu).contrast_hu for scan in range(count)])


def test_the_prior_of_the_pancreas_is_darker_visible_and_within_what_a_generator_is_conditioned_on():
    from diffusion.conditioning import CONTRAST_LIMIT_HU

    contrast = PUBLISHED_CONTRASTS_HU["pancreas"]
    assert -CONTRAST_LIMIT_HU <= contrast.low < contrast.mean < contrast.high <= -AppearanceRule().smallest_contrast_hu


@pytest.mark.parametrize("host_hu", [0.0, 20.0, 60.0, 115.0, 146.0])
def test_no_liver_tumour_is_darker_than_soft_tissue_nor_too_faint_to_be_seen(host_hu):
    contrasts = liver_contrasts_hu(host_hu)
    assert (host_hu + contrasts).min() >= LOWEST_TISSUE_HU
    assert (np.abs(contrasts) < AppearanceRule().smallest_contrast_hu).mean() < 0.01


def test_liver_tumours_are_as_dark_as_the_measured_ones_in_their_livers_and_bright_in_fat():
    """The mean over the label of a small tumour is 0.55 of its depth: real ones have -37 HU (three patients)."""
    assert np.median(0.55 * liver_contrasts_hu(115.0)) == pytest.approx(-37.0, abs=4.0)
    assert np.median(liver_contrasts_hu(146.0)) == pytest.approx(-99.0, abs=5.0)
    assert (liver_contrasts_hu(0.0) > 0).all()
    assert 0.5 < (liver_contrasts_hu(60.0) < 0).mean() < 0.95  # some are brighter
    np.testing.assert_array_equal(liver_contrasts_hu(None, 50), liver_contrasts_hu(115.0, 50))


@pytest.mark.parametrize("organ", PUBLISHED_CONTRASTS_HU)
def test_draws_keep_the_limits_and_have_the_moments_of_a_truncated_normal(organ):
    prior = PUBLISHED_CONTRASTS_HU[organ]
    rng = np.random.default_rng(1)
    values = np.array([prior.at(share) for share in rng.random(4000)])
    assert values.min() >= prior.low
    assert values.max() <= prior.high
    ends = ((prior.low - prior.mean) / prior.sd, (prior.high - prior.mean) / prior.sd)
    expected = truncnorm(*ends, loc=prior.mean, scale=prior.sd)
    assert values.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / np.sqrt(len(values)))
    assert values.std() == pytest.approx(expected.std(), rel=0.05)


def test_the_same_random_numbers_give_the_same_looks():
    rule = make_appearance_rule("liver", examples=EXAMPLES)
    assert draw(rule, 20) == draw(rule, 20)
    assert draw(rule, 20) != draw(rule, 20, seed=1)


def test_a_range_is_stronger_than_the_prior_and_the_prior_than_the_training_tumours():
    ranged = draw(make_appearance_rule("liver", contrast_hu=(20.0, 25.0), examples=EXAMPLES))
    assert all(20 <= contrast <= 25 for contrast in contrasts_hu(ranged))
    published = draw(make_appearance_rule("liver", examples=EXAMPLES))
    assert not set(contrasts_hu(published)) & {-30.0, -10.0, 2.0, 59.0}
    assert max(contrasts_hu(published)) < 0
    assert set(contrasts_hu(draw(make_appearance_rule("training", examples=EXAMPLES)))) == {-30.0, -10.0, 59.0}


def test_with_a_published_contrast_heterogeneity_is_that_of_the_training_tumours_unless_a_range_is_given():
    assert {look.heterogeneity_hu for look in draw(make_appearance_rule("liver", examples=EXAMPLES))} == {
        12.0,
        4.0,
        9.0,
        20.0,
    }
    ranged = draw(make_appearance_rule("liver", heterogeneity_hu=(5.0, 6.0), examples=EXAMPLES))
    assert all(look.heterogeneity_hu is not None and 5 <= look.heterogeneity_hu <= 6 for look in ranged)
    assert {look.heterogeneity_hu for look in draw(make_appearance_rule("liver"))} == {None}


def test_hypodense_leaves_brighter_training_tumours_out_and_keeps_looks_together():
    assert set(draw(make_appearance_rule("hypodense", examples=EXAMPLES))) == set(EXAMPLES[:2])


def test_hypodense_never_falls_back_to_brighter_tumours():
    faint = (Appearance(contrast_hu=-3.0), Appearance(contrast_hu=59.0))
    assert set(contrasts_hu(draw(make_appearance_rule("hypodense", examples=faint)))) == {-3.0}
    with pytest.raises(DiffTumorError, match="none of the generator's 2 training tumours"):
        make_appearance_rule("hypodense", examples=EXAMPLES[2:])
    make_appearance_rule("hypodense", contrast_hu=(-30.0, -20.0), examples=EXAMPLES[2:])


@pytest.mark.parametrize(
    ("label", "target"),
    [
        ("liver", "liver"),
        ("Liver_parenchyma", "liver"),
        ("pancreas", "pancreas"),
        ("kidney", None),
        ("colon", None),
        ("liver and pancreas", None),
        ("sliver", None),
    ],
)
def test_organs_are_found_by_whole_words(label, target):
    assert find_target(label) == target


def test_defaults_trust_a_generator_of_the_users_and_correct_a_builtin_one():
    assert default_target("my/generator", "liver") == "training"
    assert default_target(DEFAULT_GENERATOR, "liver") == "liver"
    assert default_target(DEFAULT_GENERATOR, "kidney") == "hypodense"
    assert default_target(DEFAULT_GENERATOR) == "hypodense"


def test_an_unknown_target_is_refused_with_the_known_ones_and_another_way():
    with pytest.raises(ConfigurationError, match=r"liver, pancreas, hypodense, training.*contrast-hu"):
        make_appearance_rule("kidney")
    for target in TARGETS:
        make_appearance_rule(target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": 0.0, "sd": 0.0, "low": -1.0, "high": 1.0},
        {"mean": 5.0, "sd": 1.0, "low": -1.0, "high": 1.0},
        {"mean": 0.0, "sd": 1.0, "low": 0.0, "high": 0.0},
    ],
)
def test_a_distribution_without_room_is_refused(wrong):
    with pytest.raises(DiffTumorError, match="low <= mean <= high"):
        TruncatedNormal(**wrong)


def test_published_edges_are_for_generators_that_learned_from_other_tumours():
    own = (EdgeStatistics.exactly(1.0, 2.0),)
    assert edges_in_use("liver", own, is_own=True) == own
    assert (
        edges_in_use("liver", own, is_own=False) == edges_in_use("liver", (), is_own=True) == published_edges("liver")
    )
    assert edges_in_use("pancreas", own, is_own=False) == own
