"""The child process that judges mathematical answers with math-verify; see `isolation`."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any

# Address space of the worker [bytes]: an expression that explodes ends this process, not the machine.
MEMORY_BYTES = 4 * 2**30


def parse(text: str) -> list[Any]:
    """The readings of an answer: as LaTeX first, then as it stands."""
    from math_verify import parse as library_parse

    marked = any(mark in text for mark in ("$", "\\boxed", "\\(", "\\["))
    for candidate in (text,) if marked else (f"${text}$", text):
        found: list[Any] = library_parse(candidate, parsing_timeout=None)
        if found:
            return found
    return []


def judge(request: dict[str, Any]) -> dict[str, Any]:
    """Whether the prediction equals the gold answer."""
    from math_verify import verify

    gold, prediction = parse(request["gold"]), parse(request["prediction"])
    if not gold:
        return {"gold_unreadable": True}
    return {"correct": bool(prediction) and bool(verify(gold, prediction, timeout_seconds=None, raise_on_error=True))}


def main() -> None:
    """Answer requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    # Answers have a channel of their own: whatever a library writes to standard output must not mix with them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    judge({"gold": "1", "prediction": "1"})
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        try:
            answer = judge(json.loads(line))
        except (Exception, RecursionError) as error:  # noqa: BLE001 - reported to the parent, which raises it
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
