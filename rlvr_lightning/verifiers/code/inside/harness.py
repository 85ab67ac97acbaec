"""The first process of a sandbox: starts the candidate's and the test's processes, watches them, ends them, reports.

It runs nothing of the candidate's itself. The secret that makes a report count is sent to it only after the last test.

A conversation, in frames: `load` (the program, limits), then any of `run` (the program reads an input), `call` (a function of
it), `script` (assertions on it), then `end`, which is answered by the secret.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rlvr_lightning.verifiers.code.inside import confine
from rlvr_lightning.verifiers.code.inside.candidate import FOREVER, run_sources, serve_program
from rlvr_lightning.verifiers.code.inside.tester import serve_test
from rlvr_lightning.verifiers.code.inside.wire import Gone, read_frame, receive, send, write_frame

# Files of the harness itself have numbers from here to twice as many.
HIGH = 100


class Child(BaseException):
    """Raised in a child process so that it leaves the harness's frames before it does anything.

    Args:
        action: what the child is for.
    """

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self.action = action


def spawn(action: Callable[[], object], keep: Sequence[int], become: Callable[[], None]) -> int:
    """Run an action in a child process.

    Args:
        action: what it does.
        keep: files it has, as its files 0, 1, 2, ...; all others are closed.
        become: gives rights away before.

    Returns:
        Its process id.

    Raises:
        Child: in the child.
    """
    child = os.fork()
    if child:
        return child
    os.setsid()
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH) for fd in keep]
    for theirs, mine in enumerate(moved):
        os.dup2(mine, theirs)
    os.closerange(len(keep), 2 * HIGH)
    become()
    raise Child(action)


class Harness:
    """Answers the judge outside.

    Args:
        requests, answers: open files to it.
        null: an open file that leads nowhere.
    """

    def __init__(self, requests: int, answers: int, null: int) -> None:
        self._requests, self._answers, self._null = requests, answers, null
        self._limits: dict[str, Any] = {}
        self._sources: list[str] = []
        self._uid: int | None = None
        self._line: int | None = None
        self._loaded = False

    def load(self, request: dict[str, Any]) -> None:
        """Take a program; where it answers calls, start it: its process must not have seen a test."""
        self._sources, self._limits, self._uid = request["sources"], request["limits"], request["uid"]
        sys.path[len(sys.path) :] = request["path"]
        if request["serves"]:
            self._start(request["timeout"])

    def _start(self, seconds: float) -> None:
        mine, theirs = socket.socketpair()
        keep = (*3 * (self._null,), theirs.fileno())
        sources = self._sources
        spawn(lambda: serve_program(3, sources), keep, lambda: self._become(self._uid, seconds))
        theirs.close()
        self._line, self._loaded = mine.detach(), False

    def _become(self, uid: int | None, seconds: float) -> None:
        confine.limit(self._limits, seconds)
        confine.become(uid, self._limits["capabilities"])

    def end_processes(self) -> None:
        """End what runs of the program."""
        if self._line is not None:
            os.close(self._line)
            self._line = None
        confine.sweep(self._uid)

    def run(self, request: dict[str, Any]) -> None:
        """The program reads an input: answers how it ended, then its output as it is."""
        source = os.memfd_create("input")
        with os.fdopen(source, "wb", closefd=False) as file:
            file.write(request["input"].encode("utf-8", "surrogatepass"))
        os.lseek(source, 0, os.SEEK_SET)
        reads, writes = os.pipe()
        sources = self._sources
        child = spawn(
            lambda: run_sources(sources, "__main__"),
            (source, writes, self._null),
            lambda: self._become(self._uid, request["timeout"]),
        )
        os.close(source)
        os.close(writes)
        started = time.monotonic()
        output, ended = self._watch(child, reads, started + request["timeout"])
        os.close(reads)
        self.end_processes()
        send(self._answers, {"ended": ended, "seconds": time.monotonic() - started})
        write_frame(self._answers, output)

    def _watch(self, child: int, reads: int, deadline: float) -> tuple[bytes, str]:
        """Output until the child ends, and how it ended: `exit` and its code, `timeout` or `output` (too much)."""
        received, ended = bytearray(), ""
        handle = os.pidfd_open(child)
        poll = select.poll()
        for fd in (reads, handle):
            poll.register(fd, select.POLLIN)
        poll.register(self._requests, 0)
        while not ended:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(max(0.0, left * 1000))) if left > 0 else {}
            if self._requests in ready:
                raise Gone("judge")
            if reads in ready:
                received += os.read(reads, 2**16)
                if ready[reads] & select.POLLHUP and not ready[reads] & select.POLLIN:
                    poll.unregister(reads)
            if len(received) > self._limits["output"]:
                ended = "output"
            elif handle in ready and not ready.get(reads, 0) & select.POLLIN:
                ended = f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"
            elif left <= 0:
                ended = "timeout"
        os.close(handle)
        return bytes(received), ended

    def call(self, request: dict[str, Any]) -> None:
        """A function of the program is called: hands its answer on without reading it."""
        deadline = time.monotonic() + request["timeout"]
        try:
            if self._line is None:
                self._start(request["timeout"])
            assert self._line is not None
            if not self._loaded:
                self._wait(deadline)
                read_frame(self._line, deadline)
                self._loaded = True
            send(self._line, {"do": "function", "name": request["function"], "args": request["args"]})
            self._wait(deadline)
            answer = read_frame(self._line, deadline)
        except Gone as gone:
            if gone.reason == "judge":
                raise
            self.end_processes()
            send(self._answers, {"ended": gone.reason})
            return
        send(self._answers, {"ended": ""})
        write_frame(self._answers, answer)

    def _wait(self, deadline: float) -> None:
        """Wait for an answer of the program; end with the judge outside."""
        self._wait_for(self._line, deadline)

    def _wait_for(self, fd: int | None, deadline: float) -> None:
        assert fd is not None
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._requests, 0)
        ready = dict(poll.poll(max(0.0, (deadline - time.monotonic()) * 1000)))
        if self._requests in ready:
            raise Gone("judge")

    def script(self, request: dict[str, Any]) -> None:
        """Assertions run in a process of their own: answers their counts."""
        reads, writes = os.pipe()
        deadline = time.monotonic() + request["timeout"]
        line = self._line
        assert line is not None
        tester = None if self._uid is None else self._uid + 1
        spawn(
            lambda: serve_test(3, 4, request["setup"], request["code"], request["stop"], deadline),
            (*3 * (self._null,), writes, line),
            lambda: self._become(tester, request["timeout"]),
        )
        os.close(writes)
        try:
            self._wait_for(reads, deadline + 0.5)
            counts = receive(reads, deadline + 0.5)
        except Gone as gone:
            if gone.reason == "judge":
                raise
            counts = {"passed": 0, "failed": 0, "total": 0, "first": None, "ended": gone.reason}
        os.close(reads)
        self.end_processes()
        if tester is not None:
            confine.sweep(tester)
        send(self._answers, counts)

    def serve(self) -> None:
        """Answer until the end is asked for, or the judge is gone."""
        while True:
            request = receive(self._requests, time.monotonic() + FOREVER)
            if request["do"] == "end":
                self.end_processes()
                send(self._answers, {"secret": request["secret"]})
                return
            {"load": self.load, "run": self.run, "call": self.call, "script": self.script}[request["do"]](request)


def main() -> None:
    """Talk to the judge on the files this process was started with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getpid() != 1:
        confine.control(confine.PR_SET_CHILD_SUBREAPER, 1)
    confine.control(confine.PR_SET_DUMPABLE, 0)
    requests, answers = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH) for fd in (0, 1))
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    harness = Harness(requests, answers, null)
    action: Callable[[], object] = harness.end_processes
    try:
        harness.serve()
    except Child as child:
        action = child.action
        del harness
    except Gone:
        pass
    action()
