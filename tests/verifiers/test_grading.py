from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError, VerifierTimeoutError
from rlvr_lightning.types import Episode, Generation, Problem, Prompt, Rollout, Verdict
from rlvr_lightning.verifiers.exact import ExactVerifier
from rlvr_lightning.verifiers.grading import Grading, grade
from rlvr_lightning.verifiers.judging import Judgement
from rlvr_lightning.verifiers.pool import VerifierPool

ANSWERLESS = Verdict(0.0, False, None, "unparsable")


def rollout(text: str) -> Rollout:
    problem = Problem("p1", (), "4")
    return Rollout(Prompt(problem, (1,), 0), 0, Episode.of(Generation((2,), (-0.5,), "stop", 0)), text)


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


def graded(*texts: str, verifier: Any = None, **settings: Any) -> list[Rollout]:
    return grade([rollout(text) for text in texts], VerifierPool(verifier or Faulty(), workers=0), Grading(**settings))


def test_verdicts_in_order() -> None:
    found = graded("#4", "#5", "4", verifier=ExactVerifier())
    assert [one.verdict for one in found] == [Verdict(1.0, True, "4"), Verdict(0.0, False, "5"), ANSWERLESS]
    assert [one.kind for one in found] == ["correct", "wrong", "unparsable"]
    assert [one.error for one in found] == [None, None, None]


def test_error_is_no_reward() -> None:
    slow, long, fine = graded("slow", "long", "0.5")
    assert (slow.verdict, slow.error, slow.kind) == (None, "VerifierTimeoutError: no verdict within 5 s", "timeout")
    assert (long.verdict, long.kind) == (None, "error")
    assert long.error == ("RuntimeError: " + "x" * 500)[:200]
    assert (fine.verdict, fine.error, fine.kind) == (Verdict(0.5, False), None, "wrong")


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_reward_must_be_finite(reward: float) -> None:
    (found,) = graded(str(reward))
    assert (found.verdict, found.error, found.kind) == (None, f"ValueError: reward {reward} is not finite", "error")


def test_each_kind_is_worth_what_is_set() -> None:
    right, wrong = Verdict(1.0, True, "4"), Verdict(0.25, False, "5")
    judgements = [
        Judgement("correct", right, None, 0.1),
        Judgement("wrong", wrong, None, 0.1),
        Judgement("unparsable", ANSWERLESS, None, 0.1),
        Judgement("timeout", None, "slow", 0.1),
        Judgement("error", None, "broken", 0.1),
        Judgement("error", right, "broken", 0.1),
    ]

    def verdicts(**values: Any) -> list[Verdict | None]:
        return [Grading(values).verdict(one) for one in judgements]

    assert verdicts() == [right, wrong, ANSWERLESS, None, None, None]
    assert verdicts(correct=2, wrong=-1.0, unparsable=-2, timeout=-3.0) == [
        replace(right, reward=2.0),
        replace(wrong, reward=-1.0),
        replace(ANSWERLESS, reward=-2.0),
        Verdict(-3.0, False, None, "timeout"),
        None,
        None,
    ]
    assert verdicts(correct=None, wrong=None, unparsable=None) == [None] * 6


def test_a_time_out_that_is_worth_something_keeps_its_reason() -> None:
    (found,) = graded("slow", values={"timeout": -1})
    assert found.verdict == Verdict(-1.0, False, None, "timeout")
    assert (found.kind, found.error) == ("timeout", "VerifierTimeoutError: no verdict within 5 s")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"values": {"error": 0.0}}, "grading.values holds .*; got error: an error is not a reward"),
        ({"values": {"right": 0.0}}, "grading.values holds correct, wrong, unparsable, timeout alone; got right"),
        ({"values": {"timeout": "judged"}}, "grading.values.timeout must be a number, or null; got 'judged'"),
        ({"values": {"wrong": "half"}}, "grading.values.wrong must be a number, judged, or null; got 'half'"),
        ({"values": {"wrong": math.nan}}, "grading.values.wrong must be .*; got nan"),
        ({"values": {"wrong": True}}, "grading.values.wrong must be .*; got True"),
        ({"max_error_share": 1.1}, r"grading.max_error_share must be in \[0, 1\]; got 1.1"),
        ({"workers": -1}, "grading.workers must be auto or a whole number from 0; got -1"),
        ({"workers": "many"}, "grading.workers must be auto or .*; got 'many'"),
        ({"workers": True}, "grading.workers must be auto or .*; got True"),
        ({"timeout_s": 0.0}, "grading.timeout_s must be above 0; got 0.0"),
        ({"max_error_share": -0.1}, r"grading.max_error_share must be in \[0, 1\]; got -0.1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grading(**settings)


def test_each_kind_of_error_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rlvr_lightning.verifiers.grading"):
        graded("slow", "slow", "long", "1")
    first, second = (record.getMessage() for record in caplog.records)
    expected = "no verdict for 2 of 4 responses; the first: problem p1: VerifierTimeoutError: no verdict within 5 s"
    assert first == expected
    assert second.startswith("no verdict for 1 of 4 responses; the first: problem p1: RuntimeError: xxx")


def test_interrupt_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        graded("stop")


def test_nothing_to_grade() -> None:
    assert graded() == []
