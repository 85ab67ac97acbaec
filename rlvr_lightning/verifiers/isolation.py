"""A worker process that may be killed: hard limits of time and memory around code that can hang.

Signals cannot interrupt a hung C call and work in the main thread alone; a process can always be ended.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import threading
import time
from typing import Any

from rlvr_lightning.errors import VerifierError, VerifierTimeoutError

START_SECONDS = 120.0


class IsolatedWorker:
    """Requests to a module run as a child process, one JSON line each way; restarted after a time-out.

    Args:
        module: run with `python -m`; it answers each line on standard output with one line.
        timeout_s: of a request; the child is killed after it.
    """

    def __init__(self, module: str, timeout_s: float) -> None:
        self.module, self.timeout_s = module, timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            VerifierTimeoutError: it took longer than `timeout_s`.
            VerifierError: it died or reported an error.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = self._read_line(process, self.timeout_s)
        if "error" in answer:
            raise VerifierError(str(answer["error"]))
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", self.module]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            # Its imports take seconds and are no part of the first request's time.
            self._read_line(self._process, START_SECONDS)
        return self._process

    def _read_line(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        deadline, received = time.monotonic() + seconds, b""
        while not received.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._kill()
                raise VerifierTimeoutError(f"no verdict within {seconds:g} s")
            chunk = process.stdout.read(65536)
            if not chunk:
                self._kill()
                raise VerifierError(f"the process of {self.module} died")
            received += chunk
        answer: dict[str, Any] = json.loads(received)
        return answer

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def close(self) -> None:
        """End the worker. Calling it twice does no harm."""
        with self._lock:
            self._kill()
