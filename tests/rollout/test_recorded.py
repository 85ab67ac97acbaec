"""Rollouts as Parquet: whole or not at all, one rank's beside another's, read by others; written in the background."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from training import fit, recorded

from rlvr_lightning.errors import DataError, RolloutError
from rlvr_lightning.rollout.background import Background
from rlvr_lightning.rollout.recorded import read_recorded, recorded_file, write_recorded
from rlvr_lightning.rollout.versioned import add_version
from rlvr_lightning.tasks.jsonl import JsonlTask


def record(index: int, **changes: Any) -> dict[str, Any]:
    ids = {"prompt_token_ids": [1, 2], "token_ids": [3], "written": [True], "logprobs": [-0.5]}
    return {"prompt_index": index, "sample": 0, "id": str(index), "parts": {"a": 0.5}, **ids, **changes}


def test_files_of_another_number_of_ranks_go(tmp_path: Path) -> None:
    for rank in range(3):
        write_recorded(tmp_path, 8, rank, 3, [record(rank)])
    write_recorded(tmp_path, 4, 0, 3, [record(9)])
    write_recorded(tmp_path, 8, 0, 1, [record(5), record(6)])
    assert [(row["phase"], row["prompt_index"]) for row in read_recorded(tmp_path)] == [(4, 9), (8, 5), (8, 6)]
    assert dict(next(read_recorded(tmp_path))["parts"]) == {"a": 0.5}


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    write_recorded(tmp_path, 8, 0, 1, [record(5)])
    with pytest.raises(Exception, match="int"):
        write_recorded(tmp_path, 8, 0, 1, [record(6, sample="none")])
    assert [row["prompt_index"] for row in read_recorded(tmp_path)] == [5]
    assert [path.name for path in tmp_path.iterdir()] == [recorded_file(tmp_path, 8, 0, 1).name]
    recorded_file(tmp_path, 12, 0, 1).write_bytes(b"torn")
    with pytest.raises(DataError, match=r"version_00000012.rank_0_of_1.parquet cannot be read"):
        list(read_recorded(tmp_path))
    with pytest.raises(DataError, match="holds no recorded responses"):
        list(read_recorded(tmp_path / "nothing"))


def test_one_call_reads_a_run_and_a_task_reads_it_back(tmp_path: Path) -> None:
    fit(tmp_path)
    table = pd.read_parquet(tmp_path / "rollouts")
    assert len(table) == 2 * 8 * 4
    assert table["reward"].mean() == pytest.approx(sum(row["reward"] for row in recorded(tmp_path)) / len(table))
    held_out = pd.read_parquet(tmp_path / "held_out")
    assert sorted(held_out["phase"].unique()) == [0, 2]
    assert len(held_out) == 2 * 4 * 2
    file = recorded_file(tmp_path / "rollouts", 0, 0, 1)
    problems = JsonlTask(str(file), held_out=0).train()
    asked = {(row["id"], row["messages"][-1]["content"], row["answer"]) for row in recorded(tmp_path, 0)}
    assert len(problems) == len(asked) == 8
    assert {(one.id, one.messages[-1]["content"], one.answer) for one in problems} == asked


def test_background_work_is_done_in_order_and_its_failure_is_raised_once_asked() -> None:
    done: list[int] = []
    work = Background()
    for number in range(5):
        work.put(lambda number=number: done.append(number))  # type: ignore[misc]
    work.flush()
    assert done == [0, 1, 2, 3, 4]

    def fail() -> None:
        raise OSError("No space left on device")

    work.put(fail)
    with pytest.raises(RolloutError, match="rollouts could not be written: No space left on device"):
        work.flush()
    with pytest.raises(RolloutError, match="No space left"):
        work.put(lambda: done.append(5))
    work.close()
    work.close()
    assert done == [0, 1, 2, 3, 4]


def test_a_slow_disk_holds_the_run_up() -> None:
    gate, work = threading.Event(), Background()
    work.put(gate.wait)  # type: ignore[arg-type]
    work.put(lambda: None)
    work.put(lambda: None)
    late = threading.Thread(target=lambda: work.put(lambda: None))
    late.start()
    late.join(0.3)
    assert late.is_alive()
    gate.set()
    late.join(10)
    assert not late.is_alive()
    work.close()


def test_a_full_disk_stops_a_run_with_one_line_and_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        write_recorded(folder, 0, 0, 1, [record(0)])
        many = [record(index, response=os.urandom(600).hex()) for index in range(1000)]
        with pytest.raises(OSError, match="No space left"):
            write_recorded(folder, 4, 0, 1, many)
        assert [row["phase"] for row in read_recorded(folder)] == [0]
        assert len(list(folder.iterdir())) == 1
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_lines_of_later_versions_are_taken_off_however_long_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    long = [{"text": "é" * 5000, "n": n} for n in range(9)]
    for version in (0, 4, 8):
        add_version(path, version, long)
    add_version(path, 4, [{"n": 0}])
    lines = path.read_text().splitlines()
    assert len(lines) == 10
    assert lines[-1] == '{"version": 4, "n": 0}'
    add_version(path, 0, [{"n": 1}])
    assert path.read_text() == '{"version": 0, "n": 1}\n'
