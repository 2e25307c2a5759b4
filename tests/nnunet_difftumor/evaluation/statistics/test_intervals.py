"""Intervals and tests on simulated patients with several tumours each, where the truth is known."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import expit

from nnunet_difftumor.evaluation.statistics.intervals import (
    NO_DIFFERENCE,
    OUTWEIGHED,
    SAME_DIFFERENCE,
    SMALLEST_BOOTSTRAP,
    SMALLEST_HOSPITALS,
    critical_value,
    hospital_interval,
    interval_ends,
    patient_interval,
    seed_interval,
)
from nnunet_difftumor.evaluation.statistics.paired_tests import holm, sign_flip_p_value, wilcoxon_p_value
from nnunet_difftumor.evaluation.statistics.roc import area_difference, area_interval, area_under_curve
from nnunet_difftumor.evaluation.statistics.scales import (
    COUNT,
    DIFFERENCE,
    HIT_DIFFERENCE,
    HIT_SHARE,
    SHARE,
    SHARE_DIFFERENCE,
    pooled_mean,
)

DRAWS = 1000
MOST_TUMORS = 8


@dataclass(frozen=True)
class World:
    """How patients and tumours come about.

    Attributes:
        level: Mean of the latent ease of finding a tumour, in probit units.
        patient_sd: Spread of that ease between patients: what makes tumours of one patient alike.
        count_slope: How the number of tumours goes with that ease (several tumours, each harder: negative).
        effect: What the second arm gains.
    """

    level: float
    patient_sd: float = 1.0
    count_slope: float = 0.0
    effect: float = 0.0


WORLDS = {
    "moderate": World(0.7, effect=0.3),
    "many tumours, found more easily": World(1.5, count_slope=0.3, effect=0.5),
    "many tumours, found less easily": World(0.7, count_slope=-0.3, effect=0.8),
    "half found": World(0.0, patient_sd=0.7, effect=0.4),
}
NEARLY_ALL_FOUND = World(2.5, effect=0.5)


def draw_patients(world, shape, rng):
    """Tumours, then found tumours, mean Dice and false positives in both arms. Arrays of shape (..., patients)."""
    ease = rng.normal(0, world.patient_sd, shape)
    tumors = np.minimum(1 + rng.poisson(1.2 * np.exp(world.count_slope * ease)), MOST_TUMORS)
    exists = np.arange(MOST_TUMORS) < tumors[..., None]
    shared = rng.normal(size=(*shape, MOST_TUMORS))
    found, dice, false_positives = [], [], []
    for effect in (0.0, world.effect):
        own = rng.normal(size=(*shape, MOST_TUMORS))
        is_found = ((world.level + effect + ease[..., None] + shared + own) > 0) & exists
        overlap = np.clip(expit(1.1 + 0.4 * ease[..., None] + 0.5 * shared + 0.4 * own), 0.1, 1.0)
        found.append(is_found.sum(-1).astype(float))
        dice.append(np.where(is_found, overlap, 0.0).sum(-1) / tumors)
        rate = 0.8 * np.exp(0.8 * rng.normal(size=shape) - 0.32 + 0.3 * ease)
        false_positives.append(rng.poisson(rate).astype(float))
    return tumors.astype(float), found, dice, false_positives


def figures(world, shape, rng):
    """Name: totals, weights, scale. The figures of a comparison that have an interval."""
    tumors, found, dice, false_positives = draw_patients(world, shape, rng)
    ones = np.ones(shape)
    return {
        "sensitivity": (found[0], tumors, HIT_SHARE),
        "Dice": (dice[0], ones, SHARE),
        "false positives": (false_positives[0], ones, COUNT),
        "difference of sensitivity": (found[1] - found[0], tumors, HIT_DIFFERENCE),
        "difference of Dice": (dice[1] - dice[0], ones, DIFFERENCE),
        "difference of false positives": (false_positives[1] - false_positives[0], ones, DIFFERENCE),
    }


def measure_coverage(world, patients, repetitions, seed=0):
    """Share of simulated studies whose 95% interval holds the truth, for each figure."""
    rng = np.random.default_rng(seed)
    truth = {
        name: float(pooled_mean(totals.ravel(), weights.ravel()))
        for name, (totals, weights, _) in figures(world, (20, 100_000), rng).items()
    }
    held = dict.fromkeys(truth, 0.0)
    block = 1000
    for _ in range(repetitions // block):
        for name, (totals, weights, scale) in figures(world, (block, patients), rng).items():
            critical = critical_value(totals, weights, scale, SMALLEST_BOOTSTRAP, draws=DRAWS, rng=rng)
            low, high = interval_ends(totals, weights, scale, critical)
            held[name] += float(((low <= truth[name]) & (truth[name] <= high)).sum())
    return {name: count / repetitions for name, count in held.items()}


@pytest.mark.parametrize(("patients", "studies"), [(10, 4000), (30, 3000), (100, 2000)])
def test_intervals_hold_the_truth_for_clustered_tumors(patients, studies):
    coverage = measure_coverage(WORLDS["moderate"], patients, studies)
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage


@pytest.mark.slow
@pytest.mark.parametrize("patients", [10, 20, 30, 50, 100])
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_hold_the_truth_in_every_world(name, patients):
    coverage = measure_coverage(WORLDS[name], patients, 20_000, seed=1)
    print(f"\n{name}, {patients} patients: {coverage}")
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage


@pytest.mark.slow
@pytest.mark.parametrize("patients", [10, 20, 30, 50, 100])
def test_intervals_are_not_too_short_where_nearly_all_is_found(patients):
    coverage = measure_coverage(NEARLY_ALL_FOUND, patients, 20_000, seed=2)
    print(f"\nnearly all found, {patients} patients: {coverage}")
    assert all(share >= 0.93 for share in coverage.values()), coverage
    assert patients < 30 or all(share <= 0.97 for share in coverage.values()), coverage


def percentile_ends(totals, weights, rng):
    """The plain interval: 2.5 and 97.5 percentile of resampled patients."""
    patients = totals.shape[-1]
    counts = rng.multinomial(patients, np.full(patients, 1 / patients), size=DRAWS).T
    return np.percentile((totals @ counts) / (weights @ counts), [2.5, 97.5], axis=-1)


@pytest.mark.parametrize(("patients", "most"), [(10, 0.93), (30, 0.945)])
def test_percentile_intervals_are_too_short_which_is_why_they_are_not_used(patients, most):
    rng = np.random.default_rng(15)
    truth = {
        name: float(pooled_mean(totals.ravel(), weights.ravel()))
        for name, (totals, weights, _) in figures(WORLDS["moderate"], (20, 100_000), rng).items()
    }
    for name, (totals, weights, _) in figures(WORLDS["moderate"], (3000, patients), rng).items():
        low, high = percentile_ends(totals, weights, rng)
        assert ((low <= truth[name]) & (truth[name] <= high)).mean() < most, name


def measure_false_positive_rates(world, patients, repetitions, seed):
    """Share of studies with p of at most 0.05 for two arms that are alike, for each test."""
    rng = np.random.default_rng(seed)
    counts = {"permutation, sensitivity": 0, "permutation, false positives": 0, "Dice by the rule": 0, "interval": 0}
    block = 1000
    for _ in range(repetitions // block):
        tumors, found, dice, false_positives = draw_patients(world, (block, patients), rng)
        difference = dice[1] - dice[0]
        p_values = {
            "permutation, sensitivity": sign_flip_p_value(found[1] - found[0], draws=DRAWS, rng=rng, is_of_hits=True),
            "permutation, false positives": sign_flip_p_value(
                false_positives[1] - false_positives[0], draws=DRAWS, rng=rng
            ),
            "Dice by the rule": wilcoxon_p_value(difference)
            if patients >= 30
            else sign_flip_p_value(difference, draws=DRAWS, rng=rng),
        }
        for name, values in p_values.items():
            counts[name] += int((values <= 0.05).sum())
        totals = found[1] - found[0]
        critical = critical_value(totals, tumors, HIT_DIFFERENCE, SMALLEST_BOOTSTRAP, draws=DRAWS, rng=rng)
        low, high = interval_ends(totals, tumors, HIT_DIFFERENCE, critical)
        counts["interval"] += int(((low > 0) | (high < 0)).sum())
    return {name: count / repetitions for name, count in counts.items()}


@pytest.mark.parametrize("patients", [10, 30])
def test_no_effect_is_seldom_called_one(patients):
    rates = measure_false_positive_rates(World(0.7), patients, 4000, seed=3)
    assert all(0.01 <= rate <= 0.06 for rate in rates.values()), rates


@pytest.mark.slow
@pytest.mark.parametrize("patients", [10, 20, 30, 50, 100])
@pytest.mark.parametrize("name", WORLDS)
def test_no_effect_is_seldom_called_one_in_every_world(name, patients):
    world = World(WORLDS[name].level, WORLDS[name].patient_sd, WORLDS[name].count_slope)
    rates = measure_false_positive_rates(world, patients, 20_000, seed=4)
    print(f"\n{name}, {patients} patients: {rates}")
    assert all(rate <= 0.06 for rate in rates.values()), rates


def test_holm_keeps_the_family_wise_error_over_organs_and_bins():
    rng = np.random.default_rng(5)
    studies = 2000
    p_values = np.stack(
        [
            sign_flip_p_value(found[1] - found[0], draws=DRAWS, rng=rng, is_of_hits=True)
            for _, found, _, _ in (draw_patients(World(0.7), (studies, 30), rng) for _ in range(8))
        ]
    )
    called = sum(min(holm(list(family))) <= 0.05 for family in p_values.T)
    assert called / studies <= 0.06
    assert (p_values.min(axis=0) <= 0.05).mean() > 0.2  # without it, one of eight is often called an effect


def draw_hospitals(hospitals, shape, rng):
    """Sums by hospital of Dice and of its difference, and patients; hospitals differ in size, level and effect."""
    most = 60
    patients = rng.integers(8, most, (*shape, hospitals))
    exists = np.arange(most) < patients[..., None]
    each = (*shape, hospitals, most)
    level = rng.normal(0, 0.5, (*shape, hospitals, 1))
    dice = expit(0.6 + level + rng.normal(0, 0.9, each)) * (rng.random(each) >= 0.12)
    effect = rng.normal(0.03, 0.06, (*shape, hospitals, 1))
    difference = effect + rng.normal(0, 0.12, each) * (rng.random(each) < 0.8)
    return (dice * exists).sum(-1), (difference * exists).sum(-1), patients.astype(float)


def measure_hospital_coverage(hospitals, repetitions, seed):
    rng = np.random.default_rng(seed)
    dice, _, patients = draw_hospitals(hospitals, (200_000 // hospitals,), rng)
    truth = {"Dice": dice.sum() / patients.sum(), "difference": 0.03}
    held = dict.fromkeys(truth, 0)
    for _ in range(repetitions // 500):
        dice, difference, patients = draw_hospitals(hospitals, (500,), rng)
        for name, totals, scale in (("Dice", dice, SHARE), ("difference", difference, DIFFERENCE)):
            critical = critical_value(totals, patients, scale, SMALLEST_HOSPITALS, draws=DRAWS, rng=rng)
            low, high = interval_ends(totals, patients, scale, critical)
            held[name] += int(((low <= truth[name]) & (truth[name] <= high)).sum())
    return {name: count / repetitions for name, count in held.items()}


def test_resampled_hospitals_hold_the_truth_from_six_on():
    coverage = measure_hospital_coverage(6, 2000, seed=6)
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage


@pytest.mark.slow
@pytest.mark.parametrize("hospitals", [6, 8, 12, 20, 40])
def test_resampled_hospitals_hold_the_truth(hospitals):
    coverage = measure_hospital_coverage(hospitals, 10_000, seed=7)
    print(f"\n{hospitals} hospitals: {coverage}")
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage


def test_areas_under_the_curve_and_their_differences_hold_the_truth():
    rng = np.random.default_rng(8)
    is_positive = np.repeat([True, False], [30, 20])
    patients = np.arange(50)
    truth = [stats.norm.cdf(shift / np.sqrt(2)) for shift in (1.0, 1.3)]
    held, studies = np.zeros(3), 2000
    for _ in range(studies):
        shared = rng.normal(size=50)
        areas = [
            area_under_curve(
                0.7 * shared + 0.714 * rng.normal(size=50) + shift * is_positive, is_positive, patients, 50
            )
            for shift in (1.0, 1.3)
        ]
        estimates = [area_interval(areas[0]), area_interval(areas[1]), area_difference(areas[1], areas[0])[0]]
        true = [*truth, truth[1] - truth[0]]
        held += [each.low <= value <= each.high for each, value in zip(estimates, true, strict=True)]
    assert np.all((held / studies >= 0.93) & (held / studies <= 0.975)), held / studies


def test_area_of_single_scans_is_delongs():
    scores = np.array([0.9, 0.8, 0.4, 0.7, 0.3, 0.2, 0.4])
    is_positive = np.array([True, True, True, True, False, False, False])
    area = area_under_curve(scores, is_positive, np.arange(7), 7)
    wins = (scores[:4, None] > scores[None, 4:]) + 0.5 * (scores[:4, None] == scores[None, 4:])  # (4, 3)
    assert area.value == pytest.approx(wins.mean())
    variance = wins.mean(1).var(ddof=1) / 4 + wins.mean(0).var(ddof=1) / 3  # DeLong 1988
    difference, _ = area_difference(area, area_under_curve(np.zeros(7), is_positive, np.arange(7), 7))
    assert difference.high - difference.value == pytest.approx(area.critical_value * np.sqrt(variance))


def test_copied_scans_of_a_patient_do_not_narrow_the_interval_of_the_area():
    rng = np.random.default_rng(9)
    is_positive = np.repeat([True, False], [20, 15])
    scores = rng.normal(size=35) + is_positive
    once = area_interval(area_under_curve(scores, is_positive, np.arange(35), 35))
    patients = np.repeat(np.arange(35), 3)
    thrice = area_interval(area_under_curve(np.repeat(scores, 3), np.repeat(is_positive, 3), patients, 35))
    assert_allclose([thrice.value, thrice.low, thrice.high], [once.value, once.low, once.high])


@pytest.mark.parametrize("seed_sd", [0.0, 0.05])
def test_trainings_vary_and_the_interval_over_seeds_says_so(seed_sd):
    rng = np.random.default_rng(10)
    patients, seeds, studies, held, held_without = 30, 3, 2000, 0, 0
    weights = np.ones(patients)
    for _ in range(studies):
        shared = rng.normal(0.03, 0.15, patients)
        arm, baseline = (rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 0.1, (seeds, patients)) for _ in range(2))
        estimate = seed_interval(arm + shared, baseline, weights, DIFFERENCE)
        held += estimate.low <= 0.03 <= estimate.high
        low, high = interval_ends(shared + arm.mean(0) - baseline.mean(0), weights, DIFFERENCE, stats.t.ppf(0.975, 29))
        held_without += low <= 0.03 <= high
    assert 0.93 <= held / studies <= 0.97
    if seed_sd:
        assert held_without / studies < 0.8  # patients alone do not know that another training would differ


def test_two_seeds_give_no_interval_over_seeds():
    assert seed_interval(np.zeros((2, 12)), np.zeros((3, 12)), np.ones(12), DIFFERENCE) is None


def test_interval_of_differences_is_students_below_thirty_patients():
    differences = np.random.default_rng(11).normal(0.05, 0.1, 17)
    estimate = patient_interval(differences, np.ones(17), DIFFERENCE, draws=DRAWS, rng=np.random.default_rng(0))
    expected = stats.ttest_1samp(differences, 0).confidence_interval()
    assert_allclose([estimate.value, estimate.low, estimate.high], [differences.mean(), expected.low, expected.high])
    assert "Student" in estimate.method


@pytest.mark.parametrize("scale", [SHARE_DIFFERENCE, HIT_DIFFERENCE])
def test_no_interval_of_a_difference_of_shares_leaves_the_scale(scale):
    """Student's t in four patients would end at 1.3, which no difference of two shares can be."""
    differences = np.array([1.0, 1.0, 0.0, 0.2])
    estimate = patient_interval(differences, np.ones(4), scale, draws=DRAWS, rng=np.random.default_rng(0))
    assert stats.ttest_1samp(differences, 0).confidence_interval().high > 1.3
    assert estimate.high == 1.0
    of_counts = patient_interval(differences, np.ones(4), DIFFERENCE, draws=DRAWS, rng=np.random.default_rng(0))
    assert of_counts.high > 1.3
    if scale is SHARE_DIFFERENCE:
        assert of_counts.low == pytest.approx(estimate.low)


def test_thirty_patients_are_resampled():
    differences = np.random.default_rng(12).normal(size=30)
    estimate = patient_interval(differences, np.ones(30), DIFFERENCE, draws=DRAWS, rng=np.random.default_rng(0))
    again = patient_interval(differences, np.ones(30), DIFFERENCE, draws=DRAWS, rng=np.random.default_rng(0))
    assert estimate == again
    assert "bootstrap" in estimate.method


def test_interval_does_not_care_how_often_the_tumors_of_a_patient_are_copied():
    rng = np.random.default_rng(13)
    found, tumors = rng.integers(0, 4, 40).astype(float), np.full(40, 3.0)
    scale = DIFFERENCE  # without the parts of patients that are added at the ends
    once = interval_ends(found, tumors, scale, 2.0)
    assert_allclose(interval_ends(found * 5, tumors * 5, scale, 2.0), once)


def test_all_found_in_twelve_patients_is_no_certainty():
    estimate = patient_interval(
        np.full(12, 2.0), np.full(12, 2.0), HIT_SHARE, draws=DRAWS, rng=np.random.default_rng(0)
    )
    assert estimate.value == 1.0
    assert 0.6 < estimate.low < 0.95
    assert estimate.high == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("scale", "found"), [(SHARE, 0), (SHARE, 1), (HIT_SHARE, 0), (HIT_SHARE, 1), (HIT_DIFFERENCE, -1)]
)
def test_an_interval_holds_its_own_figure_at_the_ends_of_the_scale(scale, found):
    """An arm that finds nothing at all has sensitivity 0, and 0 is within its interval."""
    for patients in (4, 12, 40):
        totals = np.full(patients, float(found))
        estimate = patient_interval(totals, np.ones(patients), scale, draws=DRAWS, rng=np.random.default_rng(0))
        assert estimate.low <= estimate.value == found <= estimate.high
        assert estimate.high - estimate.low > 0.05


@pytest.mark.parametrize("misses", [0, 1, 2, 3])
@pytest.mark.parametrize("patients", [30, 40, 100])
def test_few_misses_in_many_patients_get_no_shorter_interval_than_wilsons(patients, misses):
    """Resamples of patients that hardly differ are too much alike: all found in 40 was 0.997 to 1."""
    totals = np.r_[np.zeros(misses), np.ones(patients - misses)]
    estimate = patient_interval(totals, np.ones(patients), HIT_SHARE, draws=DRAWS, rng=np.random.default_rng(0))
    wilson = stats.binomtest(patients - misses, patients).proportion_ci(method="wilson")
    assert estimate.low < wilson.low + 0.01
    both = patient_interval(np.zeros(patients), np.ones(patients), COUNT, draws=DRAWS, rng=np.random.default_rng(0))
    assert both.high > 3 / patients  # no false positive at all; the rule of three


def test_no_false_positive_in_twelve_patients_is_no_certainty():
    estimate = patient_interval(np.zeros(12), np.ones(12), COUNT, draws=DRAWS, rng=np.random.default_rng(0))
    assert (estimate.value, estimate.low) == (0.0, 0.0)
    assert 0.2 < estimate.high < 0.5  # the exact Poisson bound is 3.7 / 12


def test_arms_that_never_differ_have_no_interval_but_a_reason():
    estimate = patient_interval(np.zeros(40), np.ones(40), DIFFERENCE, draws=DRAWS, rng=np.random.default_rng(0))
    assert estimate.value == 0.0
    assert np.isnan(estimate.low)
    assert estimate.method == NO_DIFFERENCE


def test_arms_that_differ_alike_everywhere_are_not_called_equal():
    given = (np.full(60, 0.05), np.ones(60))
    hospitals = [f"hospital {number % 6}" for number in range(60)]
    options = {"draws": DRAWS, "rng": np.random.default_rng(0)}
    of_hospitals = SAME_DIFFERENCE.replace("patient", "hospital")
    for estimate, reason in (
        (patient_interval(*given, SHARE_DIFFERENCE, **options), SAME_DIFFERENCE),
        (hospital_interval(*given, hospitals, SHARE_DIFFERENCE, **options), of_hospitals),
    ):
        assert estimate.value == pytest.approx(0.05)
        assert np.isnan([estimate.low, estimate.high]).all()
        assert estimate.method == reason


def test_a_perfect_area_beside_one_of_chance_is_not_called_equal():
    is_positive = np.repeat([True, False], 12)
    perfect, chance = (
        area_under_curve(scores, is_positive, np.arange(24), 24) for scores in (is_positive, np.ones(24))
    )
    estimate, p_value = area_difference(perfect, chance)
    assert estimate.value == 0.5
    assert estimate.method == SAME_DIFFERENCE
    assert np.isnan(p_value)
    estimate, p_value = area_difference(chance, chance)
    assert (estimate.value, estimate.method, p_value) == (0.0, NO_DIFFERENCE, 1.0)


@pytest.mark.parametrize(("weights", "effective"), [([30.0] + [1.0] * 11, 1.8), ([300.0] + [20.0] * 7, 2.1)])
def test_a_patient_or_hospital_that_outweighs_all_others_gives_no_interval(weights, effective):
    totals = np.random.default_rng(16).normal(size=len(weights)) * weights
    estimate = patient_interval(totals, np.array(weights), SHARE_DIFFERENCE, draws=DRAWS, rng=np.random.default_rng(0))
    assert np.isnan(estimate.low)
    assert estimate.method == f"{OUTWEIGHED}: {len(weights)} patients count as {effective}"
    hospitals = np.repeat([f"hospital {number}" for number in range(len(weights))], 2)
    halves = (np.repeat(totals, 2) / 2, np.repeat(weights, 2) / 2)
    over = hospital_interval(*halves, list(hospitals), SHARE_DIFFERENCE, draws=DRAWS, rng=np.random.default_rng(0))
    assert over.method == f"{OUTWEIGHED}: {len(weights)} hospitals count as {effective}"


def draw_unequal_patients(patients, studies, rng):
    """Numbers of tumours that are lognormal: in 10 patients the largest is 14, in 30 it is 24, half have one or two."""
    tumors = np.maximum(1, np.round(rng.lognormal(0.8, 1.1, (studies, patients)))).astype(int)
    ease = rng.beta(2, 1, (studies, patients))
    return tumors.astype(float), [rng.binomial(tumors, ease).astype(float) for _ in range(2)]


@pytest.mark.parametrize(("patients", "least"), [(10, 0.93), (15, 0.92), (30, 0.93), (60, 0.93)])
def test_intervals_hold_the_truth_where_few_patients_have_most_tumors(patients, least):
    rng = np.random.default_rng(17)
    tumors, found = draw_unequal_patients(patients, 3000, rng)
    for totals, scale, truth in ((found[0], HIT_SHARE, 2 / 3), (found[1] - found[0], HIT_DIFFERENCE, 0.0)):
        critical = critical_value(totals, tumors, scale, SMALLEST_BOOTSTRAP, draws=DRAWS, rng=rng)
        low, high = interval_ends(totals, tumors, scale, critical)
        assert least <= ((low <= truth) & (truth <= high)).mean() <= 0.97, scale.name


def test_intervals_hold_the_truth_where_hospitals_differ_in_size():
    rng = np.random.default_rng(18)
    sizes = np.broadcast_to([100.0, 50.0, 20.0, 10.0, 10.0, 10.0], (3000, 6))
    totals = sizes * rng.normal(0, 0.08, sizes.shape) + rng.normal(0, 0.2, sizes.shape) * np.sqrt(sizes)
    critical = critical_value(totals, sizes, SHARE_DIFFERENCE, SMALLEST_HOSPITALS, draws=DRAWS, rng=rng)
    low, high = interval_ends(totals, sizes, SHARE_DIFFERENCE, critical)
    assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= 0.97


def test_five_hospitals_are_not_resampled():
    hospitals = [f"hospital {number % 5}" for number in range(50)]
    given = (np.ones(50), np.ones(50), hospitals, DIFFERENCE)
    assert hospital_interval(*given, draws=DRAWS, rng=np.random.default_rng(0)) is None


def test_hospitals_that_differ_widen_the_interval():
    rng = np.random.default_rng(14)
    hospitals = np.repeat([f"hospital {number}" for number in range(8)], 20)
    differences = np.repeat(rng.normal(0, 0.2, 8), 20) + rng.normal(0, 0.02, 160)
    of_patients = patient_interval(differences, np.ones(160), DIFFERENCE, draws=DRAWS, rng=rng)
    of_hospitals = hospital_interval(differences, np.ones(160), list(hospitals), DIFFERENCE, draws=DRAWS, rng=rng)
    assert of_hospitals.value == pytest.approx(of_patients.value)
    assert of_hospitals.high - of_hospitals.low > 2 * (of_patients.high - of_patients.low)


def test_sign_flips_of_few_patients_are_all_tried():
    differences = np.array([1.0, 2.0, 4.0, 0.0])
    rng = np.random.default_rng(0)  # of 16 patterns, 4 are as extreme (the last patient counts nothing), none is more
    assert sign_flip_p_value(differences, draws=DRAWS, rng=rng) == pytest.approx(4 / 16 * 5 / 6)
    assert sign_flip_p_value(differences, draws=DRAWS, rng=rng, is_of_hits=True) == pytest.approx(4 / 16 / 2)
    # 1 + 2 - 4 = -1: only 1 + 2 - 4 and its opposite are as small as that
    assert sign_flip_p_value(differences * [1, 1, -1, 1], draws=DRAWS, rng=rng) == pytest.approx((12 + 4 / 2) / 16)


@pytest.mark.parametrize("patients", range(3, 13))
@pytest.mark.parametrize("are_alike", [True, False])
def test_no_pattern_of_differences_is_called_an_effect_too_often(patients, are_alike):
    """Under no effect each sign is as likely: the share of all patterns with p of at most 0.05."""
    amounts = np.ones(patients) if are_alike else np.random.default_rng(15).exponential(size=patients)
    signs = 1.0 - 2.0 * ((np.arange(2**patients)[:, None] >> np.arange(patients)) & 1)
    p_values = sign_flip_p_value(signs * amounts, draws=2**patients, rng=np.random.default_rng(0))
    assert (p_values <= 0.05).mean() <= 0.06
    with_others = np.pad(amounts, (0, 3))  # who does not differ changes nothing
    expected = sign_flip_p_value(amounts, draws=2**patients, rng=np.random.default_rng(0))
    assert sign_flip_p_value(with_others, draws=2 ** (patients + 3), rng=np.random.default_rng(0)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("patients", [12, 40])
def test_arms_that_are_alike_have_a_p_value_of_one(patients):
    nothing = np.zeros(patients)
    assert sign_flip_p_value(nothing, draws=DRAWS, rng=np.random.default_rng(0)) == 1.0


def test_wilcoxon_is_scipys_with_pratts_zeros():
    differences = np.array([0.0, 0.1, -0.2, 0.3, 0.4, 0.5, 0.0, 0.7])
    expected = stats.wilcoxon(differences, zero_method="pratt", method="approx").pvalue
    assert wilcoxon_p_value(differences) == pytest.approx(expected)
    assert wilcoxon_p_value(np.zeros(8)) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
