from __future__ import annotations

import time

import pytest

from rlvr_lightning.verifiers.extraction import (
    AUTO_ORDER,
    EXTRACTORS,
    MAX_CHARACTERS,
    depth,
    extract_answer,
    last_boxed,
)


def found(response: str, convention: str) -> str | None:
    """The text of the answer."""
    answer = extract_answer(response, convention)
    return None if answer is None else answer.text


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"so \boxed{1}, no, \boxed{ 2 }.", "2"),
        (r"\fbox{3}", "3"),
        (r"\boxed {4}", "4"),
        (r"\boxed 5", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a} and \boxed{b", "a"),
        (r"\boxed{}", ""),
        (r"\boxed{unfinished", None),
        ("no box", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("convention", "response", "answer"),
    [
        ("boxed", r"first \boxed{1}, then $\boxed{\sqrt{2}}$", r"\sqrt{2}"),
        ("boxed", "#### 7", None),
        ("answer_tag", "<answer>1</answer> or <ANSWER> 2\n</ANSWER>", "2"),
        ("answer_tag", "<answer>1</answer><answer> </answer>", "1"),
        ("answer_tag", "<answer>1", None),
        ("answer_tag", r"<answer>it is \boxed{5}</answer>", "5"),
        ("gsm8k", "2+2=4\n#### 4", "4"),
        ("gsm8k", "#### 1\nno\n#### 2\nso long", "2"),
        ("gsm8k", "#### 1,000", "1,000"),
        ("gsm8k", "### 4", None),
        ("final_answer", "The answer is 3.\nThe final answer is: $x+1$.", "x+1"),
        ("final_answer", "the FINAL ANSWER is **4**.", "4"),
        ("final_answer", "Answer: 4", None),
        ("answer_colon", "Answer: 4", "4"),
        ("answer_colon", "**Answer:** 4", "4"),
        ("answer_colon", "Answer: 3\nAnswer: 3.5.", "3.5"),
        ("answer_colon", "Answer: it is 4. Then comes 5.", "Answer: it is 4"),
        ("answer_colon", "The answer is 4", None),
        ("bracket", "[1] then [ -2 ]", "-2"),
        ("bracket", "[1\n2]", None),
        ("bracket", "(1)", None),
        ("free", "  42 \n", "42"),
        ("free", " \n", None),
    ],
)
def test_conventions(convention: str, response: str, answer: str | None) -> None:
    assert found(response, convention) == answer


@pytest.mark.parametrize("convention", [*EXTRACTORS, "auto"])
def test_nothing_is_found_in_nothing(convention: str) -> None:
    assert extract_answer("", convention) is None
    assert extract_answer(" \n\t", convention) is None


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<answer>1</answer> #### 2 \boxed{3}", "3"),
        ("#### 2\n<answer>1</answer>", "1"),
        ("The answer is 5\n#### 2", "2"),
        ("Answer: 1\nThe answer is 2", "2"),
        ("Answer: 1", "1"),
        ("1", "1"),
        (r"\boxed{unfinished" + "\nAnswer: 4", "4"),
    ],
)
def test_auto_takes_the_first_convention_that_finds_something(response: str, answer: str) -> None:
    assert found(response, "auto") == answer


def test_a_markdown_heading_is_no_answer_to_auto() -> None:
    assert found("#### The first step of it\nThe answer is 9", "auto") == "9"


def test_auto_order_holds_every_convention_but_brackets() -> None:
    assert set(AUTO_ORDER) == set(EXTRACTORS) - {"bracket"}


def test_a_passage_is_told_from_an_answer() -> None:
    for text, prose in (("The answer is 4", False), ("The answer is the number 4", True), ("Answer: $x$ or $y$", True)):
        answer = extract_answer(text, "auto")
        assert answer is not None
        assert answer.prose is prose
    matrix = r"\begin{pmatrix} a \\ \text{b c} \end{pmatrix}"
    for text, prose in (("x = **4**", False), (matrix, False), ("it is 4", True)):
        free = extract_answer(text, "free")
        assert free is not None
        assert free.prose is prose


def test_only_the_end_of_a_response_is_read() -> None:
    assert found(r"\boxed{1}" + " " * MAX_CHARACTERS + "Answer: 2", "auto") == "2"
    assert found(r"\boxed{1}" + " " * MAX_CHARACTERS, "boxed") is None
    assert found(" " * MAX_CHARACTERS + r"\boxed{1}", "boxed") == "1"


@pytest.mark.parametrize(
    "hostile",
    [
        r"\boxed{",
        r"\boxed",
        "{",
        "}",
        r"\boxed ",
        "<answer>",
        "####",
        "#### ",
        "answer is ",
        "final answer ",
        "answer: ",
        "answer :\n",
        "[",
        "$",
        r"\\",
        " ",
        "a.",
    ],
)
def test_every_search_is_quick_on_hostile_text(hostile: str) -> None:
    text = hostile * (MAX_CHARACTERS // len(hostile))
    for convention in (*EXTRACTORS, "auto"):
        start = time.process_time()
        extract_answer(text, convention)
        assert time.process_time() - start < 1.0, convention


@pytest.mark.parametrize(
    ("text", "levels"), [("", 0), ("x", 0), ("()[]{}", 1), ("([{x}])", 3), ("((((", 4), ("))))(", 1), ("(a)(b(c))", 2)]
)
def test_depth(text: str, levels: int) -> None:
    assert depth(text) == levels
