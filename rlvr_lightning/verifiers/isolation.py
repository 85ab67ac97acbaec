"""A worker process that may be killed: hard limits of time and memory around code that can hang.

Signals cannot interrupt a hung C call and work in the main thread alone; a process can always be ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from rlvr_lightning.errors import VerifierError, VerifierTimeoutError

START_SECONDS = 120.0
# What an idle child gets to let go of what it holds itself.
GRACE_SECONDS = 2.0


class WorkerSetupError(VerifierError):
    """A worker refused what it was to be set up with."""


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork's copy of the object: the process belongs to the parent
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class IsolatedWorker:
    """Requests to a module run as a child process, one JSON line each way; restarted after a time-out.

    The child is started by the first request and ended by `close`, with this object or with the interpreter. Threads
    take turns. Copies (pickled, or after a fork) start children of their own.

    Args:
        module: run with `python -m`, with `timeout_s` and `memory_bytes` as arguments. It writes one line when it is
            ready, then answers each line on standard input with one line; an object with `error` is a failure.
        timeout_s: of a request; the child is killed after it [seconds].
        memory_bytes: address space the child limits itself to.
        setup: the first request to each child, which is no part of the time of the one that started it.
    """

    def __init__(
        self, module: str, timeout_s: float, memory_bytes: int = 2**30, setup: dict[str, Any] | None = None
    ) -> None:
        self.module, self.timeout_s, self.memory_bytes, self.setup = module, timeout_s, memory_bytes, setup
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[type[IsolatedWorker], tuple[str, float, int, dict[str, Any] | None]]:
        return type(self), (self.module, self.timeout_s, self.memory_bytes, self.setup)

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child now. Calling it twice does no harm.

        Raises:
            VerifierTimeoutError: it is not ready within `START_SECONDS`.
            VerifierError: it died.
            WorkerSetupError: it could not be set up.
        """
        with self._lock:
            try:
                self._running()
            except BaseException:
                self._kill()
                raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer.

        Args:
            request: anything JSON can hold.

        Returns:
            The object the worker answered with.

        Raises:
            VerifierTimeoutError: it took longer than `timeout_s`.
            VerifierError: it died or reported an error.
            WorkerSetupError: it could not be set up.
        """
        with self._lock:
            try:
                process = self._running()
                self._write_line(process, request)
                answer = self._read_line(process, self.timeout_s)
            except BaseException:
                # A late answer must not be taken for the next request's, whatever interrupted this one.
                self._kill()
                raise
            if "error" in answer:
                # It may have left the library in any state, or the memory full.
                self._kill()
                raise VerifierError(str(answer["error"]))
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and (os.getpid() != self._owner or self._process.poll() is not None):
            self._kill()
        if self._process is None:
            self._owner = os.getpid()
            path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
            # -P: nothing in the working directory may stand in for a library. The fixed hash seed keeps the order of
            # symbols, and with it every verdict, the same from run to run; a session of its own keeps Ctrl-C away.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module, str(self.timeout_s), str(self.memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
            )
            self._process = process
            self._finalizer = weakref.finalize(self, _end, process, self._owner)
            # Its imports take seconds and are no part of the first request's time.
            self._read_line(process, START_SECONDS)
            if self.setup is not None:
                self._write_line(process, self.setup)
                refused = self._read_line(process, START_SECONDS).get("error")
                if refused is not None:
                    raise WorkerSetupError(str(refused))
        return self._process

    def _write_line(self, process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
        assert process.stdin is not None
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while unsent:
                unsent = unsent[process.stdin.write(unsent) :]
        except BrokenPipeError as error:
            raise VerifierError(f"the process of {self.module} died") from error

    def _read_line(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        deadline, received = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise VerifierTimeoutError(f"no verdict within {seconds:g} s")
                chunk = process.stdout.read(65536)
                if not chunk:
                    raise VerifierError(f"the process of {self.module} died (exit code {process.wait()})")
                received += chunk
        answer: dict[str, Any] = json.loads(received)
        return answer

    def _kill(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def abort(self) -> None:
        """Kill the worker without waiting for its answer: whoever waits for it gets a `VerifierError`."""
        process = self._process
        if process is not None and os.getpid() == self._owner:
            process.kill()

    def close(self) -> None:
        """End the worker. Calling it twice does no harm; a later request starts another."""
        with self._lock:
            process = self._process
            if process is not None and process.stdin is not None and os.getpid() == self._owner:
                # It ends with its standard input, and closes what it holds.
                process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
            self._kill()
