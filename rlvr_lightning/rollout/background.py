"""Work of a run that its steps do not wait for: writing files."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from rlvr_lightning.errors import RolloutError

# Phases that may wait to be written: a disk slower than the run holds the run up, instead of filling its memory.
WAITING = 2

_Job = Callable[[], None]


class Background:
    """Does jobs one after another in a thread. What goes wrong in one is raised by the next call, whichever it is."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def put(self, job: _Job) -> None:
        """Have a job done; waits while too many are.

        Raises:
            RolloutError: an earlier one failed.
        """
        self._check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rollout files", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def flush(self) -> None:
        """Wait until all is done.

        Raises:
            RolloutError: something failed.
        """
        self._jobs.join()
        self._check()

    def close(self) -> None:
        """Do what there is and end the thread. It says nothing of a failure: others end a run for better reasons."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if job is None:
                    return
                # After a failure nothing more is written: what there is has no holes.
                if self._failure is None:
                    job()
            except Exception as error:  # noqa: BLE001 - raised in the run's own thread
                self._failure = error
            finally:
                self._jobs.task_done()

    def _check(self) -> None:
        if self._failure is not None:
            raise RolloutError(f"rollouts could not be written: {self._failure}") from self._failure
