"""The child process that judges mathematical answers with math-verify; see `isolation`.

The library parses with grammars of its own; only digits and operators reach Python's parser, inside this process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from rlvr_lightning.verifiers.lifeline import end_with_parent

CHOICES = tuple("ABCDEFGH")
PERCENT = re.compile(r"(.*?\S)\s*(?:\\?%|percent(?:age)?|pct)\.?", re.S | re.I)


@lru_cache(maxsize=64)
def parse_bare(text: str) -> list[Any]:
    """The readings of an answer that stands alone: expressions, then its text."""
    from math_verify import parse

    # The library reads a box as a whole; other delimiters make it search for a number inside. It sees a percent sign
    # only after the delimiters.
    percent = PERCENT.fullmatch(text)
    boxed = f"\\boxed{{{text}}}" if percent is None else f"$\\boxed{{{percent[1]}}}$%"
    found: list[Any] = parse(boxed, parsing_timeout=None, raise_on_error=True)
    return found


def parse_prose(text: str, gold: str) -> list[Any]:
    """The readings of the answer within a passage; a letter where the gold answer is one."""
    from math_verify import StringExtractionConfig, parse

    if gold.strip() in CHOICES:
        letters = StringExtractionConfig(strings=CHOICES, lowercase=False)
        plain = text.replace("(", " ").replace(")", " ")
        found: list[Any] = parse(plain, extraction_config=[letters], parsing_timeout=None, raise_on_error=True)
    else:
        found = parse(text, parsing_timeout=None, raise_on_error=True)
    return found


def equal(gold: list[Any], prediction: list[Any]) -> bool:
    """Whether any two readings are equal.

    Raises:
        Exception: none are, and the library failed on a comparison.
    """
    from math_verify import verify

    failure: Exception | None = None
    for one in gold:
        for other in prediction:
            try:
                if verify(one, other, timeout_seconds=None, raise_on_error=True):
                    return True
            except Exception as error:  # noqa: BLE001 - another reading may still be equal; raised below if none is
                failure = error
    if failure is not None:
        raise failure
    return False


def judge(request: dict[str, Any]) -> dict[str, Any]:
    """Whether the prediction equals the gold answer.

    Args:
        request: `gold`, `prediction`, and `prose`: whether the answer must be found within the prediction.

    Returns:
        `gold_unreadable`, or `correct` and `extracted` (None where there is no answer).
    """
    gold = parse_bare(request["gold"])
    if not gold:
        return {"gold_unreadable": True}
    text = request["prediction"]
    prediction = parse_prose(text, request["gold"]) if request["prose"] else parse_bare(text)
    if not prediction:
        return {"correct": False, "extracted": None}
    extracted = prediction[-1] if isinstance(prediction[-1], str) else text
    return {"correct": equal(gold, prediction), "extracted": extracted[:200]}


def main(timeout_s: float, memory_bytes: int) -> None:
    """Answer requests until standard input ends.

    Args:
        timeout_s: of a request.
        memory_bytes: address space; an expression that explodes ends its judgement, not the machine.
    """
    end_with_parent(by_kernel=False)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    logging.disable(logging.CRITICAL)
    judge({"gold": "1", "prediction": "2", "prose": False})
    # Answers have a channel of their own: what a library prints must neither mix with them nor reach the screen.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device, not a path
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        # The parent kills at the time limit; where the parent itself has died, the alarm does, even in a C call.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 5.0)
        try:
            answer = judge(json.loads(line))
        except Exception as error:  # noqa: BLE001 - reported to the parent, which raises it
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
