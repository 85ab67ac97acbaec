"""Mathematical answers: found by convention, compared as numbers where they are, else by math-verify."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import ClassVar

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.extraction import Answer, check_convention, convention_of, depth, extract_answer
from rlvr_lightning.verifiers.isolation import IsolatedWorker

# Numbers of bounded size: huge exponents are the library's, within its limits.
NUMERAL = re.compile(
    r"[+-]?(?:\d{1,40}[eE][+-]?\d{1,3}|(?:\d{1,3}(?:,\d{3}){1,12}|\d{1,40})(?:\.\d{1,40}(?:[eE][+-]?\d{1,3})?|/\d{1,40})?)"
)
# No answer of a data set comes near these; what goes beyond is made to exhaust the library.
MAX_ANSWER = 2_000
MAX_DEPTH = 50
# A passage is searched in its last characters: the library's patterns take quadratic time.
MAX_PROSE = 4_000


def plain_number(text: str) -> Fraction | None:
    """The value of a plain numeral (`-1,234.50`, `3/4`, `1e6`, a dollar sign before it), or None for anything else."""
    cleaned = text.strip().strip("$").removeprefix("\\$").strip()
    if not NUMERAL.fullmatch(cleaned):
        return None
    numerator, _, denominator = cleaned.replace(",", "").partition("/")
    if denominator and not int(denominator):
        return None
    return Fraction(numerator) / int(denominator or 1)


def far_apart(one: Fraction, other: Fraction) -> bool:
    """Whether two numbers differ by so much that they cannot agree to the library's six digits."""
    return 1000 * abs(one - other) > max(abs(one), abs(other), Fraction(1))


class MathVerifier:
    """Right when the response's answer equals the gold answer mathematically.

    Args:
        extract: where the answer stands: `boxed`, `gsm8k` (`#### 7`), `answer_tag`, `answer_colon`, `final_answer`,
            `bracket`, `free`, or `auto` for the first of these (but `bracket`) that finds something. A problem whose
            `meta` names a convention as `extract` goes by that.
        timeout_s: for one comparison [seconds]; longer ones are errors, never rewards.

    Raises:
        ConfigError: an unknown convention, or no time.
    """

    judges: ClassVar[str] = "answer"
    isolated: ClassVar[bool] = True

    def __init__(self, extract: str = "auto", timeout_s: float = 5.0) -> None:
        check_convention(extract, "MathVerifier.extract")
        if not timeout_s > 0:
            raise ConfigError(f"MathVerifier.timeout_s must be above 0; got {timeout_s}")
        self.extract = extract
        self._worker = IsolatedWorker("rlvr_lightning.verifiers.math_worker", timeout_s)

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """1 for an equal answer, 0 for another or none.

        Args:
            response: what the model wrote.
            problem: its `answer` is the gold answer, without dollar signs or a box.

        Returns:
            The verdict; `extracted` is the answer's first 200 characters, and `unparsable` a response without one.

        Raises:
            VerifierTimeoutError: the comparison took too long.
            VerifierError: the comparison failed.
            DataError: the gold answer cannot be read.
        """
        gold = problem.answer.strip()
        if not gold:
            raise DataError(f"problem {problem.id}: the gold answer is empty")
        answer = extract_answer(response, convention_of(problem, self.extract))
        if answer is None or not answer.text:
            return Verdict(0.0, False, kind="unparsable")
        correct, extracted = self._judge(gold, answer, problem.id)
        return Verdict(float(correct), correct, extracted, "unparsable" if extracted is None and not correct else None)

    def _judge(self, gold: str, answer: Answer, problem_id: str) -> tuple[bool, str | None]:
        text = answer.text[-MAX_PROSE:] if answer.prose else answer.text
        if text == gold:
            return True, text[:200]
        if not answer.prose:
            one, other = plain_number(gold), plain_number(text)
            # Unequal decimals may still agree to the library's six digits.
            if (
                one is not None
                and other is not None
                and (one == other or "." not in gold + text or far_apart(one, other))
            ):
                return one == other, text[:200]
            if len(text) > MAX_ANSWER:
                return False, text[:200]
        if depth(text) > MAX_DEPTH:
            return False, text[:200]
        judged = self._worker.ask({"gold": gold, "prediction": text, "prose": answer.prose})
        if "gold_unreadable" in judged:
            raise DataError(f"problem {problem_id}: the gold answer {gold[:80]!r} cannot be read")
        return bool(judged["correct"]), judged["extracted"]

    def start(self) -> None:
        """Start the worker process, whose imports take seconds."""
        self._worker.start()

    def close(self) -> None:
        """End the worker process. Calling it twice does no harm."""
        self._worker.close()
