"""The first process of a sandbox: starts the candidate's and the test's processes, watches them, ends them, reports.

It runs nothing of the candidate's itself. The secret that makes a report count is sent to it only after the last test.

A conversation, in frames: `load` (the program, limits), then any of `run` (the program reads an input), `call` (a function of
it), `script` (assertions on it), then `end`, which is answered by the secret.
"""

from __future__ import annotations

import _socket
import fcntl
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rlvr_lightning.verifiers.code.inside import confine
from rlvr_lightning.verifiers.code.inside.candidate import run_sources, serve_program
from rlvr_lightning.verifiers.code.inside.tester import serve_test
from rlvr_lightning.verifiers.code.inside.watch import Watch
from rlvr_lightning.verifiers.code.inside.wire import Gone, read_frame, receive, send, write_frame

# Files of the harness itself have numbers from here to twice as many.
HIGH = 100
# A test's process whose program has ended reports within this time.
REPORT_SECONDS = 5.0


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
    # Off in the harness; a program may rely on it.
    gc.enable()
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
        self._confinement: dict[str, Any] = {}
        self._sources: list[str] = []
        self._uid: int | None = None
        self._line: int | None = None
        self._program = 0
        self._loaded = False

    def load(self, request: dict[str, Any]) -> None:
        """Take a program; where it answers calls, start it: its process must not have seen a test."""
        self._sources, self._limits = request["sources"], request["limits"]
        self._confinement = request["confinement"]
        self._uid = self._confinement["uid"]
        sys.path[len(sys.path) :] = request["path"]
        if request["serves"]:
            self._start(request["timeout"])

    def _start(self, seconds: float) -> None:
        # The module `socket` takes as long to import as a program to run.
        mine, theirs = _socket.socketpair()
        keep = (*3 * (self._null,), theirs.fileno())
        sources, others = self._sources, confine.threads_of_others()
        self._program = spawn(lambda: serve_program(3, sources), keep, lambda: self._become(self._uid, seconds, others))
        theirs.close()
        mine.setblocking(False)
        self._line, self._loaded = mine.detach(), False

    def _become(self, uid: int | None, seconds: float, others: int) -> None:
        confine.limit(self._limits, seconds, others)
        confine.become(uid, self._confinement)

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
        sources, others = self._sources, confine.threads_of_others()
        child = spawn(
            lambda: run_sources(sources, "__main__"),
            (source, writes, self._null),
            lambda: self._become(self._uid, request["timeout"], others),
        )
        os.close(source)
        os.close(writes)
        output = bytearray()
        ended = self._collect(child, reads, output, Watch(child, request["timeout"], self._requests))
        os.close(reads)
        self.end_processes()
        send(self._answers, {"ended": ended})
        write_frame(self._answers, bytes(output))

    def _collect(self, child: int, reads: int, output: bytearray, watch: Watch) -> str:
        """Output until the child ends; how it ended: `exit` and its code, `timeout` or `output` (too much)."""
        handle = os.pidfd_open(child)
        files = [reads, handle]
        try:
            while True:
                ready = watch.wait(*files)
                if ready.get(reads, 0) & select.POLLIN:
                    output += os.read(reads, 2**16)
                    if len(output) > self._limits["output"]:
                        return "output"
                elif handle in ready:
                    return f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"
                elif reads in ready:
                    files.remove(reads)
        except Gone as gone:
            if gone.reason != "timeout":
                raise
            return gone.reason
        finally:
            os.close(handle)

    def call(self, request: dict[str, Any]) -> None:
        """A function of the program is called: hands its answer on without reading it."""
        try:
            if self._line is None:
                self._start(request["timeout"])
            answer = self._ask(request)
        except Gone as gone:
            if gone.reason == "judge":
                raise
            self.end_processes()
            send(self._answers, {"ended": gone.reason})
            return
        send(self._answers, {"ended": ""})
        write_frame(self._answers, answer)

    def _ask(self, request: dict[str, Any]) -> bytes:
        """The answer of the program's process to one call, its start included where it has just been started."""
        assert self._line is not None
        watch = Watch(self._program, request["timeout"], self._requests)
        if not self._loaded:
            watch.wait(self._line)
            read_frame(self._line, watch.deadline)
            self._loaded = True
        send(self._line, {"do": "function", "name": request["function"], "args": request["args"]}, watch.deadline)
        watch.wait(self._line)
        return read_frame(self._line, watch.deadline)

    def script(self, request: dict[str, Any]) -> None:
        """Assertions run in a process of their own: answers their counts."""
        assert self._line is not None
        reads, writes = os.pipe()
        watch = Watch(self._program, request["timeout"], self._requests)
        tester = None if self._uid is None else self._uid + 1
        deadline, others = watch.deadline, confine.threads_of_others()
        spawn(
            lambda: serve_test(3, 4, request["setup"], request["code"], request["stop"], deadline),
            (*3 * (self._null,), writes, self._line),
            lambda: self._become(tester, request["timeout"], others),
        )
        os.close(writes)
        counts = self._counts(reads, watch)
        os.close(reads)
        self.end_processes()
        if tester is not None:
            confine.sweep(tester)
        send(self._answers, counts)

    def _counts(self, reads: int, watch: Watch) -> dict[str, Any]:
        """What the test's process reports, also where the program's has to be ended before."""
        ended: str | None = None
        try:
            watch.wait(reads)
        except Gone as gone:
            if gone.reason == "judge":
                raise
            ended = gone.reason
            os.kill(self._program, signal.SIGKILL)
        try:
            counts: dict[str, Any] = receive(reads, time.monotonic() + REPORT_SECONDS)
        except Gone as gone:
            counts = {"passed": 0, "failed": 0, "total": 0, "first": None, "ended": gone.reason}
        return {**counts, "ended": ended or counts["ended"]}

    def serve(self) -> None:
        """Answer until the end is asked for, or the judge is gone."""
        while True:
            request = receive(self._requests)
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
    action: Callable[[], object] | None = None
    try:
        harness.serve()
    except Child as child:
        action = child.action
        del harness
    except Gone:
        pass
    if action is None:
        harness.end_processes()
        # It holds nothing that an interpreter has to take down with care, which would take as long as a run.
        os._exit(0)
    action()
