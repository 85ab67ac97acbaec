from __future__ import annotations

import logging
import math

import pytest

from rlvr_lightning.errors import VerifierTimeoutError
from rlvr_lightning.types import Generation, Problem, Prompt, Rollout, Verdict
from rlvr_lightning.verifiers.exact import ExactVerifier
from rlvr_lightning.verifiers.grading import grade


def rollout(text: str) -> Rollout:
    problem = Problem("p1", (), "4")
    return Rollout(Prompt(problem, (1,), 0), 0, Generation((2,), (-0.5,), "stop"), text, 0)


class Faulty:
    """Fails as the response says."""

    def __call__(self, response: str, problem: Problem) -> Verdict:
        if response == "slow":
            raise VerifierTimeoutError("no verdict within 5 s\nsecond line")
        if response == "long":
            raise RuntimeError("x" * 500)
        if response == "stop":
            raise KeyboardInterrupt
        return Verdict(float(response), False)


def test_verdicts_in_order() -> None:
    graded = grade([rollout("#4"), rollout("#5"), rollout("4")], ExactVerifier())
    assert [one.verdict for one in graded] == [
        Verdict(1.0, True, "4"),
        Verdict(0.0, False, "5"),
        Verdict(0.0, False, None),
    ]
    assert [one.error for one in graded] == [None, None, None]


def test_error_is_no_reward() -> None:
    slow, long, fine = grade([rollout("slow"), rollout("long"), rollout("0.5")], Faulty())
    assert (slow.verdict, slow.error) == (None, "VerifierTimeoutError: no verdict within 5 s")
    assert long.verdict is None
    assert long.error == ("RuntimeError: " + "x" * 500)[:200]
    assert (fine.verdict, fine.error) == (Verdict(0.5, False), None)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_reward_must_be_finite(reward: float) -> None:
    (graded,) = grade([rollout(str(reward))], Faulty())
    assert (graded.verdict, graded.error) == (None, f"ValueError: reward {reward} is not finite")


def test_each_kind_of_error_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rlvr_lightning.verifiers.grading"):
        grade([rollout(text) for text in ("slow", "slow", "long", "1")], Faulty())
    first, second = (record.getMessage() for record in caplog.records)
    expected = "no verdict for 2 of 4 responses; the first: problem p1: VerifierTimeoutError: no verdict within 5 s"
    assert first == expected
    assert second.startswith("no verdict for 1 of 4 responses; the first: problem p1: RuntimeError: xxx")


def test_interrupt_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        grade([rollout("stop")], Faulty())


def test_nothing_to_grade() -> None:
    assert grade([], ExactVerifier()) == []
