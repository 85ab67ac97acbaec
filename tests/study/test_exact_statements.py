"""Exact intervals and tests, against numbers that can be had otherwise."""

from __future__ import annotations

import math

import pytest

from rlvr_lightning.evaluation.statistics.exact import exact_share, holm, least_p, sign_flip_p, within_reach


def binomial_tail(successes: int, number: int, probability: float) -> float:
    """P(X >= successes)."""
    return sum(
        math.comb(number, k) * probability**k * (1 - probability) ** (number - k) for k in range(successes, number + 1)
    )


@pytest.mark.parametrize(("successes", "number"), [(0, 10), (4, 10), (10, 10), (1, 5), (3, 7)])
def test_the_ends_of_an_interval_leave_two_and_a_half_percent_each(successes: int, number: int) -> None:
    low, high = exact_share(successes, number)
    if successes:
        assert binomial_tail(successes, number, low) == pytest.approx(0.025, rel=1e-6)
    else:
        assert low == 0
    if successes < number:
        assert 1 - binomial_tail(successes + 1, number, high) == pytest.approx(0.025, rel=1e-6)
    else:
        assert high == 1


def test_known_intervals() -> None:
    # Of nothing in ten: 1 - (0.05 / 2)^(1/10).
    assert exact_share(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert exact_share(4, 10) == pytest.approx((0.1216, 0.7376), abs=1e-4)
    assert exact_share(4, 10, level=0.9)[0] > exact_share(4, 10)[0]


def test_changes_of_signs_by_hand() -> None:
    assert sign_flip_p([1.0] * 10) == 2 / 2**10
    assert sign_flip_p([0.0, 0.0]) == 1.0
    # Of 3 and 1 the sums are 4, 2, -2, -4: as far as 2 are all, as far as 4 two of four.
    assert sign_flip_p([3.0, 1.0]) == 0.5
    assert sign_flip_p([3.0, -1.0]) == 1.0
    assert sign_flip_p([0.1] * 5) == 2 / 32


def test_holm_by_hand() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert list(corrected) == ["a", "b", "c", "d"]
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_what_cannot_be_told_from_chance_is_not_paid_for() -> None:
    assert [least_p(pairs) for pairs in (1, 5, 10)] == [1.0, 2 / 32, 2 / 1024]
    assert sign_flip_p([1.0] * 5) == least_p(5)
    nine = {f"ten {place}": least_p(10) for place in range(9)}
    many = {f"five {place}": least_p(5) for place in range(24)}
    assert within_reach({**nine, **many}, 0.05) == set(nine)
    # Where all can reach the level only one by one, as many as may stay: 0.02 k <= 0.05 for k = 2.
    assert within_reach({"a": 0.02, "b": 0.02}, 0.05) == {"a", "b"}
    # Three at 0.02 each cannot: with k = 2 three are left, with k = 3 none.
    assert within_reach({"a": 0.02, "b": 0.02, "c": 0.02}, 0.05) == set()
    assert within_reach({"a": 0.001, "b": 0.02, "c": 0.02, "d": 0.02}, 0.05) == {"a"}
    assert within_reach({}, 0.05) == set()
