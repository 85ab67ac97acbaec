from __future__ import annotations

import time

import pytest

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.exact import ExactVerifier

GOLD = Problem("1", (), "23")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("7+12=19;19+4=23#23", Verdict(1.0, True, "23")),
        ("#5# 23 \n", Verdict(1.0, True, "23")),
        ("23#24", Verdict(0.0, False, "24")),
        ("#23 or 24", Verdict(0.0, False, "23 or 24")),
        ("#23.0", Verdict(0.0, False, "23.0")),
        ("23#", Verdict(0.0, False, "")),
        ("23", Verdict(0.0, False, None, "unparsable")),
        ("", Verdict(0.0, False, None, "unparsable")),
    ],
)
def test_verdict(response: str, expected: Verdict) -> None:
    assert ExactVerifier()(response, GOLD) == expected


def test_own_pattern_takes_the_last_match() -> None:
    verifier = ExactVerifier(r"answer: (\d+)")
    assert verifier("answer: 4, no, answer: 23!", GOLD) == Verdict(1.0, True, "23")


def test_group_that_took_no_part_is_no_answer() -> None:
    assert ExactVerifier(r"#(\d+)?")("#x", GOLD) == Verdict(0.0, False, None, "unparsable")


@pytest.mark.parametrize("pattern", ["(", "#.*"])
def test_bad_pattern_names_the_setting(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"ExactVerifier\.pattern"):
        ExactVerifier(pattern)


def test_default_pattern_takes_linear_time() -> None:
    start = time.perf_counter()
    assert ExactVerifier()(("#" + " " * 2000) * 50 + "#", GOLD).extracted == ""
    assert time.perf_counter() - start < 1.0
