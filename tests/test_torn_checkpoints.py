"""Whatever tears a checkpoint, it is whole or passed over: short files, ended and killed processes, a full disk."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpointed import assert_same, read, tensors

from rlvr_lightning.errors import CheckpointError
from rlvr_lightning.training import checkpoint_io as io


@pytest.mark.parametrize("last_words", ["writing.result()", ""])
def test_a_process_that_ends_leaves_its_checkpoint_whole_and_is_not_aborted(last_words: str, tmp_path: Path) -> None:
    # A thread that still frees tensors when the interpreter ends aborts the process; so many take longer than its end.
    code = f"""
import sys, torch
from pathlib import Path
from rlvr_lightning.training import checkpoint_io as io
writing = io.begin(Path(sys.argv[1]), 1, {{f"w{{i}}": torch.zeros(4) for i in range(3000)}}, {{}})
{last_words}
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in io.complete(tmp_path)] == ["step_00000001"]


def cut_shard(path: Path) -> None:
    file = path / "weights" / "rank_00000.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def cut_state(path: Path) -> None:
    os.truncate(path / "state.json", (path / "state.json").stat().st_size - 3)


TEARS = {
    "a shard is short": (cut_shard, r"rank_00000.safetensors has \d+ of \d+ bytes"),
    "a shard is missing": (lambda path: (path / "weights" / "rank_00000.safetensors").unlink(), "FileNotFoundError"),
    "the state is short": (cut_state, "JSONDecodeError"),
    "the state is missing": (lambda path: (path / "state.json").unlink(), "FileNotFoundError"),
    "the state is another thing": (lambda path: (path / "state.json").write_text("[]"), "TypeError"),
    "the format is a later one": (lambda path: (path / "state.json").write_text('{"format": 9}'), "its format is 9"),
    "it was never finished": (lambda path: path.rename(path.parent / f".{path.name}.partial"), "never finished"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_named_and_passed_over(
    tear: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = io.write(tmp_path, 4, tensors(), {"step": 4})
    second = io.write(tmp_path, 8, tensors(1), {"step": 8})
    destroy, reason = TEARS[tear]
    destroy(second)
    with caplog.at_level(logging.WARNING, logger=io.__name__):
        assert io.newest(tmp_path) == first
    (line,) = [record.getMessage() for record in caplog.records if record.name == io.__name__]
    assert "step_00000008" in line
    assert "is passed over: " in line
    assert re.search(reason, line), line
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        io.read_state(second)
    # The run comes by there again.
    assert io.write(tmp_path, 8, tensors(2), {"step": 8}) == io.newest(tmp_path)
    assert_same(read(second), tensors(2))
    io.drop(tmp_path, {second})
    assert [item.name for item in tmp_path.iterdir()] == ["step_00000008"]


def test_nothing_complete_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"there is no complete checkpoint in {tmp_path}"):
        io.newest(tmp_path)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(CheckpointError, match="last.ckpt was written by an older version"):
        io.newest(tmp_path)


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from rlvr_lightning.training import checkpoint_io as io
folder = Path(sys.argv[1])
step = 1 + max([io.step_of(path) for path in io.complete(folder)], default=0)
print("ready", flush=True)
while True:
    tensors = {f"t{i}": torch.full((40_000,), float(step)) for i in range(20)}
    path = io.begin(folder, step, tensors, {"step": step}).result()
    io.drop(folder, {path})
    step += 1
"""


@pytest.mark.slow
def test_killed_at_any_moment_a_complete_one_is_there(tmp_path: Path) -> None:
    reached = 0
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while max([io.step_of(path) for path in tmp_path.glob("step_*")], default=0) < reached + 2:
            time.sleep(0.005)
        time.sleep(0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        path = io.newest(tmp_path)
        step = io.read_state(path)["step"]
        assert step == io.step_of(path) >= reached + 1
        for value in read(path).values():
            assert value.eq(step).all()
        reached = step


def test_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        small = {"weight": torch.arange(50_000.0)}
        before = io.write(disk, 1, small, {"step": 1})
        with pytest.raises(CheckpointError, match="cannot write the checkpoint: .*No space left on device"):
            io.begin(disk, 2, {"weight": torch.zeros(150_000)}, {"step": 2}).result()
        assert [item.name for item in disk.iterdir()] == ["step_00000001"]
        assert_same(read(before), small)
        assert io.newest(io.write(disk, 3, small, {}).parent).name == "step_00000003"
    finally:
        subprocess.run(["umount", disk], check=True)
