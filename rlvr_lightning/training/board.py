"""Rank 0's board: every rank holds a line to it, so that it learns of an error, and of a death without a word.

One JSON object a line. Ranks say `hello`, then perhaps `asked` (Ctrl-C) or `failure`, at last `bye`; the board says `end` with an exit
code.
A process that is killed says nothing, but its kernel closes the connection: no heartbeat is needed that a busy
interpreter would miss.
"""

from __future__ import annotations

import json
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlvr_lightning.errors import INTERRUPTED
from rlvr_lightning.training.failure import LONGEST, Failure
from rlvr_lightning.training.meeting import keep_alive

TICK = 0.2
# An error that follows from another rank's death may be told before that death is seen [seconds].
PATIENCE = 1.0
# For ranks to arrive that shall be told to end, and to end [seconds].
LINGER = 5.0
# After one rank was interrupted the others are, or hang [seconds].
INTERRUPT_SECONDS = 30.0
ASKED = "Ctrl-C: all ranks stop after this phase; press it again to end at once\n"


@dataclass
class Guest:
    """A connection, and what is known of the other side."""

    connection: socket.socket
    received: bytes = b""
    rank: int | None = None
    host: str = ""


class Board(threading.Thread):
    """Collects what ranks say; tells all to end after the first failure.

    Args:
        listener: where ranks connect.
        token: what they must know.
        world: how many they are.
        show: the first failure, on the terminal and in the folder.
        store: kept open for as long as the board is.
    """

    def __init__(
        self, listener: socket.socket, token: str, world: int, show: Callable[[Failure], None], store: object
    ) -> None:
        super().__init__(daemon=True, name="failure-board")
        self.listener, self.token, self.world, self.show, self.store = listener, token, world, show, store
        # Processes this one started, by rank.
        self.children: dict[int, subprocess.Popen[Any]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ)
        self._guests: dict[int, Guest] = {}
        self._left: set[int] = set()
        self._first: Failure | None = None
        self._died = self._asked = False
        self._judged_at = self._interrupted_at = float("inf")

    def run(self) -> None:
        """Until all ranks have left, or are told to end."""
        while len(self._left) < self.world or self._first is not None:
            self._listen()
            now = time.monotonic()
            if self._first is not None and now >= self._judged_at:
                self.show(self._first)
                return self._end_all(1)
            if now > self._interrupted_at + INTERRUPT_SECONDS:
                return self._end_all(INTERRUPTED)
        for guest in self._guests.values():
            self._say(guest, {"bye": True})
        return None

    def _listen(self) -> None:
        for key, _ in self._selector.select(TICK):
            if key.fileobj is self.listener:
                connection, _ = self.listener.accept()
                keep_alive(connection)
                self._selector.register(connection, selectors.EVENT_READ, Guest(connection))
            else:
                self._read(key.data)
        if self._interrupted_at == float("inf"):
            for rank, child in self.children.items():
                if rank not in self._guests and rank not in self._left and child.poll() is not None:
                    self._mourn(rank, socket.gethostname())

    def _read(self, guest: Guest) -> None:
        try:
            chunk = guest.connection.recv(65536)
        except OSError:  # reset by a machine that is gone
            chunk = b""
        guest.received += chunk
        *lines, guest.received = guest.received.split(b"\n")
        understood = all(self._hear(guest, line) for line in lines)
        if not chunk or not understood or len(guest.received) > 8 * LONGEST:
            self._selector.unregister(guest.connection)
            guest.connection.close()
            if guest.rank is not None and self._guests.pop(guest.rank, None) is not None:
                self._mourn(guest.rank, guest.host)

    def _hear(self, guest: Guest, line: bytes) -> bool:
        """Take in a line; False for a stranger's, who does not know the word or not the language."""
        try:
            said = json.loads(line)
        except ValueError:
            return False
        if not isinstance(said, dict) or (guest.rank is None and said.get("token") != self.token):
            return False
        if "hello" in said:
            guest.rank, guest.host = said["hello"], said["host"]
            self._guests[said["hello"]] = guest
        elif "asked" in said and not self._asked:
            # Here, since the rank itself may wait in a collective, where Python handles no signal.
            self._asked = True
            sys.stderr.write(ASKED)
            sys.stderr.flush()
        elif "failure" in said:
            self._take(Failure(**said["failure"]))
        elif "bye" in said and guest.rank is not None:
            self._left.add(guest.rank)
            if said["bye"] == "interrupted":
                self._interrupted_at = min(self._interrupted_at, time.monotonic())
        return True

    def _take(self, failure: Failure) -> None:
        if self._interrupted_at < float("inf"):
            # It follows from the interrupted rank's end: nobody is waited for any longer.
            self._interrupted_at = float("-inf")
        elif self._first is None:
            self._first, self._judged_at = failure, time.monotonic() + PATIENCE

    def _mourn(self, rank: int, host: str) -> None:
        """A rank is gone. Unless it said so it is what failed first: the others' errors follow from it."""
        if rank in self._left or self._interrupted_at < float("inf") or (self._first and self._first.rank == rank):
            return
        if not self._died:
            self._died = True
            self._first = Failure(rank, host, f"{_cause(self.children.get(rank))} without a word")
            self._judged_at = min(self._judged_at, time.monotonic() + PATIENCE)
        self._left.add(rank)

    def _end_all(self, code: int) -> None:
        """Tell the others, wait a little for those that are still on their way, then end this process."""
        told: set[int] = set()
        deadline = time.monotonic() + LINGER
        while time.monotonic() < deadline:
            for rank, guest in list(self._guests.items()):
                if rank != 0 and rank not in told:
                    told.add(rank)
                    self._say(guest, {"end": code})
            if self._left.union(told) >= set(range(1, self.world)) and not set(self._guests) - {0}:
                break
            self._listen()
        for child in self.children.values():
            child.kill()
        for guest in list(self._guests.values()):
            self._say(guest, {"end": code})

    def _say(self, guest: Guest, what: dict[str, Any]) -> None:
        try:
            guest.connection.sendall(json.dumps(what).encode() + b"\n")
        except OSError:  # it is gone, which is what it shall be
            return


def _cause(child: subprocess.Popen[Any] | None) -> str:
    if child is None:
        return "the process died"
    try:
        code = child.wait(2.0)
    except subprocess.TimeoutExpired:
        return "the process closed its connection"
    if code >= 0:
        return f"the process ended with exit code {code}"
    killed = ", which is also what the system does when memory is out" if -code == signal.SIGKILL else ""
    return f"the process was ended by {signal.Signals(-code).name}{killed},"
