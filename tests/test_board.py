"""Rank 0's board, over real sockets: who is heard, whose failure is the first, and what all are told."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from boards import Open

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.training import board
from rlvr_lightning.training.failure import FILE, Failure


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
