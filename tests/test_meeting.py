"""How ranks find rank 0's board, over real sockets, and how a launched process knows its place."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from rlvr_lightning.errors import HardwareError
from rlvr_lightning.training import meeting
from rlvr_lightning.training.meeting import Meeting, launched


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
