"""A vLLM server of the run's own: started, looked after, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlvr_lightning.errors import ConfigError, RolloutError
from rlvr_lightning.rollout.engines.vllm import launch
from rlvr_lightning.rollout.engines.vllm.client import Server, ServerDownError

LOOK_S = 0.25
END_S = 15.0
HOST = "127.0.0.1"


class ServerProcess:
    """One server in a process group of its own, which ends with the run, however the run ends.

    Args:
        arguments: of vLLM's server, but for where it listens.
        environment: what it has besides this process's.
        port: to listen on; 0 for any that is free.
        log: file that takes what it says.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> None:
        self.arguments, self.environment, self.log = list(arguments), dict(environment), log
        self.port = free_port(port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Begin; `wait` tells when it is there."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # By its path, and without the working folder on the import path: what lies there is not to be imported.
        command = [sys.executable, "-P", launch.__file__, *self.arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--host", HOST, "--port", str(self.port)],
                env={**os.environ, **self.environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, server: Server, timeout_s: float) -> None:
        """Until it answers.

        Raises:
            RolloutError: it ended, or was not there in time; the message has the end of its log.
        """
        until = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(ServerDownError):
                server.http.call(server.get("health", LOOK_S * 8))
                return
            if not self.alive:
                raise RolloutError(f"a vLLM server ended while it started: {self._last_words()}")
            if time.monotonic() > until:
                raise RolloutError(
                    f"a vLLM server was not ready in {timeout_s:g} s (engine.start_s): {self._last_words()}"
                )
            time.sleep(LOOK_S)

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return f"{(errors or lines or ['it said nothing'])[-1].strip()} ({self.log} has more)"

    def kill(self) -> None:
        """End it and all it started, at once: also where it is stopped or hangs."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(END_S)
        self._close_pipe()

    def close(self) -> None:
        """End it in peace, or by force where it does not."""
        if self._process is None:
            return
        self._close_pipe()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self.kill()
        self._process = None

    def _close_pipe(self) -> None:
        assert self._process is not None
        if self._process.stdin is not None:
            self._process.stdin.close()


def free_port(port: int) -> int:
    """The port itself, or a free one for 0.

    Raises:
        ConfigError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"engine.port={port} is taken on this machine: choose another one, or 0 for any"
            ) from error
        return int(probe.getsockname()[1])
