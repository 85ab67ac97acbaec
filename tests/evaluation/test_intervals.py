"""Intervals, errors and tests against closed forms, hand-worked numbers and scipy's."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.evaluation.statistics import Units, interval, p_value, paired_difference
from rlvr_lightning.evaluation.statistics.intervals import DRAWS, expanded_tail, resampled_means
from rlvr_lightning.evaluation.statistics.quantiles import beta_quantile, student_quantile


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),  # scipy.stats.beta.ppf([0.025, 0.975], right + 0.5, wrong + 0.5), 1.17
    [
        (0, 30, 1.6231861223464347e-05, 0.07967817381725999),
        (3, 30, 0.028980619032726484, 0.2434016089849271),
        (13, 30, 0.26891916644472913, 0.609939728064391),
        (30, 30, 0.9203218261827399, 0.9999837681387765),
        (150, 198, 0.6944427353335219, 0.8132421570247372),
    ],
)
def test_beta_quantiles_are_scipys(right: int, count: int, low: float, high: float) -> None:
    a, b = right + 0.5, count - right + 0.5
    assert beta_quantile(0.025, a, b) == pytest.approx(low, abs=1e-7)
    assert beta_quantile(0.975, a, b) == pytest.approx(high, abs=1e-7)


@pytest.mark.parametrize("probability", [0.001, 0.2, 0.5, 0.975])
def test_beta_quantiles_of_closed_form(probability: float) -> None:
    assert beta_quantile(probability, 1, 1) == pytest.approx(probability, abs=1e-8)
    assert beta_quantile(probability, 3, 1) == pytest.approx(probability ** (1 / 3), abs=1e-8)
    arcsine = math.sin(math.pi * probability / 2) ** 2
    assert beta_quantile(probability, 0.5, 0.5) == pytest.approx(arcsine, abs=1e-8)


def test_student_quantiles_are_scipys() -> None:
    known = {1: 12.706204736174694, 2: 4.302652729749462, 9: 2.262157162798205, 29: 2.045229642132703}
    for freedom, value in {**known, 198: 1.9720174778363146}.items():
        assert student_quantile(0.975, freedom) == pytest.approx(value, rel=1e-6)


def test_the_error_of_problems_on_their_own() -> None:
    scores = [0.0, 0.5, 1.0, 1.0, 0.25]
    units = Units.of(scores)
    assert (len(units), units.num_problems, units.mean) == (5, 5, 0.55)
    assert units.standard_error == pytest.approx(np.std(scores, ddof=1) / math.sqrt(5), rel=1e-14)
    # n - 1 of right and wrong: the binomial error's own denominator.
    right = Units.of([1.0] * 3 + [0.0] * 7)
    assert right.standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 9), rel=1e-14)


def test_the_error_of_clusters_worked_by_hand() -> None:
    # Mean 0.5; summed residuals: a +1.0, b -1.0, the one alone 0. sqrt(2 * 3 / 2) / 5.
    units = Units.of([1.0, 1.0, 0.0, 0.0, 0.5], ["a", "a", "b", "b", None])
    assert (len(units), units.num_problems) == (3, 5)
    assert units.standard_error == pytest.approx(math.sqrt(3) / 5, rel=1e-14)
    # Three times the same problem is one problem.
    once = Units.of([1.0, 0.0, 0.25, 0.5])
    thrice = Units.of(np.repeat([1.0, 0.0, 0.25, 0.5], 3), [name for name in "abcd" for _ in range(3)])
    assert thrice.standard_error == pytest.approx(once.standard_error, rel=1e-14)
    # A cluster of no name is every problem on its own, also beside one that is called so.
    assert len(Units.of([1.0, 0.0, 1.0], [None, None, "None"])) == 3


def test_the_error_of_clusters_is_the_sum_of_their_covariances() -> None:
    rng = np.random.default_rng(3)
    scores, clusters = rng.random(40), rng.integers(0, 12, 40)
    residuals = scores - scores.mean()
    covariances = np.outer(residuals, residuals) * (clusters[:, None] == clusters)
    count = len(set(clusters.tolist()))
    expected = math.sqrt(covariances.sum() * count / (count - 1)) / 40
    units = Units.of(scores, [str(cluster) for cluster in clusters])
    assert units.standard_error == pytest.approx(expected, rel=1e-12)


def test_many_problems_get_the_normal_interval() -> None:
    scores = np.random.default_rng(0).binomial(4, 0.3, 250) / 4
    found = interval(Units.of(scores))
    reach = 1.959963984540054 * np.std(scores, ddof=1) / math.sqrt(250)
    assert found.method == "normal"
    assert (found.low, found.high) == pytest.approx((scores.mean() - reach, scores.mean() + reach), rel=1e-12)
    # What counts is what is independent: 250 problems about 50 texts are 50.
    clustered = interval(Units.of(scores, [f"text {i // 5}" for i in range(250)]))
    assert clustered.method == "bootstrap"
    # A share cannot be below nothing.
    assert interval(Units.of([1.0] + [0.0] * 299)).low == 0.0
    assert interval(Units.of([1.0] + [0.0] * 299), "difference").low < 0


def test_few_right_or_wrong_answers_get_jeffreys_interval() -> None:
    found = interval(Units.of([1.0] * 13 + [0.0] * 17))
    assert found.method == "bayesian"
    assert (found.low, found.high) == pytest.approx((0.26891916644472913, 0.609939728064391), abs=1e-7)
    narrower = interval(Units.of([1.0] * 13 + [0.0] * 17), level=0.8)
    assert found.low < narrower.low < 13 / 30 < narrower.high < found.high


@pytest.mark.parametrize("clusters", [None, [f"{i // 2}" for i in range(30)]])
def test_nothing_and_everything_right_are_no_certainty(clusters: list[str] | None) -> None:
    units = 30 if clusters is None else 15
    nothing, everything = (interval(Units.of([value] * 30, clusters)) for value in (0.0, 1.0))
    upper = beta_quantile(0.975, 0.5, units + 0.5)
    assert (nothing.low, nothing.high) == (0.0, pytest.approx(upper))
    assert (everything.low, everything.high) == (pytest.approx(1 - upper), 1.0)
    equal = interval(Units.of([0.0] * 30, clusters), "difference")
    assert equal.method == "bayesian"
    assert -0.2 < equal.low < -0.03 < 0.03 < equal.high < 0.2
    # Nor are a thousand.
    assert interval(Units.of([1.0] * 1000)).low == pytest.approx(0.99749, abs=1e-5)


def test_the_posterior_of_won_and_lost_has_its_known_moments() -> None:
    scores = [1.0] * 6 + [-1.0] * 3 + [0.0] * 31
    found = interval(Units.of(scores), "difference")
    # Dirichlet(6.5, 3.5, 32): mean and variance of a difference of two parts, and nearly normal.
    total = 42.0
    mean = (6.5 - 3.5) / total
    deviation = math.sqrt(((6.5 + 3.5) / total - mean**2) / (total + 1))
    assert found.method == "bayesian"
    assert (found.low + found.high) / 2 == pytest.approx(mean, abs=0.012)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * deviation, rel=0.04)


def test_means_of_several_responses_get_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    scores = rng.binomial(8, rng.random(40)) / 8
    units = Units.of(scores)
    found = interval(units)
    assert found.method == "bootstrap"
    # The bootstrap's deviation is that of n, not of n - 1; the expanded percentiles make up for it.
    means = resampled_means(units, 0)
    assert means.shape == (DRAWS,)
    assert means.std() == pytest.approx(np.std(scores) / math.sqrt(40), rel=0.03)
    assert expanded_tail(40, 0.95) < 0.025
    student = student_quantile(0.975, 39) * units.standard_error
    assert (found.high - found.low) / 2 == pytest.approx(student, rel=0.03)
    assert interval(units, seed=0) == found
    graded = Units.of(rng.random(40))
    first, same, other = (interval(graded, seed=seed) for seed in (0, 0, 1))
    assert first == same != other
    assert other.low == pytest.approx(first.low, abs=0.01)


def test_whole_clusters_are_drawn_anew() -> None:
    scores = np.repeat(np.random.default_rng(2).random(25), 4)
    clusters = [str(i // 4) for i in range(100)]
    together, alone = interval(Units.of(scores, clusters)), interval(Units.of(scores))
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(2.0, rel=0.1)
    # Clusters of several sizes: each draw's mean is over its own problems.
    units = Units.of([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert set(np.round(resampled_means(units, 0), 6).tolist()) == {0.0, 0.75, 1.0}


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"level of an interval must be in \(0, 1\); got 95"):
        interval(Units.of([0.0, 1.0]), level=95)
    with pytest.raises(DataError, match="one independent unit"):
        interval(Units.of([0.5, 0.25], ["a", "a"]), "reward")
    assert math.isnan(Units.of([0.5]).standard_error)


def test_the_difference_of_a_pair_worked_by_hand() -> None:
    first, second = [1.0, 0.0, 0.5, 0.5], [1.0, 1.0, 0.5, 1.0]
    found = paired_difference("correct", first, second)
    assert (found.first, found.second, found.value) == (0.5, 0.875, 0.375)
    deviation = math.sqrt(((0.375**2) * 2 + 0.625**2 + 0.125**2) / 3)
    assert found.standard_error == pytest.approx(deviation / 2, rel=1e-14)
    assert found.correlation == pytest.approx(np.corrcoef(first, second)[0, 1], rel=1e-12)
    # z of 97.5 % and of 80 %.
    assert found.detectable == pytest.approx((1.959963984540054 + 0.8416212335729143) * deviation / 2, rel=1e-12)
    variances = np.var(first, ddof=1) + np.var(second, ddof=1)
    covariance = found.correlation * np.std(first, ddof=1) * np.std(second, ddof=1)
    assert found.standard_error**2 == pytest.approx((variances - 2 * covariance) / 4, rel=1e-12)
    # Each of 16 signs: |sum| at least 1.5 for the two where both differences have one sign, times the 4 of the zeros.
    assert found.p_value == pytest.approx(8 / 16, abs=0.02)


def test_nothing_that_differs_says_so() -> None:
    found = paired_difference("correct", [1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (found.value, found.standard_error, found.p_value) == (0.0, 0.0, 1.0)
    assert math.isnan(found.detectable)
    assert found.low < 0 < found.high
    assert math.isnan(paired_difference("correct", [1.0, 1.0], [1.0, 0.0]).correlation)


def test_the_randomization_test_of_right_and_wrong_is_mcnemars() -> None:
    # Nine won, two lost, the others equal: twice the binomial tail of 11 coins.
    differences = [1.0] * 9 + [-1.0] * 2 + [0.0] * 30
    exact = 2 * sum(math.comb(11, lost) for lost in range(3)) / 2**11
    assert p_value(Units.of(differences)) == pytest.approx(exact, abs=0.006)


def test_the_randomization_test_turns_whole_clusters() -> None:
    units = Units.of([0.5, 0.5, 0.25, -0.1, 0.3, 0.1], ["a", "a", "b", "c", "d", "d"])
    sums = np.asarray([1.0, 0.25, -0.1, 0.4])
    turned = [abs(np.dot(signs, sums)) >= sums.sum() - 1e-12 for signs in product((-1, 1), repeat=4)]
    assert p_value(units) == pytest.approx(np.mean(turned), abs=0.015)


def test_many_problems_get_the_normal_test() -> None:
    rng = np.random.default_rng(4)
    differences = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.75, 0.15])
    units = Units.of(differences)
    z = units.mean / (np.std(differences, ddof=1) / 20)
    assert p_value(units) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=1e-12)
    few = Units.of(differences[:199])
    z = few.mean / few.standard_error
    assert p_value(few) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.05)
    assert p_value(Units.of([0.0] * 300)) == 1.0
