"""Problems with tests of each kind, and what the code verifier says of a program."""

from __future__ import annotations

from typing import Any

from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.code.verifier import CodeVerifier

SLOW = dict.fromkeys(("check", "asserts", "functional", "stdin", "call", "livecodebench"), 20.0)


def problem(**row: Any) -> Problem:
    return Problem("p", ({"role": "user", "content": row.get("problem", "")},), "", row)


def asserts(*lines: str, setup: str = "") -> Problem:
    return problem(tests={"type": "asserts", "setup": setup, "asserts": list(lines)})


def judged(code: str, asked: Problem, **settings: Any) -> Verdict:
    return CodeVerifier(extract="whole", **{"timeout_s": SLOW, **settings})(code, asked)


def reader(*pairs: tuple[str, str], **row: Any) -> Problem:
    cases = [{"input": given, "output": wanted} for given, wanted in pairs]
    return problem(tests={"type": "stdin", "cases": cases}, **row)


FOUR = asserts(*(f"assert half({2 * i}) == {i}" for i in range(4)))
