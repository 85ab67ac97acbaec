"""Numbers combined step by step until the target is left: any true way is right."""

from __future__ import annotations

import re
from typing import ClassVar

from rlvr_lightning.types import Problem, Verdict

STEP = re.compile(r"(\d{1,9})([+*-])(\d{1,9})=(\d{1,9})", re.ASCII)
RESULTS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


class CountdownVerifier:
    """Right when every number is used once, every step is true, and the last result is the target.

    The gold answer states both: `3,12,14>50`. A step is `3*12=36` (`+`, `-`, `*`; no result below 0); steps are separated by `;` or
    by line breaks, and a result is a number like the others from then on.
    """

    judges: ClassVar[str] = "answer"

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """1 for a right way, 0 for any other.

        Args:
            response: what the model wrote.
            problem: its `answer` is `NUMBER,NUMBER,...>TARGET`.

        Returns:
            The verdict, with the last result as the answer; `unparsable` where a step is none.

        Raises:
            ValueError: the gold answer is of another form.
        """
        numbers, _, target = problem.answer.partition(">")
        left = [int(number) for number in numbers.split(",")]
        goal = int(target)
        steps = [STEP.fullmatch(step) for step in re.split(r"[;\n]", response.strip().replace(" ", ""))]
        told = [(int(step[1]), step[2], int(step[3]), int(step[4])) for step in steps if step is not None]
        if len(told) < len(steps):
            return Verdict(0.0, False, kind="unparsable")
        true = all(_take(left, one, operator, other, result) for one, operator, other, result in told)
        correct = true and left == [goal]
        return Verdict(float(correct), correct, str(told[-1][3]))


def _take(left: list[int], one: int, operator: str, other: int, result: int) -> bool:
    """Put the result of a step in the place of its numbers; False where it is not true or has not got them."""
    for number in (one, other):
        if number not in left:
            return False
        left.remove(number)
    left.append(result)
    return RESULTS[operator](one, other) == result
