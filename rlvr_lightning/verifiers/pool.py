"""Where verifiers are called: in worker processes, in threads, or at once; whichever it is, the verdicts are the same."""

from __future__ import annotations

import atexit
import base64
import os
import pickle
import queue
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal, Protocol

from rlvr_lightning.errors import ConfigError, VerifierError, VerifierTimeoutError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.isolation import IsolatedWorker, WorkerSetupError
from rlvr_lightning.verifiers.judging import Judgement, failed, judge
from rlvr_lightning.verifiers.protocol import Closable, Concurrent, Isolated

if TYPE_CHECKING:
    from rlvr_lightning.protocols import Verifier

Workers = int | Literal["auto"]
# Processes `auto` starts at most; each of them may hold processes of its own.
MOST_WORKERS = 8
WORKER = "rlvr_lightning.verifiers.pool_worker"

_Job = tuple["Future[Judgement]", str, Problem]
_Jobs = queue.SimpleQueue["_Job | None"]


class Lane(Protocol):
    """Judges one response at a time."""

    def judge(self, response: str, problem: Problem) -> Judgement:
        """One response."""
        ...

    def abort(self) -> None:
        """Give up what is being judged, if that can be."""
        ...

    def close(self) -> None:
        """Free what it holds; nothing is judged at the moment."""
        ...


class ThreadLane:
    """Calls the verifier here.

    Args:
        verifier: takes care of its own time; it cannot be interrupted.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def judge(self, response: str, problem: Problem) -> Judgement:
        """One response."""
        return judge(self._verifier, response, problem)

    def abort(self) -> None:
        """Nothing: a thread cannot be ended."""

    def close(self) -> None:
        """Nothing: the verifier is the pool's."""


class ProcessLane:
    """Calls a copy of the verifier in a process of its own, which is killed when it takes too long and replaced.

    Args:
        pickled: the verifier.
        timeout_s: of a response [seconds].
    """

    def __init__(self, pickled: bytes, timeout_s: float) -> None:
        self._worker = IsolatedWorker(WORKER, timeout_s, setup={"verifier": base64.b64encode(pickled).decode()})
        self._aborted = False

    def judge(self, response: str, problem: Problem) -> Judgement:
        """One response. What a worker dies of, it dies of twice before it counts as an error.

        Raises:
            ConfigError: the verifier cannot be made in another process.
        """
        request = {"response": response, "problem": base64.b64encode(pickle.dumps(problem)).decode()}
        began = time.perf_counter()
        try:
            try:
                answer = self._worker.ask(request)
            except (VerifierTimeoutError, WorkerSetupError):
                raise
            except VerifierError:
                if self._aborted:
                    raise
                answer = self._worker.ask(request)
        except WorkerSetupError as error:
            raise ConfigError(
                f"the verifier cannot be made in a worker process ({error}): define it in a module that can be imported, "
                "or set grading.workers=0 to call it in the run's own process"
            ) from error
        except VerifierError as error:
            return failed(error, time.perf_counter() - began)
        told = answer["judgement"]
        verdict = told.pop("verdict")
        return Judgement(verdict=None if verdict is None else Verdict(**verdict), **told)

    def abort(self) -> None:
        """Kill the process."""
        self._aborted = True
        self._worker.abort()

    def close(self) -> None:
        """End the process."""
        self._worker.close()


class VerifierPool:
    """Judges responses while others are being drawn; equal answers to one problem are judged once.

    Workers are started by the first response and ended by `close`, with this object or with the interpreter; one that
    dies or hangs is replaced, and holds up no other.

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
        self._running: _Running | None = None
        self._judged: dict[tuple[str, str, str], Future[Judgement]] = {}

    def submit(self, response: str, problem: Problem) -> Future[Judgement]:
        """Have a response judged; where there are no workers, at once.

        Args:
            response: what the model wrote.
            problem: what it was asked.

        Returns:
            What `collect` takes; the same for equal responses to one problem since `forget`.
        """
        key = (problem.id, problem.answer, response)
        future = self._judged.get(key)
        if future is None:
            future = self._judged[key] = Future()
            if self.num_processes or isinstance(self.verifier, Concurrent):
                self._running = self._running or _Running(self._lanes())
                self._running.jobs.put((future, response, problem))
            else:
                future.set_result(judge(self.verifier, response, problem))
        return future

    def collect(self, futures: Iterable[Future[Judgement]]) -> list[Judgement]:
        """Wait for judgements, in the order given.

        Raises:
            ConfigError: the verifier cannot be made in a worker process.
        """
        return [future.result() for future in futures]

    def forget(self) -> None:
        """Judge anew from now on: a phase is over."""
        self._judged.clear()

    def close(self) -> None:
        """End all workers and what the verifier holds. Calling it twice does no harm; a later response starts others."""
        self.forget()
        if self._running is not None:
            self._running.close()
            self._running = None
        if isinstance(self.verifier, Closable):
            self.verifier.close()

    def _lanes(self) -> Sequence[Lane]:
        if self._pickled is not None:
            return [ProcessLane(self._pickled, self._timeout_s) for _ in range(self.num_processes)]
        assert isinstance(self.verifier, Concurrent)
        return [ThreadLane(self.verifier) for _ in range(self.verifier.concurrency)]


class _Running:
    """Threads that serve lanes from one queue; they end with this object."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.jobs: _Jobs = queue.SimpleQueue()
        servers = [_Server(lane, self.jobs) for lane in lanes]
        self._finalizer = weakref.finalize(self, _end, servers, self.jobs)
        # Before the workers are ended one by one, each of which its lane would replace.
        atexit.register(self._finalizer)
        for server in servers:
            server.start()

    def close(self) -> None:
        atexit.unregister(self._finalizer)
        self._finalizer()


class _Server(threading.Thread):
    """Serves a lane. It starts the lane's process and closes the lane itself: Linux ends a process with its starter."""

    def __init__(self, lane: Lane, jobs: _Jobs) -> None:
        super().__init__(daemon=True)
        self.lane, self.busy, self._jobs = lane, False, jobs

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, response, problem = job
            if not future.set_running_or_notify_cancel():
                continue
            self.busy = True
            try:
                future.set_result(self.lane.judge(response, problem))
            except BaseException as error:  # noqa: BLE001 - raised again by whoever collects
                future.set_exception(error)
            self.busy = False
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
