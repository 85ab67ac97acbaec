"""Pools for their tests, which are closed at the end, and the processes since a test began."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.judging import Judgement
from rlvr_lightning.verifiers.pool import VerifierPool

Open = Callable[..., VerifierPool]
BEFORE: list[psutil.Process] = []


def problem(answer: str = "4", name: str = "p1") -> Problem:
    return Problem(name, (), answer)


@contextmanager
def opening() -> Iterator[Open]:
    BEFORE[:] = psutil.Process().children(recursive=True)
    pools: list[VerifierPool] = []

    def make(verifier: Any, **settings: Any) -> VerifierPool:
        pools.append(VerifierPool(verifier, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def judged(pool: VerifierPool, *responses: str) -> list[Judgement]:
    return pool.collect([pool.submit(response, problem()) for response in responses])


def children() -> list[psutil.Process]:
    """Processes since the test began: other tests of this process may have left theirs at work."""
    return [process for process in psutil.Process().children(recursive=True) if process not in BEFORE]


def gone(processes: list[psutil.Process], within_s: float = 10.0) -> bool:
    _, alive = psutil.wait_procs(processes, within_s)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
