"""Mathematical answers: found by convention, compared as numbers where they are, else by math-verify."""

from __future__ import annotations

import re
from fractions import Fraction

from rlvr_lightning.errors import ConfigError, DataError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.extraction import EXTRACTORS, extract_answer
from rlvr_lightning.verifiers.isolation import IsolatedWorker

NUMERAL = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?(?:/\d{1,40})?")
# Longer predictions are prose: the library would search them for minutes.
MAX_PREDICTION = 4_000


def plain_number(text: str) -> Fraction | None:
    """The value of a plain numeral (`-1,234.50`, `3/4`), or None for anything else."""
    cleaned = re.sub(r"\\[$!,]|[$\s]", "", text)
    if not NUMERAL.fullmatch(cleaned):
        return None
    numerator, _, denominator = cleaned.replace(",", "").partition("/")
    if denominator and not int(denominator):
        return None
    return Fraction(numerator) / int(denominator or 1)


class MathVerifier:
    """Right when the response's answer equals the gold answer mathematically.

    Args:
        extract: where the answer stands: `boxed`, `gsm8k` (`#### 7`), `answer_tag`, `answer_colon`, `final_answer`,
            `bracket`, `free`, or `auto` for the first of these that finds something.
        timeout_s: for one comparison [seconds]; longer ones are errors, never rewards.

    Raises:
        ConfigError: an unknown convention, or no time.
    """

    def __init__(self, extract: str = "auto", timeout_s: float = 5.0) -> None:
        if extract != "auto" and extract not in EXTRACTORS:
            raise ConfigError(f"MathVerifier.extract must be auto, {', '.join(EXTRACTORS)}; got {extract!r}")
        if not timeout_s > 0:
            raise ConfigError(f"MathVerifier.timeout_s must be above 0; got {timeout_s}")
        self.extract = extract
        self._worker = IsolatedWorker("rlvr_lightning.verifiers.math_worker", timeout_s)

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """1 for an equal answer, 0 for another or none.

        Raises:
            VerifierTimeoutError: the comparison took too long.
            VerifierError: the comparison failed.
            DataError: the gold answer cannot be read.
        """
        answer = extract_answer(response, self.extract)
        if answer is None:
            return Verdict(0.0, False, None)
        correct = self._equal(problem, answer[-MAX_PREDICTION:])
        return Verdict(float(correct), correct, answer[:200])

    def _equal(self, problem: Problem, answer: str) -> bool:
        if answer.strip() == problem.answer.strip():
            return True
        gold, prediction = plain_number(problem.answer), plain_number(answer)
        if gold is not None and prediction is not None:
            return gold == prediction
        judged = self._worker.ask({"gold": problem.answer, "prediction": answer})
        if "gold_unreadable" in judged:
            raise DataError(f"problem {problem.id}: the gold answer {problem.answer[:80]!r} cannot be read")
        return bool(judged["correct"])

    def close(self) -> None:
        """End the worker process."""
        self._worker.close()
