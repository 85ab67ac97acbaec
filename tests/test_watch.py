"""A rank's watch beside a real board: what it says, and when it ends its process (here it only says so)."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from boards import Open
from waiting import until

from rlvr_lightning.errors import ConfigError, HardwareError
from rlvr_lightning.training import board, watch
from rlvr_lightning.training.failure import FILE, Failure
from rlvr_lightning.training.meeting import Meeting
from rlvr_lightning.training.watch import Watch

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@dataclass
class Ended:
    """Exit codes a process would have ended with."""

    codes: list[int] = field(default_factory=list)

    def __call__(self, code: int) -> NoReturn:
        self.codes.append(code)
        raise SystemExit(code)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    found = Ended()
    monkeypatch.setattr(watch, "end_process", found)
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 5.0)
    monkeypatch.setattr(watch.atexit, "register", lambda work: work)
    monkeypatch.setattr(board, "PATIENCE", 0.2)
    monkeypatch.setattr(board, "LINGER", 1.0)
    return found


def watching(opened: Open, rank: int) -> Watch:
    """A rank's, connected to the board."""

    class Found(Meeting):
        def find_board(self) -> tuple[socket.socket, str]:
            return socket.create_connection(("127.0.0.1", opened.port), 20), "word"

    one = Watch(Found("host0", 0, rank, 3))
    one._connected.wait(20)
    assert until(lambda: rank in opened.board._guests, 20)
    return one


def rank_0_ends(opened: Open) -> None:
    """Its process, and all connections with it."""
    opened.board.join(20)
    for guest in opened.board._guests.values():
        guest.connection.shutdown(socket.SHUT_RDWR)


def ended_with(one: Watch, ended: Ended) -> list[int]:
    one.join(20)
    assert not one.is_alive()
    return ended.codes


def test_a_rank_that_has_done_its_work_is_let_go(ended: Ended) -> None:
    with Open(3, 2) as opened:
        one = watching(opened, 2)
        one.leave()
        one.leave()  # a second time it says nothing
        for rank in opened.ranks:
            rank.say(bye="done")
        rank_0_ends(opened)
        assert ended_with(one, ended) == []
    assert opened.shown == []


def test_a_rank_tells_of_its_failure_and_ends(ended: Ended) -> None:
    with Open(3, 2) as opened:
        one = watching(opened, 2)
        one._say(failure=Failure.of(ConfigError("on fire"), 2).packed())
        assert ended_with(one, ended) == [1]
        assert opened.ranks[1].hears() == {"end": 1}
    assert opened.shown == [Failure(2, socket.gethostname(), "on fire")]


def test_a_failure_the_board_does_not_answer_is_shown_all_the_same(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(watch, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(board, "PATIENCE", 60.0)
    with Open(3, 2) as opened:
        one = watching(opened, 2)
        one.folder = tmp_path
        with pytest.raises(SystemExit):
            one.fail(ConfigError("on fire"))
        assert ended.codes == [1]
        opened.board._judged_at = 0.0
        one.join(20)
    line = f"error on rank 2 ({socket.gethostname()}): on fire\n"
    assert capfd.readouterr().err == line
    assert (tmp_path / FILE).read_text().endswith(line)


@pytest.mark.parametrize("rank", [1, 2])
def test_one_of_the_others_says_that_rank_0_is_gone(rank: int, ended: Ended, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        class Found(Meeting):
            def find_board(self) -> tuple[socket.socket, str]:
                return socket.create_connection(listener.getsockname(), 20), "word"

        one = Watch(Found("host0", 0, rank, 3))
        connection, _ = listener.accept()
        assert connection.recv(1000)
        connection.close()
        assert ended_with(one, ended) == [1]
    told = "error on rank 0 (host0): the process died without a word\n"
    assert capfd.readouterr().err == (told if rank == 1 else "")
    one._say(asked=True)  # to nobody


def test_rank_0_may_be_gone_after_ctrl_c(ended: Ended, capfd: pytest.CaptureFixture[str]) -> None:
    with Open(3, 2) as opened:
        one = watching(opened, 2)
        one.ask()
        one.interrupt()
        assert until(lambda: opened.board._interrupted_at < float("inf"), 20)
        for rank in opened.ranks:
            rank.say(bye="interrupted")
        rank_0_ends(opened)
        assert ended_with(one, ended) == []
    assert (opened.shown, capfd.readouterr().err) == ([], board.ASKED)


def test_a_rank_that_finds_no_board_says_so_and_ends(ended: Ended, capfd: pytest.CaptureFixture[str]) -> None:
    class Lost(Meeting):
        def find_board(self) -> tuple[socket.socket, str]:
            raise HardwareError("finds no rank 0")

    one = Watch(Lost("host0", 0, 2, 3))
    assert ended_with(one, ended) == [1]
    assert capfd.readouterr().err == f"error on rank 2 ({socket.gethostname()}): finds no rank 0\n"
    one.ask()  # without a connection nothing is said
    one.interrupt()


def test_the_ranks_of_a_process_are_watched_once(ended: Ended, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(watch, "_watches", [])
    made: list[Meeting] = []

    class Made(Watch):
        def __init__(self, meeting: Meeting) -> None:
            made.append(meeting)
            self.folder, self.board = None, None

    monkeypatch.setattr(watch, "Watch", Made)
    watch.begin(None, tmp_path)
    assert watch._watches == []
    first = Meeting("host0", 1, 1, 2)
    watch.begin(first)
    watch.begin(first, tmp_path)
    watch.begin(None)
    assert made == [first]
    assert watch._watches[0].folder == tmp_path
