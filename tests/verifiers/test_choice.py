from __future__ import annotations

from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.choice import ChoiceVerifier


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"So \boxed{B}", "B"),
        (r"So \boxed{\text{(B)}}", "B"),
        (r"So \boxed{\textbf{B}}", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B).", "B"),
        ("The final answer is: **(B)**", "B"),
        ("the answer is b", "B"),
        ("Answer: B) Paris", "B"),
        ("<answer>B. Paris, not C</answer>", None),
        ("<answer>(B) Paris, not C</answer>", "B"),
        ("Answer: A cat is what B describes", "B"),
        ("Answer: A", "A"),
        ("Answer: A is right", "A"),
        ("Answer: A, because a cat is one", "A"),
        ("B", "B"),
        ("(b)", "B"),
        ("It cannot be A, so it must be B", None),
        ("Answer: A or B", None),
        ("Answer: (A) or (B)", None),
        ("Answer: F", None),
        ("Answer: Because", None),
        ("Answer: AB", None),
        (r"\boxed{}", None),
        ("", None),
        (r"A? \boxed{A} no, \boxed{B}", "B"),
    ],
)
def test_the_letter_an_answer_names(response: str, letter: str | None) -> None:
    verdict = ChoiceVerifier()(response, Problem("p", (), "B"))
    if letter is None:
        assert verdict == Verdict(0.0, False, None, "unparsable")
    else:
        assert verdict == Verdict(float(letter == "B"), letter == "B", letter)


@pytest.mark.parametrize("gold", ["B", " (B) ", "B. Paris", "B) Paris", "(B) A city", "B: 4"])
def test_gold_answers(gold: str) -> None:
    assert ChoiceVerifier()("B", Problem("p", (), gold)).correct
    assert not ChoiceVerifier()("A", Problem("p", (), gold)).correct


@pytest.mark.parametrize("gold", ["", "Paris", "F", "b", "Because", "4"])
def test_a_gold_answer_without_a_letter_is_an_error(gold: str) -> None:
    with pytest.raises(DataError, match="problem p: the gold answer .* is none of ABCDE"):
        ChoiceVerifier()("B", Problem("p", (), gold))


def test_more_letters_and_other_conventions() -> None:
    gold = Problem("p", (), "I")
    assert ChoiceVerifier("ABCDEFGHIJ")("Answer: I think I", gold).correct
    assert not ChoiceVerifier("ABCDEFGHIJ")("Answer: I think J", gold).correct
    assert ChoiceVerifier(extract="gsm8k")("Answer: A\n#### B", Problem("p", (), "B")).correct
    named = Problem("p", (), "B", {"extract": "gsm8k"})
    assert ChoiceVerifier(extract="boxed")("\\boxed{A}\n#### B", named).correct


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choices": "A"}, "ChoiceVerifier.choices must be different capital letters, two at least; got 'A'"),
        ({"choices": "ABA"}, "ChoiceVerifier.choices must be different .*; got 'ABA'"),
        ({"choices": "abc"}, "ChoiceVerifier.choices must be different .*; got 'abc'"),
        ({"extract": "box"}, "ChoiceVerifier.extract must be auto, boxed, .*; got 'box'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChoiceVerifier(**settings)
