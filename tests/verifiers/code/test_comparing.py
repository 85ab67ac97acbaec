"""When two outputs are the same."""

from __future__ import annotations

from typing import Any

import pytest

from rlvr_lightning.verifiers.code.compare import same_json, same_lines, same_tokens, same_value


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("5\n", "5", True),
        ("1 2\n3\n", "1\n2 3", True),
        ("  1\t2 \n\n", "1 2", True),
        ("YES\nno", "Yes\nNO", True),
        ("Yess", "YESS", False),
        ("abc", "ABC", False),
        ("1.0", "1", False),
        ("1 2 3", "1 2", False),
        ("1", "1 2", False),
        ("12", "1 2", False),
        ("", "", True),
        ("", "0", False),
        ("5\x00", "5", False),
    ],
)
def test_word_by_word(output: str, expected: str, same: bool) -> None:
    assert same_tokens(output, expected) is same


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1\n2", "1\n2\n", True),
        ("  1  \n\t2", "1\n2", True),
        ("1 2", "1\n2", False),
        ("1\n\n2", "1\n2", False),
        ("\n\n1\n", "1", True),
        ("1.0", "1", True),
        ("1e2 3", "100 3.000", True),
        ("0.1", "0.10000000000000000001", False),
        ("1 2", "1  2", True),
        ("a 2", "a  2", False),
        ("a", "A", False),
        ("YES", "Yes", False),
        ("1 2", "1 2 3", False),
        ("nan", "nan", True),
        ("nan 1", "nan  1", False),
        ("sNaN", "1", False),
        ("inf", "Infinity", True),
        ("-0", "0", True),
        ("1_000", "1000", True),
        ("", "", True),
        ("", "0", False),
        ("1e999999999", "1", False),
        ("1e9999999999999999999999", "1", False),
        ("True", "true", False),
    ],
)
def test_line_by_line_as_livecodebench_does(output: str, expected: str, same: bool) -> None:
    assert same_lines(output, expected) is same


@pytest.mark.parametrize(
    ("result", "expected", "same"),
    [
        ([1, 2], [1, 2], True),
        ((1, 2), [1, 2], True),
        ([(1, 2)], [[1, 2]], False),
        (1.0, 1, True),
        (True, 1, True),
        ("1", 1, False),
        (None, [], False),
        ({"a": 1}, {"a": 1}, True),
        (float("nan"), float("nan"), False),
        ([1], 1, False),
        (1, [1], False),
    ],
)
def test_values_as_livecodebench_does(result: Any, expected: Any, same: bool) -> None:
    assert same_value(result, expected) is same


@pytest.mark.parametrize(
    ("result", "expected", "same"),
    [
        (5, [5], True),
        (5, 5, True),
        ([5], [5], True),
        ([5], [[5]], True),
        ([(1, 2)], [[1, 2]], True),
        ({1: (2,)}, {"1": [2]}, True),
        (5, [5, 5], False),
        (5, [6], False),
        ("5", [5], False),
        ({1, 2}, [1, 2], False),
    ],
)
def test_values_of_apps_may_be_wrapped(result: Any, expected: Any, same: bool) -> None:
    assert same_json(result, expected) is same
