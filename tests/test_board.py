"""Rank 0's board, over real sockets: who is heard, whose failure is the first, and what all are told."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from rlvr_lightning.errors import ConfigError, HardwareError
from rlvr_lightning.training import board, meeting
from rlvr_lightning.training.board import Board
from rlvr_lightning.training.failure import FILE, Failure
from rlvr_lightning.training.meeting import Meeting, launched


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


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "PATIENCE", 0.3)
    monkeypatch.setattr(board, "LINGER", 1.0)


def test_ranks_that_have_done_their_work_part() -> None:
    with Open(3) as opened:
        for rank in opened.ranks:
            rank.say(bye="done")
        assert [rank.hears() for rank in opened.ranks] == [{"bye": True}] * 3
    assert opened.shown == []


def test_the_first_failure_is_shown_once_and_all_end() -> None:
    with Open(3) as opened:
        opened.ranks[2].fail("first")
        opened.ranks[1].fail("it follows")
        assert opened.ranks[1].hears() == opened.ranks[2].hears() == {"end": 1}
        opened.ranks[1].close()
        opened.ranks[2].close()
        assert opened.ranks[0].hears() == {"end": 1}
    assert opened.shown == [Failure(2, "host2", "first")]


def test_a_death_seen_soon_after_an_error_is_what_it_follows_from() -> None:
    with Open(3) as opened:
        opened.ranks[2].fail("connection reset by peer")
        opened.ranks[1].close()
        assert opened.ranks[2].hears() == {"end": 1}
    assert opened.shown == [Failure(1, "host1", "the process died without a word")]


def test_a_rank_that_said_what_failed_has_not_died_without_a_word() -> None:
    with Open(2) as opened:
        opened.ranks[1].fail("on fire")
        opened.ranks[1].close()
        assert opened.ranks[0].hears() == {"end": 1}
    assert opened.shown == [Failure(1, "host1", "on fire")]


def test_one_that_has_left_may_close() -> None:
    with Open(3) as opened:
        opened.ranks[1].say(bye="done")
        time.sleep(0.05)
        opened.ranks[1].close()
        opened.ranks[2].fail("later")
        assert opened.ranks[2].hears() == {"end": 1}
    assert opened.shown == [Failure(2, "host2", "later")]


def test_the_last_one_at_work_may_not_die_unseen() -> None:
    with Open(2) as opened:
        opened.ranks[0].say(bye="done")
        time.sleep(0.05)
        opened.ranks[1].close()
        assert opened.ranks[0].hears() == {"end": 1}
    assert opened.shown == [Failure(1, "host1", "the process died without a word")]


def test_what_follows_from_ctrl_c_is_no_failure() -> None:
    with Open(3) as opened:
        opened.ranks[1].say(bye="interrupted")
        time.sleep(0.05)
        opened.ranks[1].close()
        opened.ranks[2].fail("a peer is gone")
        assert opened.ranks[2].hears() == {"end": 130}
    assert opened.shown == []


def test_a_rank_that_hangs_after_ctrl_c_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "INTERRUPT_SECONDS", 0.2)
    with Open(3) as opened:
        opened.ranks[1].say(bye="interrupted")
        assert opened.ranks[2].hears() == {"end": 130}
    assert opened.shown == []


def test_ctrl_c_on_several_ranks_is_answered_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Open(2) as opened:
        for rank in opened.ranks:
            rank.say(asked=True)
            rank.say(bye="done")
        assert opened.ranks[0].hears() == {"bye": True}
    assert capfd.readouterr().err == board.ASKED


@pytest.mark.parametrize(
    "said",
    [b'{"hello": 1, "host": "x", "token": "guess"}\n', b"GET / HTTP/1.1\r\n", b"[1]\n", b"x" * (8 * 20_000 + 1)],
)
def test_strangers_are_sent_away_and_do_no_harm(said: bytes) -> None:
    with Open(2) as opened:
        with socket.create_connection(("127.0.0.1", opened.port), 20) as stranger:
            stranger.sendall(said)
            with contextlib.suppress(ConnectionResetError):  # there was more to read than the board wanted
                assert stranger.recv(100) == b""
        for rank in opened.ranks:
            rank.say(bye="done")
        assert opened.ranks[1].hears() == {"bye": True}
    assert opened.shown == []


def test_a_line_may_come_in_pieces() -> None:
    with Open(2) as opened:
        opened.ranks[1].send(b'{"bye": "do')
        time.sleep(0.05)
        opened.ranks[1].send(b'ne"}\n{"asked')
        opened.ranks[0].say(bye="done")
        assert opened.ranks[1].hears() == {"bye": True}


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("raise SystemExit(3)", "the process ended with exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "the process was ended by SIGTERM,"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "the process was ended by SIGKILL, which is also what the system does when memory is out,",
        ),
    ],
)
def test_a_process_that_ends_before_it_connects_is_missed(code: str, cause: str) -> None:
    opened = Open(2, 1)
    opened.board.children[1] = subprocess.Popen([sys.executable, "-c", code])
    with opened:
        assert opened.ranks[0].hears() == {"end": 1}
    assert opened.shown == [Failure(1, socket.gethostname(), f"{cause} without a word")]


def test_a_process_that_hangs_is_killed_at_the_end() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with Open(2) as opened:
        opened.board.children[1] = child
        opened.ranks[1].fail("on fire")
        assert opened.ranks[0].hears() == {"end": 1}
    assert child.wait(20) == -signal.SIGKILL


@pytest.fixture
def meetings(monkeypatch: pytest.MonkeyPatch) -> list[Meeting]:
    monkeypatch.setattr(meeting, "ATTEMPT_SECONDS", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Meeting("127.0.0.1", port, rank, 2) for rank in range(2)]


def test_ranks_find_the_board_through_the_store(meetings: list[Meeting]) -> None:
    store, listener, token = meetings[0].open_board()
    connection, word = meetings[1].find_board()
    with listener, connection:
        assert word == token
        assert len(token) == 32
        assert connection.getpeername() == listener.getsockname()
        assert listener.getsockname()[0] == "127.0.0.1"
        assert connection.gettimeout() is None
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [connection.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [15, 5, 3]
    del store


def test_a_rank_may_come_before_rank_0(meetings: list[Meeting], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    tries: list[float] = []

    def rank_0_comes(seconds: float) -> None:
        # At the first retry, not after a time: torch waits as long as it likes within an attempt.
        if not tries:
            opened.append(meetings[0].open_board())
        tries.append(seconds)

    monkeypatch.setattr(meeting.time, "sleep", rank_0_comes)
    connection, word = meetings[1].find_board()
    ((store, listener, token),) = opened
    with listener, connection:
        assert word == token
    assert tries[0] == 1.0
    del store


def test_a_rank_without_rank_0_gives_up_with_its_parent_or_in_time(
    meetings: list[Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"rank 1 finds no rank 0 at 127.0.0.1:{meetings[1].port}: it is gone, or never came"
    orphan = Meeting("127.0.0.1", meetings[1].port, 1, 2, parent=-1)
    with pytest.raises(HardwareError, match=message):
        orphan.find_board()
    monkeypatch.setattr(meeting, "ARRIVAL_SECONDS", 0.5)
    with pytest.raises(HardwareError, match=message):
        meetings[1].find_board()


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4"}, (3, 4, False)),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RLVR_FIRST_RANK": "4", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, (5, 8, True)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "8"}, None),
    ],
)
def test_a_launched_process_knows_its_place(
    environment: dict[str, str], place: tuple[int, int, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RLVR_FIRST_RANK", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MASTER_ADDR": "node0", "MASTER_PORT": "29", **environment}.items():
        monkeypatch.setenv(name, value)
    found = launched()
    if place is None:
        assert found is None
    else:
        assert found is not None
        assert (found.host, found.port, found.rank, found.world) == ("node0", 29, *place[:2])
        assert (found.parent is not None) == place[2]


def test_a_failure_in_words(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    host = socket.gethostname()
    told = Failure.of(ConfigError("one\n  line"), 2)
    assert (told.message, told.details, told.text) == ("one line", "", f"error on rank 2 ({host}): one line\n")
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        other = Failure.of(error, 1)
    assert other.message == "ValueError: first"
    assert other.details.startswith("Traceback")
    assert other.details.endswith("second")
    assert Failure(**other.packed()) == other
    assert Failure.of(KeyError(), 0).message == "KeyError: "
    assert len(Failure.of(ConfigError("x" * 30_000), 0).message) == 20_000
    other.show(tmp_path)
    assert capfd.readouterr().err == other.text
    when, _, written = (tmp_path / FILE).read_text().partition("\n")
    assert (written, when[:2]) == (other.text, "20")
    other.write(tmp_path / "none")
    other.write(None)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    other.write(tmp_path)
    assert f"({tmp_path / FILE} cannot be written: " in capfd.readouterr().err
