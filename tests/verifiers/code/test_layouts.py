"""The layouts of data sets, read as plain test cases."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from rlvr_lightning.errors import DataError
from rlvr_lightning.verifiers.code.tests import Case, Cases, Script, read_tests


def test_asserts_with_their_extra_ones() -> None:
    row = {
        "tests": {
            "type": "asserts",
            "setup": "import math",
            "asserts": ["assert f(1) == 2"],
            "extra_asserts": ["assert f(2)"],
        }
    }
    assert read_tests(row, "r") == Script("asserts", "import math", "assert f(1) == 2\nassert f(2)")


def test_check_calls_the_entry_point() -> None:
    tests = {"type": "check", "code": "def check(candidate):\n    assert candidate(1)", "entry_point": "f"}
    read = read_tests({"tests": tests}, "r")
    assert read == Script("check", "", "def check(candidate):\n    assert candidate(1)\ncheck(f)\n", "f")
    del tests["entry_point"]
    assert read_tests({"tests": tests, "entry_point": "f"}, "r") == read


def test_functional_runs_as_it_stands() -> None:
    tests = {"type": "functional", "prelude": "import re", "code": "check(Solution().f)"}
    row = {"tests": tests, "entry_point": "Solution().f"}
    assert read_tests(row, "r") == Script("functional", "import re", "check(Solution().f)", "Solution().f")


def test_stdin_and_its_time_limit() -> None:
    row = {"tests": {"type": "stdin", "cases": [{"input": "1\n", "output": "2\n"}]}, "time_limit_s": 8.0}
    assert read_tests(row, "r") == Cases("stdin", "", (Case("1\n", "2\n"),), None, "tokens", 8.0)


def test_call_names_its_function() -> None:
    row = {"tests": {"type": "call", "fn_name": "Solution().f", "cases": [{"input": [1, "a"], "output": [True]}]}}
    assert read_tests(row, "r") == Cases("call", "", (Case([1, "a"], [True]),), "f", "json")


def record(private: str, **more: Any) -> dict[str, Any]:
    public = json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}])
    return {"public_test_cases": public, "private_test_cases": private, "metadata": "{}", **more}


def packed(content: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(content))).decode()


def test_livecodebench_public_then_private() -> None:
    private = json.dumps([{"input": "3\n", "output": "4\n", "testtype": "stdin"}])
    for text in (private, packed(private)):
        read = read_tests(record(text), "r")
        assert isinstance(read, Cases)
        assert (read.cases, read.function, read.rule) == ((Case("1\n", "2\n"), Case("3\n", "4\n")), None, "lines")
        assert "from typing import *" in read.setup


def test_livecodebench_functions_have_an_argument_a_line() -> None:
    cases = json.dumps([{"input": '[1, 2]\n"a"', "output": "[[1]]", "testtype": "functional"}])
    row = {"public_test_cases": cases, "private_test_cases": "[]", "metadata": json.dumps({"func_name": "f"})}
    read = read_tests(row, "r")
    assert isinstance(read, Cases)
    assert (read.cases, read.function, read.rule) == ((Case([[1, 2], "a"], [[1]]),), "f", "plain")


class Bomb:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, (self.canary,))


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    for content in (Bomb(str(canary)), [Bomb(str(canary))], {"a": os.system}):
        with pytest.raises(DataError, match="is refused: only plain values are read"):
            read_tests(record(packed(content)), "r")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "needs a field 'tests'"),
        ({"tests": {"type": "doctest"}}, "got 'doctest'"),
        ({"tests": {"type": "asserts", "asserts": []}}, "it has no test"),
        ({"tests": {"type": "stdin", "cases": []}}, "it has no test"),
        ({"tests": {"type": "stdin"}}, "KeyError: 'cases'"),
        ({"tests": {"type": "stdin", "cases": [{"input": ""}]}}, "KeyError: 'output'"),
        ({"tests": {"type": "stdin", "cases": [{"input": "", "output": ""}]}, "checker": "special"}, "special"),
        (record("not base64!"), "Error"),
        (record(base64.b64encode(b"no zlib").decode()), "incorrect header"),
        (record(packed("{}")), "no list of cases"),
        (record(packed(b"\x00")), "JSONDecodeError"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_row(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as raised:
        read_tests(row, "problem p")
    assert str(raised.value).startswith("problem p: ")
    assert "\n" not in str(raised.value)


def test_rows_of_humaneval_itself() -> None:
    row = {"prompt": "def f(x):\n", "entry_point": "f", "test": "def check(candidate):\n    assert candidate(1) == 2"}
    assert read_tests(row, "row") == Script(
        "check", "", "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)\n", "f"
    )


def test_rows_of_mbpp_itself() -> None:
    row = {"text": "t", "test_list": ["assert f(1) == 2", "assert f(2) == 3"], "test_setup_code": "import math"}
    assert read_tests(row, "row") == Script("asserts", "import math", "assert f(1) == 2\nassert f(2) == 3")
    harder = {**row, "challenge_test_list": ["assert f(9) == 10"], "test_setup_code": ""}
    assert read_tests(harder, "row") == Script("asserts", "", "assert f(1) == 2\nassert f(2) == 3\nassert f(9) == 10")
