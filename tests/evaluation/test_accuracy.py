"""avg@k, pass@k and comparisons of graded problems; how they are shown."""

from __future__ import annotations

import json
import math
from io import StringIO
from itertools import combinations

import numpy as np
import pytest
from rich.console import Console

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.evaluation.statistics import (
    Estimate,
    accuracies,
    as_json,
    as_markdown,
    as_table,
    compared,
    paired_difference,
)
from rlvr_lightning.types import Outcomes

FOUR = [
    Outcomes("a", (True, False, False, False)),
    Outcomes("b", (False, False, False, False)),
    Outcomes("c", (True, True, False, None)),
    Outcomes("d", (True, True, True, True)),
]


def test_avg_and_pass_of_hand_worked_problems() -> None:
    average, passing = accuracies(FOUR, 2)
    # A response without a verdict is not right.
    assert average.value == (0.25 + 0 + 0.5 + 1) / 4
    assert average.standard_error == pytest.approx(np.std([0.25, 0, 0.5, 1], ddof=1) / 2, rel=1e-12)
    # Of the pairs of four responses: 3 of 6, none, 5 of 6, all have a right one.
    assert passing.value == pytest.approx((3 / 6 + 0 + 5 / 6 + 1) / 4, rel=1e-12)
    assert (average.name, passing.name, average.num_problems, average.num_units) == ("avg@2", "pass@2", 4, 4)


@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(k: int) -> None:
    rows = [(True,) * right + (False,) * (7 - right) for right in (0, 1, 3, 7)] + [(False, True) * 4]
    share = [np.mean([any(chosen) for chosen in combinations(row, k)]) for row in rows]
    _, passing = accuracies([Outcomes(str(i), row) for i, row in enumerate(rows)], k)
    assert passing.value == pytest.approx(float(np.mean(share)), rel=1e-12)


def test_pass_at_k_of_a_thousand_responses_neither_overflows_nor_rounds() -> None:
    problem = Outcomes("p", (True,) * 3 + (False,) * 997)
    _, passing = accuracies([problem, problem], 500)
    exact = 1 - math.comb(997, 500) / math.comb(1000, 500)
    assert passing.value == pytest.approx(exact, rel=1e-12)


def test_clusters_are_those_of_the_problems() -> None:
    problems = [Outcomes(str(i), (i % 4 < 2, True), cluster=f"text {i // 2}") for i in range(8)]
    average, _ = accuracies(problems, 2)
    # Clusters of 1 and of 1/2 in turn: residuals of two problems each +-1/2.
    assert (average.num_problems, average.num_units) == (8, 4)
    assert average.standard_error == pytest.approx(math.sqrt(4 * 0.5**2 * 4 / 3) / 8, rel=1e-12)


@pytest.mark.parametrize(
    ("problems", "k", "error", "message"),
    [
        ([], 1, DataError, "there is no problem to measure on"),
        (FOUR, 5, DataError, "problem a: avg@5 needs 5 verdicts; there are 4"),
        (FOUR, 0, ConfigError, "k of avg@k and pass@k must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(problems: list[Outcomes], k: int, error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        accuracies(problems, k)
    assert str(caught.value) == message


def test_a_comparison_goes_by_id_and_takes_any_number_of_responses() -> None:
    other = [Outcomes("d", (True,)), Outcomes("a", (True, True)), Outcomes("c", (False,)), Outcomes("b", (True,))]
    found = compared(FOUR, other)
    expected = paired_difference("correct", [0.25, 0, 0.5, 1], [1, 1, 0, 1], [None] * 4)
    assert found == expected
    assert (found.value, found.num_problems) == (0.3125, 4)


def test_rewards_without_a_verdict_are_left_out() -> None:
    first = [Outcomes("a", (), (2.0, None, 4.0)), Outcomes("b", (), (-1.0,))]
    second = [Outcomes("a", (), (5.0,)), Outcomes("b", (), (1.0, None))]
    found = compared(first, second, of="rewards")
    assert (found.first, found.second, found.value, found.name) == (1.0, 3.0, 2.0, "rewards")
    with pytest.raises(DataError, match="problem a has no rewards to compare"):
        compared(first, [Outcomes("a", (), (None,)), second[1]], of="rewards")
    with pytest.raises(DataError, match="problem a has no correct to compare"):
        compared(first, second)


def test_other_problems_are_no_pair() -> None:
    with pytest.raises(DataError, match="the same problems: 4 and 3, of which 1 stand in one alone: b"):
        compared(FOUR, [FOUR[0], *FOUR[2:]])
    with pytest.raises(DataError, match="of 2 problems 1 have the id of another one"):
        compared(FOUR[:2], [FOUR[0], FOUR[0]])
    with pytest.raises(DataError, match="problem a is in cluster None of the first and x of the second"):
        compared(FOUR, [Outcomes("a", (True,), cluster="x"), *FOUR[1:]])
    with pytest.raises(DataError, match="the same problems: 0 and 0"):
        compared([], [])


SHOWN = Estimate("avg@8", 0.25, 0.0125, 0.2255, 0.2745, 0.95, "normal", 250, 250)
LONE = Estimate("pass@8", 1.0, float("nan"), 0.2, 1.0, 0.95, "bayesian", 4, 1)


def test_what_is_shown() -> None:
    assert as_markdown([SHOWN, LONE]) == (
        "|  | accuracy | standard error | 95% interval | problems | method |\n"
        "| --- | ---: | ---: | ---: | ---: | --- |\n"
        "| avg@8 | 0.2500 | 0.0125 | 0.2255 to 0.2745 | 250 | normal |\n"
        "| pass@8 | 1.0000 | - | 0.2000 to 1.0000 | 4 in 1 clusters | bayesian |\n"
    )
    screen = StringIO()
    Console(file=screen, width=120).print(as_table("held-out accuracy", [SHOWN, LONE]))
    for cell in (*SHOWN.cells(), *SHOWN.cells().values(), *LONE.cells().values(), "held-out accuracy"):
        assert cell in screen.getvalue()


def test_what_programs_read() -> None:
    held = json.loads(as_json([SHOWN, LONE], {"model": "tiny", "samples": 8}))
    assert (held["model"], held["samples"]) == ("tiny", 8)
    assert held["results"][0] == {
        "name": "avg@8",
        "value": 0.25,
        "standard_error": 0.0125,
        "low": 0.2255,
        "high": 0.2745,
        "level": 0.95,
        "method": "normal",
        "num_problems": 250,
        "num_units": 250,
    }
    assert held["results"][1]["standard_error"] is None


def test_a_difference_is_shown_with_all_that_is_known_of_it() -> None:
    found = paired_difference("correct", [1.0, 0.0, 0.5, 0.5] * 60, [1.0, 1.0, 0.5, 1.0] * 60)
    cells = found.cells()
    assert (cells["first"], cells["second"], cells["difference"]) == ("0.5000", "0.8750", "+0.3750")
    assert cells["standard error"] == f"{found.standard_error:.4f}"
    assert cells["95% interval"] == f"{found.low:.4f} to {found.high:.4f}"
    assert (cells["p"], cells["could show"]) == (f"{found.p_value:.4f}", f"{found.detectable:.4f}")
    assert (cells["correlation"], cells["problems"], cells["method"]) == (f"{found.correlation:.2f}", "240", "normal")
    equal = paired_difference("correct", [1.0, 1.0], [1.0, 1.0])
    assert (equal.cells()["could show"], equal.cells()["correlation"]) == ("-", "-")
    assert equal.record()["detectable"] is equal.record()["correlation"] is None
