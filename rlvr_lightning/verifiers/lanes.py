"""Where one response at a time is judged: a process that can be killed and replaced, or a thread."""

from __future__ import annotations

import base64
import contextlib
import pickle
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rlvr_lightning.errors import ConfigError, VerifierError, VerifierTimeoutError
from rlvr_lightning.types import Problem, Verdict
from rlvr_lightning.verifiers.isolation import IsolatedWorker, WorkerSetupError
from rlvr_lightning.verifiers.judging import Judgement, failed, judge

if TYPE_CHECKING:
    from rlvr_lightning.protocols import Verifier

WORKER = "rlvr_lightning.verifiers.pool_worker"


@runtime_checkable
class Lane(Protocol):
    """Judges one response at a time."""

    def start(self) -> None:
        """Get ready, which is no part of a response's time. Calling it before each response does no harm."""
        ...

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

    def start(self) -> None:
        """Nothing: the verifier is there."""

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

    def start(self) -> None:
        """Start the process, if there is none. What keeps it from that, the next response is told."""
        with contextlib.suppress(VerifierError):
            self._worker.start()

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
