from __future__ import annotations

import pickle
import random
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError, DataError, VerifierTimeoutError
from rlvr_lightning.types import Episode, Generation, Problem, Prompt, Rollout, Verdict
from rlvr_lightning.verifiers.grading import Grading, grade
from rlvr_lightning.verifiers.math import MathVerifier, far_apart, plain_number
from rlvr_lightning.verifiers.math_worker import judge as judged_by_the_library
from rlvr_lightning.verifiers.pool import VerifierPool

HOSTILE = "9^{9^{9^9}}"


def problem(answer: str) -> Problem:
    return Problem("q1", (), answer)


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    """One verifier, and so one worker process, for the tests that share it."""
    verifier = MathVerifier(timeout_s=20.0)
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", Fraction(7)),
        (" -7 ", Fraction(-7)),
        ("+7", Fraction(7)),
        ("007", Fraction(7)),
        ("1,234", Fraction(1234)),
        ("-1,234.50", Fraction(-2469, 2)),
        ("1,234,567", Fraction(1234567)),
        ("0.5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-6/8", Fraction(-3, 4)),
        ("$5$", Fraction(5)),
        (r"\$5", Fraction(5)),
        (r"$\$1,000$", Fraction(1000)),
        ("1e6", Fraction(1000000)),
        ("1e-6", Fraction(1, 1000000)),
        ("2.5E3", Fraction(2500)),
        ("", None),
        ("x", None),
        ("1 2", None),
        ("1 1/2", None),
        ("1,23", None),
        ("1234,567", None),
        ("1, 234", None),
        ("1/0", None),
        ("1/2/3", None),
        ("1.2.3", None),
        ("--1", None),
        ("1e9999", None),
        ("9" * 41, None),
        (r"\frac{1}{2}", None),
        ("5%", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_plain_numerals(text: str, value: Fraction | None) -> None:
    assert plain_number(text) == value


@pytest.mark.parametrize(
    ("extract", "response", "verdict"),
    [
        ("boxed", r"It is \boxed{1{,}234}.", Verdict(1.0, True, None)),
        ("boxed", r"\boxed{1,234}", Verdict(1.0, True, "1,234")),
        ("boxed", "1234", Verdict(0.0, False, None, "unparsable")),
        ("gsm8k", "so\n#### 1,234", Verdict(1.0, True, "1,234")),
        ("gsm8k", r"#### \$1,234", Verdict(1.0, True, r"\$1,234")),
        ("answer_tag", "<answer>1234.0</answer>", Verdict(1.0, True, "1234.0")),
        ("answer_colon", "Answer: 2468/2", Verdict(1.0, True, "2468/2")),
        ("final_answer", "The final answer is 1234.", Verdict(1.0, True, "1234")),
        ("final_answer", "The final answer is 1235.", Verdict(0.0, False, "1235")),
        ("bracket", "[1233] [1234]", Verdict(1.0, True, "1234")),
        ("free", "1234", Verdict(1.0, True, "1234")),
        ("auto", r"Answer: 1 \boxed{1234}", Verdict(1.0, True, "1234")),
        ("auto", "", Verdict(0.0, False, None, "unparsable")),
    ],
)
def test_conventions(verifier: MathVerifier, extract: str, response: str, verdict: Verdict) -> None:
    verifier.extract = extract
    judged = verifier(response, problem("1234"))
    assert (judged.reward, judged.correct) == (verdict.reward, verdict.correct)
    if verdict.extracted is not None or not verdict.correct:
        assert judged.extracted == verdict.extracted


@pytest.mark.parametrize(
    ("gold", "prediction", "correct"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", "2/4", True),
        (r"\frac{1}{2}", r"\frac12", True),
        (r"\frac{1}{2}", "0.51", False),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("x^2+2x+1", "(x+2)^2", False),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("(1,2)", "(2,1)", False),
        ("[0,1)", "[0,1]", False),
        ("32348", r"\$32,\!348", True),
        ("1000000", "1e6", True),
        ("0.000001", "1e-6", True),
        ("C", "C", True),
        ("C", "D", False),
        ("34", "3 4", False),
        ("11/2", "1 1/2", False),
        (r"1 - \frac{1}{\mathrm{e}}", r"1 - \frac{1}{\mathrm{e}}", True),
        (r"1 - \frac{1}{\mathrm{e}}", r"1 + \frac{1}{\mathrm{e}}", False),
        ("4", "__import__('os').getpid()", False),
        ("4", "", False),
    ],
)
def test_equality(verifier: MathVerifier, gold: str, prediction: str, correct: bool) -> None:
    verifier.extract = "boxed"
    assert verifier(rf"\boxed{{{prediction}}}", problem(gold)).correct is correct


@pytest.mark.parametrize(
    ("response", "correct"),
    [("C", True), ("**C**", True), ("It is (C).", True), ("The answer is C.", True), ("D", False)],
)
def test_letters_in_passages(verifier: MathVerifier, response: str, correct: bool) -> None:
    verifier.extract = "free"
    assert verifier(response, problem("C")).correct is correct


def test_plain_numerals_and_equal_texts_need_no_worker() -> None:
    verifier = MathVerifier("boxed", timeout_s=1e-9)
    for gold, prediction, correct in (
        ("1234", "1,234", True),
        ("3/4", "6/8", True),
        ("5", r"\$5", True),
        ("5", "6", False),
        (r"\sqrt{2}", r"\sqrt{2}", True),
    ):
        assert verifier(rf"\boxed{{{prediction}}}", problem(gold)).correct is correct
    with pytest.raises(VerifierTimeoutError):
        verifier(r"\boxed{\sqrt{3}}", problem(r"\sqrt{2}"))
    verifier.close()


def test_a_hostile_answer_runs_out_of_time_and_the_next_call_works() -> None:
    verifier = MathVerifier("boxed", timeout_s=1.5)
    # Its imports are no part of the time.
    assert verifier(r"\boxed{\sqrt{8}}", problem(r"2\sqrt{2}")).correct
    start = time.monotonic()
    with pytest.raises(VerifierTimeoutError, match=r"no verdict within 1\.5 s"):
        verifier(rf"\boxed{{{HOSTILE}}}", problem("7"))
    assert time.monotonic() - start < 10
    assert verifier(r"\boxed{\sqrt{8}}", problem(r"2\sqrt{2}")) == Verdict(1.0, True, r"\sqrt{8}")
    verifier.close()


def test_a_hostile_answer_gets_no_reward_and_costs_the_others_nothing() -> None:
    verifier = MathVerifier("boxed", timeout_s=1.5)
    prompt = Prompt(problem(r"2\sqrt{2}"), (1,), 0)
    drawn = [
        Rollout(prompt, sample, Episode.of(Generation((2,), (0.0,), "stop", 0)), rf"\boxed{{{answer}}}")
        for sample, answer in enumerate((r"\sqrt{8}", HOSTILE, r"\sqrt{9}"))
    ]
    graded = grade(drawn, VerifierPool(verifier, workers=0), Grading())
    verifier.close()
    assert [None if r.verdict is None else r.verdict.reward for r in graded] == [1.0, None, 0.0]
    assert [r.kind for r in graded] == ["correct", "timeout", "wrong"]
    assert [r.error for r in graded] == [None, "VerifierTimeoutError: no verdict within 1.5 s", None]


@pytest.mark.parametrize("bracket", ["(", "{", "["])
def test_deep_nesting_is_wrong_at_once(verifier: MathVerifier, bracket: str) -> None:
    verifier.extract = "free"
    start = time.monotonic()
    assert verifier(bracket * 400 + "42", problem("42")).correct is False
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("gold", ["$$", r"\$", "}"])
def test_a_gold_answer_that_cannot_be_read_is_an_error(verifier: MathVerifier, gold: str) -> None:
    verifier.extract = "auto"
    with pytest.raises(DataError, match=re.escape(f"problem q1: the gold answer {gold!r} cannot be read")):
        verifier(r"\boxed{4}", problem(gold))


@pytest.mark.parametrize("gold", ["", " \n"])
def test_an_empty_gold_answer_is_an_error_even_without_an_answer(verifier: MathVerifier, gold: str) -> None:
    verifier.extract = "auto"
    for response in (r"\boxed{4}", r"\boxed{}", ""):
        with pytest.raises(DataError, match="problem q1: the gold answer is empty"):
            verifier(response, problem(gold))


def test_extracted_answers_are_cut_for_reading(verifier: MathVerifier) -> None:
    verifier.extract = "boxed"
    assert verifier(rf"\boxed{{{'9' * 3000}}}", problem("7")) == Verdict(0.0, False, "9" * 200)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extract": "box"}, "MathVerifier.extract must be auto, boxed, .*; got 'box'"),
        ({"timeout_s": 0.0}, r"MathVerifier\.timeout_s must be above 0; got 0\.0"),
        ({"timeout_s": -1.0}, r"must be above 0; got -1\.0"),
        ({"timeout_s": float("nan")}, "must be above 0; got nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MathVerifier(**settings)


def test_close_twice_and_go_on() -> None:
    verifier = MathVerifier("boxed", timeout_s=20.0)
    verifier.close()
    assert verifier(r"\boxed{\sqrt{8}}", problem(r"2\sqrt{2}")).correct
    verifier.close()
    verifier.close()
    assert not verifier(r"\boxed{\sqrt{7}}", problem(r"2\sqrt{2}")).correct
    verifier.close()


def test_a_pickled_copy_judges_alike(verifier: MathVerifier) -> None:
    verifier.extract = "boxed"
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy(r"\boxed{\sqrt{8}}", problem(r"2\sqrt{2}")) == Verdict(1.0, True, r"\sqrt{8}")
    copy.close()


def test_of_a_long_answer_two_hundred_characters_are_shown(verifier: MathVerifier) -> None:
    for length, answer in ((199, "1"), (200, "1"), (201, "1"), (900, "1")):
        sum_of_ones = ("1+" * length)[: length - 1 + length % 2] + ("" if length % 2 else "1")
        shown = verifier(f"\\boxed{{{sum_of_ones}}}", problem(answer)).extracted
        assert shown == sum_of_ones[:200]
    # Equal as text, and as a plain number, without asking the worker.
    for text in ("x" * 300, "1" + "0" * 30):
        assert verifier(f"\\boxed{{{text}}}", problem(text)).extracted == text[:200]


def test_decimals_that_are_settled_at_once_are_so_by_the_library_too() -> None:
    """Four hundred random pairs, from alike in six digits to of another size."""
    dice = random.Random(0)
    settled = 0
    for _ in range(400):
        one = round(dice.uniform(-1000, 1000), dice.randrange(1, 6))
        other = round(
            one * (1 + dice.choice((0, 1e-9, 1e-5, 1e-3, 3e-3, 0.1, 3)) * dice.choice((-1, 1))), dice.randrange(1, 8)
        )
        if far_apart(Fraction(str(one)), Fraction(str(other))):
            settled += 1
            said = judged_by_the_library({"gold": str(one), "prediction": str(other), "prose": False})
            assert said["correct"] is False, (one, other)
    assert 100 < settled < 350
