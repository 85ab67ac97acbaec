"""Verifiers for the tests of the pool, which its workers import."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import ClassVar

from rlvr_lightning.types import Problem, Verdict


class Scripted:
    """Does what the response says, in a process of its own, and counts its calls in a file.

    Args:
        log: a line is added for each call.
    """

    isolated: ClassVar[bool] = True

    def __init__(self, log: str | None = None) -> None:
        self.log = log

    def __call__(self, response: str, problem: Problem) -> Verdict:
        if self.log is not None:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()} {response}\n")
        verb, _, value = response.partition(" ")
        if verb == "sleep":
            time.sleep(float(value))
        elif verb == "spin":
            while True:
                pass
        elif verb == "power":  # one call into C that holds the interpreter
            9 ** (10**9)
        elif verb == "raise":
            raise RuntimeError(value)
        elif verb == "exit":
            os._exit(int(value))
        elif verb == "print":
            sys.stdout.write(f"{value}\n{{}}\n")
        elif verb == "none":
            return Verdict(0.0, False, kind="unparsable")
        return Verdict(len(response) / 8, response == problem.answer, str(os.getpid()), None, {"length": len(response)})


class Unmakeable:
    """Can be pickled, but not made again."""

    isolated: ClassVar[bool] = True

    def __call__(self, response: str, problem: Problem) -> Verdict:
        raise NotImplementedError

    def __setstate__(self, state: object) -> None:
        raise OSError("no such model")

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


class Waiting:
    """Waits, in threads."""

    concurrency: ClassVar[int] = 4

    def __call__(self, response: str, problem: Problem) -> Verdict:
        time.sleep(0.5)
        return Verdict(1.0, True, str(os.getpid()))
