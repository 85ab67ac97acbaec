"""Processes that take turns, so that a machine's good and bad minutes fall on all of them alike."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS = 5
# Of what a process said before it ended.
SHOWN_LINES = 15


@dataclass(frozen=True)
class Measured:
    """Of a process's turns.

    Args:
        seconds: of each, without those that warmed up.
        memory: the highest [bytes].
        parts: median seconds of what a turn says it consists of.
    """

    seconds: tuple[float, ...]
    memory: int
    parts: Mapping[str, float]

    @property
    def median(self) -> float:
        """Seconds of a turn."""
        return statistics.median(self.seconds)

    def against(self, other: Measured) -> float:
        """Median of the ratios of turns next to each other in time."""
        return statistics.median(mine / its for mine, its in zip(self.seconds, other.seconds, strict=True))


class Worker:
    """A process that works when it is told to.

    Args:
        module: run with `python -m`; it reads lines, and answers each with a line of JSON (`turn`).
        arguments: of the module.
    """

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process has ended
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # What it starts itself ends with it.
            start_new_session=True,
        )

    def go(self) -> dict[str, Any]:
        """One turn.

        Raises:
            RuntimeError: the process has ended; its last lines are told.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._log.seek(0)
        last = "".join(self._log.readlines()[-SHOWN_LINES:])
        raise RuntimeError(f"{' '.join(map(str, self._process.args))} has ended:\n{last}")  # type: ignore[arg-type]

    def end(self) -> None:
        """Whatever it is at."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def take_turns(workers: Mapping[str, Worker], rounds: int = ROUNDS, warm_up: int = 1) -> dict[str, Measured]:
    """Have each process take its turn, one after another, and again; then they end.

    Args:
        workers: by name.
        rounds: turns of each that count.
        warm_up: turns before them.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    try:
        for _ in range(warm_up + rounds):
            for name, worker in workers.items():
                found[name].append(worker.go())
    finally:
        for worker in workers.values():
            worker.end()
    return {name: _measured(turns[warm_up:]) for name, turns in found.items()}


def _measured(turns: Sequence[Mapping[str, Any]]) -> Measured:
    names = turns[0].get("parts", {})
    parts = {name: statistics.median(one["parts"][name] for one in turns) for name in names}
    return Measured(tuple(one["seconds"] for one in turns), max(one["memory"] for one in turns), parts)


def wait() -> bool:
    """In a process that takes turns: until it is told to; False when nobody will any more."""
    return bool(sys.stdin.readline())


def answer(seconds: float, memory: int, **parts: float) -> None:
    """In a process that takes turns: how it went."""
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "memory": memory, "parts": parts}) + "\n")
    sys.stdout.flush()


def peak() -> int:
    """The highest memory of this process so far [bytes]."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
