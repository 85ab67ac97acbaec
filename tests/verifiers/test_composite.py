from __future__ import annotations

import pickle
from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError, VerifierError, VerifierTimeoutError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.composite import CompositeVerifier
from rlvr_lightning.verifiers.exact import ExactVerifier
from rlvr_lightning.verifiers.format import FormatVerifier
from rlvr_lightning.verifiers.judging import judge
from rlvr_lightning.verifiers.math import MathVerifier

PROBLEM = Problem("p", (), "4")
PARTS = {"answer": ExactVerifier(r"<answer>(.*)</answer>"), "form": FormatVerifier()}
FORM, ANSWER = "<think></think>", "<answer>4</answer>"


class Failing:
    """Raises, or says that it could not judge."""

    judges = "code"

    def __init__(self, outcome: Any) -> None:
        self.outcome, self.closed = outcome, 0

    def __call__(self, response: str, problem: Problem) -> Verdict:
        if isinstance(self.outcome, Verdict):
            return self.outcome
        raise self.outcome

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("response", "weighted", "every"),
    [
        (FORM + ANSWER, Verdict(0.9, True, "4", None, {"answer": 1.0, "form": 1.0}), 1.0),
        (ANSWER, Verdict(1.0, True, "4", None, {"answer": 1.0, "form": 0.0}), 0.0),
        (FORM + "<answer>5</answer>", Verdict(-0.1, False, "5", None, {"answer": 0.0, "form": 1.0}), 0.0),
        ("4", Verdict(0.0, False, None, "unparsable", {"answer": 0.0, "form": 0.0}), 0.0),
    ],
)
def test_a_weighted_sum_and_all_of_them(response: str, weighted: Verdict, every: float) -> None:
    verdict = CompositeVerifier(PARTS, weights={"answer": 1.0, "form": -0.1})(response, PROBLEM)
    assert verdict.reward == pytest.approx(weighted.reward)
    assert (verdict.correct, verdict.extracted, verdict.kind) == (weighted.correct, weighted.extracted, weighted.kind)
    assert verdict.parts == weighted.parts
    both = CompositeVerifier(PARTS, combine="all")(response, PROBLEM)
    assert (both.reward, both.correct, both.kind) == (every, every == 1.0, weighted.kind)
    assert both.parts == weighted.parts


def test_the_deciding_part_says_what_is_right() -> None:
    first = CompositeVerifier(PARTS)(ANSWER, PROBLEM)
    other = CompositeVerifier(PARTS, decides="form")(ANSWER, PROBLEM)
    assert (first.reward, first.correct, first.extracted) == (1.0, True, "4")
    assert (other.reward, other.correct, other.extracted) == (1.0, False, None)


def test_a_part_that_fails_fails_the_whole() -> None:
    for outcome, kind in (
        (VerifierError("broken"), "error"),
        (VerifierTimeoutError("late"), "timeout"),
        (Verdict(0.0, False, None, "timeout"), "timeout"),
        (Verdict(1.0, True, None, "error"), "error"),
    ):
        assert judge(CompositeVerifier({**PARTS, "other": Failing(outcome)}), FORM + ANSWER, PROBLEM).kind == kind


def test_it_is_what_its_parts_are() -> None:
    plain, failing = CompositeVerifier(PARTS), Failing(ValueError())
    assert (plain.judges, plain.isolated, plain.part_names) == ("answer", False, ("answer", "form"))
    other = CompositeVerifier({"math": MathVerifier(), "code": failing})
    assert (other.judges, other.isolated) == ("code", True)
    assert not CompositeVerifier({"code": failing}).isolated
    other.close()
    other.close()
    assert failing.closed == 2
    copy = pickle.loads(pickle.dumps(plain))
    assert copy(FORM + ANSWER, PROBLEM) == plain(FORM + ANSWER, PROBLEM)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": {}}, "CompositeVerifier.parts must hold a verifier at least; got none"),
        ({"combine": "any"}, "CompositeVerifier.combine must be sum or all; got 'any'"),
        (
            {"weights": {"answer": 1.0}},
            "CompositeVerifier.weights are .* one for each of answer, form; got answer with",
        ),
        ({"weights": {"answer": 1.0, "form": 1.0}, "combine": "all"}, "CompositeVerifier.weights are for combine=sum"),
        ({"weights": {"answer": 1.0, "form": float("nan")}}, "CompositeVerifier.weights must be finite"),
        ({"decides": "other"}, "CompositeVerifier.decides must be one of answer, form; got 'other'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CompositeVerifier(**{"parts": PARTS, **settings})
