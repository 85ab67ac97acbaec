"""A pool closed, forgotten, or killed with its run: nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from verifiers.pooled import Scripted
from verifiers.pools import Open, children, gone, judged, opening, problem

from rlvr_lightning.verifiers.math import MathVerifier
from rlvr_lightning.verifiers.pool import VerifierPool

ROOT = Path(__file__).parents[2]


@pytest.fixture
def opened() -> Iterator[Open]:
    with opening() as make:
        yield make


@pytest.mark.parametrize("verifier", [Scripted(), MathVerifier(timeout_s=60.0)])
def test_close_leaves_no_process_and_is_no_end(opened: Open, verifier: Any) -> None:
    pool = opened(verifier, workers=2, timeout_s=300.0)
    for _ in range(2):
        found = judged(pool, *(rf"\boxed{{{place}\sqrt{{2}}}}" for place in range(8)))
        assert [one.kind for one in found] == ["wrong"] * 8
        started = children()
        assert len(started) >= 2
        pool.close()
        pool.close()
        assert children() == []
        assert gone(started, 1.0)


def test_close_does_not_wait_for_what_hangs(opened: Open) -> None:
    pool = opened(Scripted(), workers=2)
    judged(pool, "4")
    for place in range(6):
        pool.submit(f"sleep 60{place}", problem())
    time.sleep(0.3)
    began = time.perf_counter()
    pool.close()
    assert time.perf_counter() - began < 20
    assert children() == []


def script(body: str) -> subprocess.Popen[str]:
    """A process that uses a pool and prints a line when it is at work."""
    head = """
        import os, signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes do not hear it
        from rlvr_lightning.types import Problem
        from rlvr_lightning.verifiers.pool import MOST_LANES, VerifierPool
        from rlvr_lightning.verifiers.math import MathVerifier
        from verifiers.pooled import Scripted
        problem = Problem("p", (), "4")
    """
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


AT_WORK = """
    pool = VerifierPool(Scripted(), workers=3)
    pool.collect([pool.submit(f"sleep 0.{place}", problem) for place in (3, 4, 5)])
    futures = [pool.submit(answer, problem) for answer in ("spin", "power", "sleep 600")]
    time.sleep(0.5)
    print("at work", flush=True)
    pool.collect(futures)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_the_run(how: signal.Signals) -> None:
    process = script(AT_WORK)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 3
    process.send_signal(how)
    assert process.wait(60) == -how
    assert gone(workers, 30.0)
    process.communicate()


def test_a_run_that_forgets_to_close_ends_quietly() -> None:
    process = script(
        """
        pool = VerifierPool(MathVerifier(timeout_s=60.0), workers=2)
        found = pool.collect([pool.submit(rf"\\\\boxed{{\\\\sqrt{{{place}}}}}", problem) for place in range(14, 18)])
        import psutil
        print([one.kind for one in found], [child.pid for child in psutil.Process().children(recursive=True)])
        """
    )
    out, err = process.communicate(timeout=400)
    assert (process.returncode, err) == (0, "")
    kinds, _, pids = out.partition("] ")
    assert kinds == "['wrong', 'wrong', 'correct', 'wrong'"
    numbers = [int(pid) for pid in pids.strip("[]\n").split(", ")]
    # Two workers with a process of the library each, and where the machine is so busy that they are late, others.
    assert len(numbers) >= 4
    time.sleep(1.0)
    assert not any(psutil.pid_exists(pid) for pid in numbers)


def test_a_pool_nobody_holds_ends_at_once() -> None:
    """Not when garbage is looked for: its workers hold memory and files."""
    before = psutil.Process().children(recursive=True)
    gc.disable()
    try:
        pool = VerifierPool(Scripted(), workers=1)
        judged(pool, "4")
        (worker,) = [child for child in psutil.Process().children(recursive=True) if child not in before]
        del pool
        assert gone([worker])
    finally:
        gc.enable()
