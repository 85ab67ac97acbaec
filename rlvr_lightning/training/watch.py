"""Every rank's watch: tells of this rank's failure, and ends the process when another one failed."""

from __future__ import annotations

import atexit
import json
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen
from typing import Any

from rlvr_lightning.errors import HardwareError
from rlvr_lightning.training.board import Board
from rlvr_lightning.training.failure import Failure, end_process
from rlvr_lightning.training.meeting import Meeting, launched

# For a rank that fails while it is still on its way to the board, and for the board's answer [seconds].
ANSWER_SECONDS = 20.0
# At the end of a run rank 0 waits for the others to finish their own outputs [seconds].
LEAVE_SECONDS = 600.0


class Watch(threading.Thread):
    """One rank's line to the board.

    Args:
        meeting: where the ranks find each other.
    """

    def __init__(self, meeting: Meeting) -> None:
        # Here, not in the thread: two threads that import one half of torch each get in each other's way.
        import torch.distributed  # noqa: F401

        super().__init__(daemon=True, name="failure-watch")
        self.meeting = meeting
        self.folder: Path | None = None
        self.board: Board | None = None
        self._connected = threading.Event()
        self._parting = False
        self._connection: socket.socket
        if meeting.rank == 0:
            store, listener, token = meeting.open_board()
            self.board = Board(listener, token, meeting.world, self.show, store)
            self.board.start()
        self.start()
        atexit.register(self.leave)

    def show(self, failure: Failure) -> None:
        """The first failure, for all."""
        failure.show(self.folder)

    def run(self) -> None:
        """Until the board says that all may, or must, end."""
        try:
            self._connection, token = self.meeting.find_board()
        except HardwareError as error:
            self.show(Failure.of(error, self.meeting.rank))
            end_process(1)
        self._say(hello=self.meeting.rank, host=socket.gethostname(), token=token)
        self._connected.set()
        code = self._told()
        if code is not None:
            end_process(code)
        if not self._parting:
            # The board is gone, and with it rank 0. One of the others says so.
            if self.meeting.rank == 1:
                self.show(Failure(0, self.meeting.host, "the process died without a word"))
            end_process(1)

    def _told(self) -> int | None:
        """The exit code the board asks for; None when it closes."""
        try:
            with self._connection.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    said = json.loads(line)
                    if "end" in said:
                        return int(said["end"])
                    self._parting = True
        except OSError:  # its machine is gone
            return None
        return None

    def fail(self, error: BaseException) -> None:
        """Tell of this rank's failure; the board shows the first, and ends all. Does not return."""
        failure = Failure.of(error, self.meeting.rank)
        if self._connected.wait(ANSWER_SECONDS):
            self._say(failure=failure.packed())
            time.sleep(ANSWER_SECONDS)
        self.show(failure)
        end_process(1)

    def ask(self) -> None:
        """This rank was asked to stop; it goes on until all can."""
        if self._connected.is_set():
            self._say(asked=True)

    def interrupt(self) -> None:
        """This rank ends by Ctrl-C, after its part of a last checkpoint; no error."""
        self._parting = True
        if self._connected.is_set():
            self._say(bye="interrupted")

    def leave(self) -> None:
        """This rank has done its work; rank 0 stays until all have."""
        if self._parting:
            return
        self._parting = True
        if self._connected.wait(ANSWER_SECONDS):
            self._say(bye="done")
        if self.board is not None:
            self.board.join(LEAVE_SECONDS)

    def _say(self, **what: Any) -> None:
        try:
            self._connection.sendall(json.dumps(what).encode() + b"\n")
        except OSError:  # rank 0 is gone: `run` sees it too
            return


_watches: list[Watch] = []


def begin(meeting: Meeting | None, folder: Path | None = None) -> None:
    """Watch over the ranks from here on. A second call does nothing; None is no meeting."""
    if meeting is not None and not _watches:
        _watches.append(Watch(meeting))
    for watch in _watches:
        watch.folder = folder or watch.folder


def begin_where_launched() -> None:
    """At a process's very beginning: the same where a launcher says that it is one of several."""
    begin(launched())


def look_after(children: Mapping[int, Popen[Any]]) -> None:
    """Rank 0: processes it started, by rank; their deaths are seen before they connect."""
    for watch in _watches:
        if watch.board is not None:
            watch.board.children.update(children)


def fail(error: BaseException) -> None:
    """With several ranks: show the first failure and end them all; does not return. With one: nothing."""
    for watch in _watches:
        watch.fail(error)


def interrupt() -> None:
    """With several ranks: this one ends by Ctrl-C, which is no failure."""
    for watch in _watches:
        watch.interrupt()


def ask() -> None:
    """With several ranks: this one was asked by Ctrl-C to stop with the others; the terminal is told once."""
    for watch in _watches:
        watch.ask()
