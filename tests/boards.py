"""Boards over real sockets, and ranks' lines to them."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from rlvr_lightning.training.board import Board
from rlvr_lightning.training.failure import Failure


class Rank:
    """A rank's line to the board."""

    def __init__(self, port: int, rank: int, token: str = "word") -> None:
        self.rank = rank
        self.connection = socket.create_connection(("127.0.0.1", port), 20)
        self.lines = self.connection.makefile("rb")
        self.say(hello=rank, host=f"host{rank}", token=token)

    def say(self, **what: Any) -> None:
        self.send(json.dumps(what).encode() + b"\n")

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def fail(self, message: str) -> None:
        self.say(failure=Failure(self.rank, f"host{self.rank}", message).packed())

    def hears(self) -> Any:
        """The next line, or None where the board has closed."""
        line = self.lines.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


class Open:
    """A board of some ranks, of which so many have come, and what it has shown."""

    def __init__(self, world: int, come: int | None = None) -> None:
        self.shown: list[Failure] = []
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.board = Board(listener, "word", world, self.shown.append, None)
        self.ranks = [Rank(self.port, rank) for rank in range(world if come is None else come)]

    def __enter__(self) -> Open:
        self.board.start()
        while len(self.board._guests) < len(self.ranks):
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.close()
        self.board.join(20)
        assert not self.board.is_alive()
