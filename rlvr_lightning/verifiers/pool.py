"""Where verifiers are called: in worker processes, in threads, or at once; whichever it is, the verdicts are the same."""

from __future__ import annotations

import atexit
import math
import os
import pickle
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Literal

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.judging import Judgement, judge
from rlvr_lightning.verifiers.lanes import Lane, ProcessLane, ThreadLane
from rlvr_lightning.verifiers.protocol import Closable, Concurrent, Elastic, Isolated

if TYPE_CHECKING:
    from rlvr_lightning.protocols import Verifier

Workers = int | Literal["auto"]
# Processes `auto` starts at most; each of them may hold processes of its own.
MOST_WORKERS = 8
# A response that takes longer holds its lane up; another process is added then, up to so many times those asked for.
SLOW_SECONDS = 1.0
MOST_LANES = 4

_Job = tuple["Future[Judgement]", str, Problem]
_Jobs = queue.SimpleQueue["_Job | None"]


class VerifierPool:
    """Judges responses while others are being drawn; equal answers to one problem are judged once.

    Workers are started by the first response and ended by `close`, with this object or with the interpreter; one that
    dies or hangs is replaced, and holds up no other. While some are at one response for long, others are added, up to four
    times as many in all.

    Args:
        verifier: judges. An `isolated` one is called in processes, a `concurrent` one in threads, any other at once.
        workers: processes; 0 for none, in which case nothing can be stopped; `auto` for as many as there are cores (8 at
            most) for an isolated verifier that can be pickled, and none for others.
        timeout_s: of one response in a worker process, the verifier's own time-outs aside [seconds].
        ranks: processes of the run on this machine, which share the cores.

    Raises:
        ConfigError: a number is out of range, or the verifier cannot be pickled for the workers that are asked for.
    """

    def __init__(self, verifier: Verifier, workers: Workers = "auto", timeout_s: float = 60.0, ranks: int = 1) -> None:
        check_workers(workers, timeout_s)
        self.verifier, self._timeout_s = verifier, timeout_s
        isolated = isinstance(verifier, Isolated) and verifier.isolated
        self._pickled = _pickled(verifier) if workers not in ("auto", 0) or (workers == "auto" and isolated) else None
        if self._pickled is None and workers not in ("auto", 0):
            raise ConfigError(
                f"grading.workers={workers} needs a verifier that can be pickled, defined in a module; "
                f"{type(verifier).__name__} is not: set grading.workers=0"
            )
        self.num_processes = 0 if self._pickled is None else _cores(ranks) if workers == "auto" else int(workers)
        self._concurrent = isinstance(verifier, Concurrent)
        self._running: _Running | None = None
        self._judged: dict[tuple[str, str, str], Future[Judgement]] = {}
        # Responses come from the run's own thread, and from that of an engine apart.
        self._lock = threading.RLock()

    @property
    def is_apart(self) -> bool:
        """Whether responses are judged by others while this thread goes on."""
        return bool(self.num_processes) or self._concurrent

    def submit(self, response: str, problem: Problem) -> Future[Judgement]:
        """Have a response judged; where there are no workers, at once.

        Args:
            response: what the model wrote.
            problem: what it was asked.

        Returns:
            What `collect` takes; the same for equal responses to one problem since `forget`.
        """
        key = (problem.id, problem.answer, response)
        with self._lock:
            future = self._judged.get(key)
            if future is None:
                future = self._judged[key] = Future()
                if self.is_apart:
                    self._running = self._running or self._start()
                    self._running.put((future, response, problem))
                else:
                    future.set_result(judge(self.verifier, response, problem))
            return future

    def collect(self, futures: Iterable[Future[Judgement]]) -> list[Judgement]:
        """Wait for judgements, in the order given.

        Raises:
            ConfigError: the verifier cannot be made in a worker process.
        """
        return [self._waited_for(future) for future in futures]

    def _waited_for(self, future: Future[Judgement]) -> Judgement:
        while not wait([future], SLOW_SECONDS).done:
            assert self._running is not None
            self._running.relieve()
        return future.result()

    def forget(self) -> None:
        """Judge anew from now on: a phase is over."""
        with self._lock:
            self._judged.clear()

    def close(self) -> None:
        """End all workers and what the verifier holds. Calling it twice does no harm; a later response starts others."""
        self.forget()
        if self._running is not None:
            self._running.close()
            self._running = None
        if isinstance(self.verifier, Closable):
            self.verifier.close()

    def _start(self) -> _Running:
        # What makes lanes must not hold this object, with which they end.
        verifier, pickled, timeout_s = self.verifier, self._pickled, self._timeout_s
        if pickled is not None:
            count = self.num_processes
            return _Running(lambda: ProcessLane(pickled, timeout_s), count, MOST_LANES * count)
        assert isinstance(verifier, Concurrent)
        count = verifier.concurrency
        most = verifier.most_concurrency if isinstance(verifier, Elastic) else count
        return _Running(lambda: ThreadLane(verifier), count, most)


class _Running:
    """Threads that serve lanes from one queue; they end with this object.

    A lane that takes long must not leave a core idle: another one takes its place meanwhile, and stays.

    Args:
        make: a lane.
        count: of lanes that are wanted at work.
        most: lanes in all.
    """

    def __init__(self, make: Callable[[], Lane], count: int, most: int) -> None:
        self._make, self._count, self._most = make, count, most
        self._jobs: _Jobs = queue.SimpleQueue()
        self._servers: list[_Server] = []
        self._finalizer = weakref.finalize(self, _end, self._servers, self._jobs)
        # Before the workers are ended one by one, each of which its lane would replace.
        atexit.register(self._finalizer)
        for _ in range(count):
            self._add()

    def put(self, job: _Job) -> None:
        """Have a response judged."""
        self._jobs.put(job)
        self.relieve()

    def relieve(self) -> None:
        """Add lanes for those that have been at one response for long."""
        late = time.monotonic() - SLOW_SECONDS
        held_up = sum(server.since < late for server in self._servers)
        while len(self._servers) - held_up < self._count and len(self._servers) < self._most:
            self._add()

    def _add(self) -> None:
        server = _Server(self._make(), self._jobs)
        self._servers.append(server)
        server.start()

    def close(self) -> None:
        """End them all."""
        atexit.unregister(self._finalizer)
        self._finalizer()


class _Server(threading.Thread):
    """Serves a lane. It starts the lane's process and closes the lane itself: Linux ends a process with its starter."""

    def __init__(self, lane: Lane, jobs: _Jobs) -> None:
        super().__init__(daemon=True)
        self.lane, self._jobs = lane, jobs
        # When the response it is at was begun; infinite where there is none [seconds of the monotonic clock].
        self.since = math.inf

    @property
    def busy(self) -> bool:
        """Whether it is at a response."""
        return self.since < math.inf

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, response, problem = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                self.lane.start()
                self.since = time.monotonic()
                future.set_result(self.lane.judge(response, problem))
            except BaseException as error:  # noqa: BLE001 - raised again by whoever collects
                future.set_exception(error)
            self.since = math.inf
        self.lane.close()


def _end(servers: Sequence[_Server], jobs: _Jobs) -> None:
    while True:
        try:
            left = jobs.get_nowait()
        except queue.Empty:
            break
        if left is not None:
            left[0].cancel()
    for _ in servers:
        jobs.put(None)
    for server in servers:
        # What is being judged, nobody waits for any more; a thread that does it cannot be ended.
        while server.is_alive() and (isinstance(server.lane, ProcessLane) or not server.busy):
            if server.busy:
                server.lane.abort()
            server.join(0.1)


def check_workers(workers: Workers, timeout_s: float) -> None:
    """Can there be such workers?

    Raises:
        ConfigError: there cannot.
    """
    if workers != "auto" and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise ConfigError(f"grading.workers must be auto or a whole number from 0; got {workers!r}")
    if not timeout_s > 0:
        raise ConfigError(f"grading.timeout_s must be above 0; got {timeout_s}")


def _pickled(verifier: Verifier) -> bytes | None:
    """The verifier for another process; None where it cannot be had there."""
    if type(verifier).__module__ == "__main__":
        return None
    try:
        return pickle.dumps(verifier)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


def _cores(ranks: int) -> int:
    there = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, there // ranks))
