"""What `verdicts.py` has judged: easy answers, programs, and a few that never end."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.math import MathVerifier

PROGRAM = "def total(numbers):\n    result = {start}\n    for number in numbers:\n        result += number\n    return result\n"
ASSERTS = ["assert total([]) == 0", "assert total([1, 2, 3]) == 6", "assert total([-1, 1]) == 0"]


class Sleepy(MathVerifier):
    """Never comes back from some answers, as a library that waits for something."""

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """As the math verifier judges, or never."""
        if problem.meta.get("hangs"):
            time.sleep(1e6)
        return super().__call__(response, problem)


def math_answers(count: int, every: int | None) -> Iterator[tuple[str, Problem]]:
    """Integers, decimals and fractions, half of them right; every so many one hangs."""
    for i in range(count):
        gold = (str(i), f"{i}.5", f"{i}/7")[i % 3]
        said = gold if i % 2 else f"{gold}1"
        hangs = every is not None and i % every == every // 2
        yield f"We add and find \\boxed{{{said}}}.", Problem(f"p{i}", (), gold, {"hangs": hangs})


def symbolic_answers(count: int) -> Iterator[tuple[str, Problem]]:
    """Answers that need computer algebra."""
    for i in range(count):
        gold, said = rf"\frac{{\sqrt{{{i + 2}}}}}{{2}}", rf"\sqrt{{\frac{{{i + 2 + i % 2}}}{{4}}}}"
        yield f"So it is \\boxed{{{said}}}.", Problem(f"p{i}", (), gold, {})


def programs(count: int, every: int | None) -> Iterator[tuple[str, Problem]]:
    """Programs with three tests, half of them right; every so many one sleeps for ever."""
    for i in range(count):
        code = PROGRAM.format(start=f"{i} - {i}" if i % 2 else i + 1)
        if every is not None and i % every == every // 2:
            code += "import time\ntime.sleep(1e6)\n"
        tests = {"type": "asserts", "setup": "", "asserts": ASSERTS}
        yield f"```python\n{code}```", Problem(f"p{i}", ({"role": "user", "content": ""},), "", {"tests": tests})
