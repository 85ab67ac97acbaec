"""A program judged by each kind of tests: assertions, readers, calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asking import asserts, judged, problem, reader

from rlvr_lightning.types import Problem


@pytest.mark.parametrize(
    ("code", "test", "correct"),
    [
        # What assertions may do with a program that is in another process.
        ("class Pair:\n    def __init__(self, a): self.a = a\ndef f(p): return p.a", "assert f(Pair(3)) == 3", True),
        ("class Pair:\n    def __init__(self, a): self.a = a", "assert Pair(3).a == 3", True),
        ("def f(xs): xs.sort()", "xs = [2, 1]\nf(xs)\nassert xs == [1, 2]", True),
        ("def f(d): d['k'] = 1", "d = {}\nf(d)\nassert d == {'k': 1}", True),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]", True),
        ("def f(n): return lambda m: n + m", "assert f(1)(2) == 3", True),
        (
            "def f(): raise ValueError('no')",
            "try:\n    f()\n    assert False\nexcept ValueError: pass\nassert True",
            True,
        ),
        ("def f(): raise ValueError('no')", "try:\n    f()\nexcept ValueError as e:\n    assert str(e) == 'no'", True),
        ("class E(Exception): pass\ndef f(): raise E", "try:\n    f()\nexcept Exception:\n    assert True", True),
        ("import math\ndef f(x): return x", "assert math.isclose(f(1.0), 1.0)", True),
        ("LIMIT = 5", "assert LIMIT == 5", True),
        ("def sum(a, b): return a + b", "assert sum(1, 2) == 3", True),
        ("def set(x): return 1\ndef f(x): return x", "assert set(f([1, 1])) == {1}", True),
        ("def f(): return {1: (2, {3})}", "assert f() == {1: (2, {3})}", True),
        ("def f(): return (1, 2)", "assert f() == [1, 2]", False),
        ("def f(): return 1.0", "assert f() == 1", True),
        ("def f(): return None", "assert f() is None", True),
        ("def f(a, *, b=2): return a * b", "assert f(2, b=5) == 10", True),
        ("def f(x): return x", "for i in range(50):\n    assert f(i) == i", True),
        ("def f(x): return x", "for i in range(0):\n    assert f(i) == i", False),
        ("def f(x): return len(x)", "assert f('ä\\ud800') == 2", True),
        ("def f(n): return 10 ** n", "assert f(5000) == 10 ** 5000", True),
        ("if __name__ == '__main__':\n    raise SystemExit\ndef f(): return 1", "assert f() == 1", True),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\ndef f(): return P(1).a",
            "assert f() == 1",
            True,
        ),
        ("import json, numpy\ndef f(): return numpy.arange(3).sum()", "assert f() == 3", True),
        ("def f(): print('x' * 10**6); return 1", "assert f() == 1", True),
        ("def f(): return input()", "assert f() == ''", False),
    ],
)
def test_assertions_see_a_program_as_if_it_were_here(code: str, test: str, correct: bool) -> None:
    assert judged(code, asserts(test)).correct is correct


def test_setup_runs_before_the_program_and_before_the_assertions() -> None:
    asked = asserts("assert f(N) == N + 1", setup="N = 3\ndef up(x): return x + 1")
    assert judged("def f(x): return up(x)", asked).correct


def test_the_program_is_not_shown_the_tests() -> None:
    code = """
import gc, sys
def f(x):
    seen = [str(held) for held in gc.get_objects() if isinstance(held, (str, list, dict, tuple))]
    frame = sys._getframe()
    while frame:
        seen.append(str(frame.f_locals) + str(frame.f_globals))
        frame = frame.f_back
    return any("".join(("76543", "21")) in text for text in seen)
"""
    assert judged(code, asserts("assert f(1) == False", "assert 7654321 == 7654321"), timeout_s={"asserts": 60}).correct


@pytest.mark.parametrize(
    ("code", "pairs", "correct"),
    [
        ("print(input())", (("a", "a"), ("b", "b")), True),
        ("import sys\nprint(sys.stdin.read().upper())", (("a b\nc", "A B C"),), True),
        ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))", (("1 2\n3", "6"),), True),
        ("print(open(0).read())", (("a", "a"),), True),
        ("def main():\n    print(int(input()) + 1)\nif __name__ == '__main__':\n    main()", (("1", "2"),), True),
        ("import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\n"
         "def r(n): return n and r(n - 1) + 1\nthreading.Thread(target=lambda: print(r(20000))).start()", (("", "20000"),), True),
        ("print(input())\nexit()", (("a", "a"),), True),
        ("print(input())\nexit(0)", (("a", "a"),), True),
        ("print(input())\nexit(1)", (("a", "a"),), False),
        ("print('ä')", (("", "ä"),), True),
        ("import sys\nsys.stdout.write('5')", (("", "5"),), True),
        ("x = input()\nopen('x', 'w').write(x)\nprint(open('x').read())", (("a", "a"), ("b", "b")), True),
        ("print('x' * 10**6)", (("", "x" * 10**6),), True),
        ("import gc\nprint(gc.isenabled(), gc.get_threshold()[0] > 0)", (("", "True True"),), True),
        ("import atexit\natexit.register(lambda: print('bye'))", (("", "bye"),), True),
        ("print(len(input()))", (("y" * 10**6, str(10**6)),), True),
    ],
)  # fmt: skip
def test_readers(code: str, pairs: tuple[tuple[str, str], ...], correct: bool) -> None:
    assert judged(code, reader(*pairs)).correct is correct


def livecodebench(cases: list[tuple[str, str]], function: str | None = None) -> Problem:
    held = [
        {"input": given, "output": wanted, "testtype": "functional" if function else "stdin"} for given, wanted in cases
    ]
    metadata = json.dumps({"func_name": function} if function else {})
    return problem(public_test_cases=json.dumps(held), private_test_cases="[]", metadata=metadata)


@pytest.mark.parametrize(
    ("code", "asked", "correct"),
    [
        ("class Solution:\n    def f(self, xs, k): return [x + k for x in xs]", ([("[1, 2]\n3", "[4, 5]")], "f"), True),
        ("class Solution:\n    def f(self, xs, k): return tuple(x + k for x in xs)", ([("[1, 2]\n3", "[4, 5]")], "f"), True),
        ("class Solution:\n    def f(self, x: List[int]) -> int: return 1 / 0", ([("[]", "1")], "f"), False),
        ("class Solution:\n    def f(self, d): return d", ([('{"a": [1]}', '{"a": [1]}')], "f"), True),
        ("def f(x): return Counter(x)['a']", ([('"aab"', "2")], "f"), True),
        ("def g(x): return 1", ([("1", "1")], "f"), False),
        ("class Solution:\n  n = 0\n  def f(self, x):\n    self.n += 1\n    return self.n", ([("1", "1"), ("1", "2")], "f"), True),
        ("print(Decimal)", ([("", "x")],), False),
        ("from decimal import Decimal\nprint(1.50)", ([("", "1.5")],), True),
        ("print(1)\nprint()", ([("", "1")],), True),
        ("print(gcd(4, 6), sqrt(4))", ([("", "2 2")],), True),
    ],
)  # fmt: skip
def test_livecodebench(code: str, asked: tuple[Any, ...], correct: bool) -> None:
    assert judged(code, livecodebench(*asked)).correct is correct


def test_the_time_of_a_call_is_its_own() -> None:
    code = "import time\ndef f(x):\n    start = time.process_time()\n    while time.process_time() < start + 0.4: pass\n    return x"
    asked = livecodebench([(str(i), str(i)) for i in range(12)], "f")
    assert judged(code, asked, timeout_s={"livecodebench": 2.0}).kind == "correct"
