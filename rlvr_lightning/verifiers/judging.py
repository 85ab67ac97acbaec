"""One response judged: whatever a verifier does, it ends in one of the five kinds of verdict."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlvr_lightning.types import Problem, Verdict, VerdictKind

if TYPE_CHECKING:
    from rlvr_lightning.protocols import Verifier

LONGEST_ERROR = 200


@dataclass(frozen=True)
class Judgement:
    """How judging one response ended.

    Args:
        kind: of the verdict.
        verdict: the verifier's; None where it ended by an exception.
        error: what went wrong, in one line, where `kind` is `timeout` or `error`.
        seconds: it took.
    """

    kind: VerdictKind
    verdict: Verdict | None
    error: str | None
    seconds: float


def judge(verifier: Verifier, response: str, problem: Problem) -> Judgement:
    """Call a verifier.

    Args:
        verifier: what it raises is a `timeout` (a `TimeoutError`) or an `error` (any other exception).
        response: what the model wrote.
        problem: what it was asked.

    Returns:
        Its verdict, or the exception that kept it from one; a reward that is not finite is an `error`.
    """
    began = time.perf_counter()
    try:
        verdict = verifier(response, problem)
        if not math.isfinite(verdict.reward):
            raise ValueError(f"reward {verdict.reward} is not finite")
    except Exception as error:  # noqa: BLE001 - whatever a verifier raises is counted and reported, never a reward
        return failed(error, time.perf_counter() - began)
    kind = verdict.kind or ("correct" if verdict.correct else "wrong")
    said = f"the verifier says {kind}" if kind in ("timeout", "error") else None
    return Judgement(kind, verdict, said, time.perf_counter() - began)


def failed(error: Exception, seconds: float) -> Judgement:
    """The judgement that an exception is.

    Args:
        error: the verifier's, or of the process it runs in.
        seconds: until it was raised.
    """
    message = f"{type(error).__name__}: {error}".splitlines()[0][:LONGEST_ERROR]
    return Judgement("timeout" if isinstance(error, TimeoutError) else "error", None, message, seconds)
