"""A conversation with a script inside a sandbox, in frames over its standard input and output."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rlvr_lightning.errors import VerifierError, VerifierTimeoutError
from rlvr_lightning.verifiers.sandbox.confinement import Confinement
from rlvr_lightning.verifiers.sandbox.removing import end_processes_of, remove_files_of, remove_tree

# Seconds a harness has to end what it started, before it is ended itself.
KILL_SECONDS = 10.0


class Session:
    """One started sandbox.

    Args:
        command: starts it, the script included.
        folder: its disk, which goes with it; None where it brings its own.
        confinement: of its programs, which the script applies.

    Raises:
        VerifierError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], folder: Path | None, confinement: Confinement) -> None:
        self.confinement = confinement
        self._folder = folder
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=folder or "/",
                env={},
                start_new_session=True,
            )
        except OSError as error:
            self._remove_folder()
            raise VerifierError(f"the sandbox did not start: {error}") from error

    def send(self, payload: bytes, seconds: float) -> None:
        """Send one frame.

        Raises:
            VerifierError: the sandbox is gone.
            VerifierTimeoutError: it does not read.
        """
        assert self._process.stdin is not None
        fd = self._process.stdin.fileno()
        os.set_blocking(fd, False)
        unsent = memoryview(len(payload).to_bytes(8, "little") + payload)
        deadline = time.monotonic() + seconds
        while unsent:
            self._wait(fd, selectors.EVENT_WRITE, deadline)
            try:
                unsent = unsent[os.write(fd, unsent) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise VerifierError(f"the sandbox ended: {self._last_words()}") from error

    def receive(self, seconds: float, most: int) -> bytes:
        """Receive one frame.

        Args:
            seconds: to wait.
            most: bytes of it.

        Raises:
            VerifierError: the sandbox is gone, or sends too much.
            VerifierTimeoutError: nothing came.
        """
        deadline = time.monotonic() + seconds
        length = int.from_bytes(self._read(8, deadline), "little")
        if length > most:
            raise VerifierError(f"the sandbox sends {length} bytes, {most} at most are expected")
        return self._read(length, deadline)

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        received = bytearray()
        while len(received) < count:
            self._wait(fd, selectors.EVENT_READ, deadline)
            chunk = os.read(fd, min(count - len(received), 2**20))
            if not chunk:
                raise VerifierError(f"the sandbox ended: {self._last_words()}")
            received += chunk
        return bytes(received)

    @staticmethod
    def _wait(fd: int, event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(fd, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise VerifierTimeoutError("the sandbox did not answer in time")

    def _last_words(self) -> str:
        """What a sandbox that ended wrote on its standard error."""
        self._kill()
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        said = self._process.stderr.read(2**16) or b""
        lines = said.decode(errors="replace").strip().splitlines() or ["without a word"]
        return f"{lines[-1][:200]} (exit code {self._process.returncode})"

    def _kill(self) -> None:
        assert self._process.stdin is not None
        # A harness that sees its judge gone ends what it started.
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            if self._folder is not None and self.confinement.uid is not None:
                for uid in (self.confinement.uid, self.confinement.uid + 1):
                    end_processes_of(uid)

    def close(self) -> None:
        """End everything inside and remove its disk. Calling it twice does no harm."""
        self._kill()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is None:
            return
        if self._folder.exists():
            remove_tree(self._folder)
        if self.confinement.uid is not None and not self.confinement.landlock:
            remove_files_of(range(self.confinement.uid, self.confinement.uid + 2))
