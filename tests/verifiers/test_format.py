from __future__ import annotations

from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.format import FormatVerifier

PROBLEM = Problem("p", (), "4")


def right(response: str, **settings: Any) -> bool:
    verdict = FormatVerifier(**settings)(response, PROBLEM)
    assert verdict.reward == float(verdict.correct)
    assert verdict.kind is None
    return verdict.correct


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        ("<think>2+2</think><answer>4</answer>", True),
        ("\n<think>\n2\n</think>\n \n<answer>5</answer>\n", True),
        ("<think></think><answer></answer>", True),
        ("<think>a <b> c</think><answer>4</answer>", True),
        ("<answer>4</answer><think>2+2</think>", False),
        ("<think>2+2<answer>4</answer></think>", False),
        ("<think>2+2</think>", False),
        ("<think>1</think><think>2</think><answer>4</answer>", False),
        ("<think>1</think><answer>4</answer></answer>", False),
        ("</think><think><answer>4</answer>", False),
        ("<Think>2+2</Think><answer>4</answer>", False),
        ("So <think>2+2</think><answer>4</answer>", False),
        ("<think>2+2</think> so <answer>4</answer>", False),
        ("<think>2+2</think><answer>4</answer>!", False),
        ("", False),
    ],
)
def test_tags_once_and_in_order(response: str, correct: bool) -> None:
    assert right(response) is correct


def test_text_outside_is_a_setting() -> None:
    response = "So <think>2+2</think> is <answer>4</answer>!"
    assert not right(response)
    assert right(response, outside=True)
    assert right(response, outside=True, tags=["answer"])
    assert not right("4</answer><answer>", outside=True, tags=["answer"])


def test_pattern_and_length() -> None:
    assert right("x = 4", tags=[])
    assert right("x\n= 4", tags=[], pattern=r"^x.=")
    assert not right("y = 4", tags=[], pattern=r"^x.=")
    for length in range(7):
        assert right("x" * length, tags=[], min_characters=2, max_characters=4) is (2 <= length <= 4)


def test_what_the_last_tag_holds_is_shown() -> None:
    response = f"<think>2</think><answer> {'4' * 300} </answer>"
    assert FormatVerifier()(response, PROBLEM) == Verdict(1.0, True, "4" * 200)
    assert FormatVerifier(max_characters=3)(response, PROBLEM) == Verdict(0.0, False, "4" * 200)
    assert FormatVerifier()("4", PROBLEM) == Verdict(0.0, False, None)


def test_only_a_pattern_needs_a_process() -> None:
    assert not FormatVerifier().isolated
    assert FormatVerifier(pattern="(a+)+b").isolated


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tags": ["<think>"]}, "FormatVerifier.tags are names such as think; got '<think>'"),
        ({"tags": ["a", "b", "a"]}, "FormatVerifier.tags must differ; got a, b, a"),
        ({"pattern": "("}, "FormatVerifier.pattern is no regular expression.*; got '\\('"),
        ({"min_characters": -1}, "min_characters must be from 0 to max_characters; got -1 and None"),
        ({"min_characters": 5, "max_characters": 4}, "min_characters must be from 0 to max_characters; got 5 and 4"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FormatVerifier(**settings)
