"""The program in a response."""

from __future__ import annotations

import time

import pytest

from rlvr_lightning.verifiers.code.program import defines, extract_program, sources_of

TWO = "First\n```python\na = 1\n```\nthen\n```python\nb = 2\n```\ndone"


@pytest.mark.parametrize(
    ("response", "convention", "code"),
    [
        (TWO, "auto", "b = 2\n"),
        (TWO, "last_block", "b = 2\n"),
        (TWO, "first_block", "a = 1\n"),
        (TWO, "all_blocks", "a = 1\n\nb = 2\n"),
        (TWO, "whole", TWO),
        ("x = 1", "auto", "x = 1"),
        ("    return 1\n", "auto", "    return 1\n"),
        ("x = 1", "last_block", None),
        ("", "auto", None),
        (" \n", "auto", None),
        ("```\nx = 1\n```", "auto", "x = 1\n"),
        ("```py\nx = 1\n```", "auto", "x = 1\n"),
        ("```Python3 title=a\nx = 1\n```", "auto", "x = 1\n"),
        ("~~~python\nx = 1\n~~~", "auto", "x = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "auto", "s = '''\n```\n'''\n"),
        ("```python\nx = 1\n```\n```text\n5\n```", "auto", "x = 1\n"),
        ("```bash\nls\n```", "auto", None),
        ("```python\nx = 1\n```\nand\n```python\nx = 2", "auto", "x = 1\n"),
        ("so\n```python\nx = 2", "auto", "x = 2\n"),
        ("```python\n```", "auto", None),
        ("```python\r\nx = 1\r\n```\r\n", "auto", "x = 1\n"),
        ("say `x = 1` or ```x = 2``` inline", "last_block", None),
    ],
)
def test_extraction(response: str, convention: str, code: str | None) -> None:
    assert extract_program(response, convention) == code


@pytest.mark.parametrize(
    "text", ["```" * 300_000, "```\n" * 300_000, "```python\n" * 100_000, "`" * 10**6, "{" * 10**6]
)
def test_extraction_takes_time_linear_in_the_text(text: str) -> None:
    start = time.monotonic()
    extract_program(text, "auto")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("code", "name", "found"),
    [
        ("def f(x):\n    return x", "f", True),
        ("import a\nasync  def f(x): pass", "f", True),
        ("class f: pass", "f", True),
        ("f = lambda x: x", "f", True),
        ("f: object = len", "f", True),
        ("    def f(x):\n        pass", "f", False),
        ("def ff(x): pass", "f", False),
        ("f == 1", "f", False),
        ("f(1)", "f", False),
        ("return f", "f", False),
    ],
)
def test_whether_code_defines_a_name(code: str, name: str, found: bool) -> None:
    assert defines(code, name) is found


PROBLEM = 'import math\n\ndef helper(x):\n    return x\n\ndef f(x):\n    """Docs"""\n'


def test_a_body_continues_the_problem() -> None:
    assert sources_of("    return helper(x)\n", PROBLEM, "f") == [PROBLEM + "    return helper(x)\n"]
    assert sources_of("    return 1\n", PROBLEM.rstrip("\n"), "f") == [PROBLEM + "    return 1\n"]


def test_a_whole_program_replaces_the_function_and_keeps_what_stands_before_it() -> None:
    whole = "def f(x):\n    return helper(x)\n"
    assert sources_of(whole, PROBLEM, "f") == ["import math\n\ndef helper(x):\n    return x\n\n", whole]
    assert sources_of(whole, "", "f") == [whole]


def test_other_layouts_have_whole_programs() -> None:
    assert sources_of("x = 1", PROBLEM, None) == ["x = 1"]
