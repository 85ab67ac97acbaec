"""Numbers of benchmarks against hand-made ones."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlvr_lightning.config.benchmarks import published_of
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.evaluation.benchmarks.published import Published, side_by_side
from rlvr_lightning.evaluation.benchmarks.results import Measured, mean_of
from rlvr_lightning.evaluation.statistics import rows_markdown
from rlvr_lightning.types import Outcomes

# Right of four responses each: 4, 2, 0.
PROBLEMS = [
    Outcomes("a", (True, True, True, True)),
    Outcomes("b", (True, False, None, True)),
    Outcomes("c", (False, False, False, False)),
]


def records() -> list[dict[str, Any]]:
    held = []
    for problem in PROBLEMS:
        for place, correct in enumerate(problem.correct):
            verdict = "timeout" if correct is None else "correct" if correct else "wrong"
            held.append({"verdict": verdict, "tokens": 10 + place, "finish_reason": "length" if place == 3 else "stop"})
    return held


def measured(name: str = "sums", pass_k: int = 2) -> Measured:
    return Measured.of(name, records(), PROBLEMS, pass_k)


def test_average_and_pass_by_hand() -> None:
    found = measured()
    assert found.average.name == "sums avg@4"
    assert found.average.value == pytest.approx((1 + 0.5 + 0) / 3)
    # Variance of 1, 0.5, 0 over problems is 1/4.
    assert found.average.standard_error == pytest.approx(math.sqrt(0.25 / 3))
    assert found.passing.name == "sums pass@2"
    # Of b two of four are right: a pair without any is one of six.
    assert found.passing.value == pytest.approx((1 + 5 / 6 + 0) / 3)
    assert found.kinds == {"correct": 6, "wrong": 5, "unparsable": 0, "timeout": 1, "error": 0}
    assert (found.tokens, found.truncated) == (pytest.approx(11.5), pytest.approx(0.25))


def test_the_mean_of_benchmarks_has_the_error_of_their_problems() -> None:
    one, other = measured("one"), measured("other")
    mean = mean_of([one, other])
    assert mean.value == pytest.approx(0.5)
    assert mean.standard_error == pytest.approx(math.sqrt(2 * 0.25 / 3) / 2)
    assert mean.high - mean.value == pytest.approx(1.959964 * mean.standard_error, rel=1e-6)
    assert mean.num_problems == 6


def test_published_rows_stand_beside_and_are_marked() -> None:
    rows = side_by_side(
        {"mine": [measured("one"), measured("two")]}, [Published("Theirs", "a paper", {"two": 61.25}, 55.0, "of two")]
    )
    assert rows == [
        {"": "mine", "one": "50.0 ± 28.9", "two": "50.0 ± 28.9", "mean": "50.0 ± 20.4", "source": "measured"},
        {"": "Theirs", "one": "-", "two": "61.2", "mean": "55.0", "source": "published: a paper; of two"},
    ]
    assert rows_markdown(rows).splitlines()[:3] == [
        "|  | one | two | mean | source |",
        "| --- | ---: | ---: | ---: | --- |",
        "| mine | 50.0 ± 28.9 | 50.0 ± 28.9 | 50.0 ± 20.4 | measured |",
    ]


@pytest.mark.parametrize(("averages", "mean"), [({}, None), ({"one": 101.0}, None), ({}, -1.0)])
def test_a_published_row_is_in_percent(averages: dict[str, float], mean: float | None) -> None:
    with pytest.raises(ConfigError, match="published numbers of X must be percentages"):
        Published("X", "somewhere", averages, mean)


@pytest.mark.parametrize("suite", ["math_suite", "code_suite"])
def test_a_suite_has_the_benchmarks_its_rows_speak_of(suite: str) -> None:
    cfg = compose([f"benchmarks={suite}"])
    rows = published_of(cfg)
    assert {name for row in rows for name in row.averages} == set(cfg.benchmark)
    # A mean that is published is that of its parts, where all of them are.
    whole = [row for row in rows if len(row.averages) == len(cfg.benchmark)]
    assert whole
    for row in whole:
        assert row.mean == pytest.approx(sum(row.averages.values()) / len(row.averages), abs=0.06), row.model


def test_without_a_suite_nothing_is_published() -> None:
    cfg = compose([])
    assert (published_of(cfg), dict(cfg.benchmark)) == ([], {})
