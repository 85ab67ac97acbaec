"""Which ranks the launcher of a second node starts and watches over. There is no second machine here: starting processes and
meeting the others are stand-ins; `test_failures.py` has the real ones, on one machine."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment

from rlvr_lightning.training import launcher
from rlvr_lightning.training.launcher import WatchedLauncher
from rlvr_lightning.training.meeting import FIRST_RANK, Meeting


def test_the_second_node_of_four_ranks_each_begins_at_rank_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "node0", "MASTER_PORT": "29500", "NODE_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv(FIRST_RANK, "")
    begun: list[Meeting | None] = []
    children: dict[int, Any] = {}
    monkeypatch.setattr(launcher, "begin", begun.append)
    monkeypatch.setattr(launcher, "look_after", children.update)
    monkeypatch.setattr(launcher, "_set_num_threads_if_needed", lambda num_processes: None)
    one = WatchedLauncher(LightningEnvironment(), num_processes=4, num_nodes=2)

    def call_children() -> None:
        one.procs = ["first", "second", "third"]

    monkeypatch.setattr(one, "_call_children_scripts", call_children)
    assert one.launch(lambda value: value + 1, 1) == 2
    (meeting,) = begun
    assert meeting is not None
    assert (meeting.host, meeting.port, meeting.rank, meeting.world) == ("node0", 29500, 4, 8)
    assert children == {5: "first", 6: "second", 7: "third"}
    assert launcher.os.environ[FIRST_RANK] == "4"
