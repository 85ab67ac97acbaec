"""Checkpoints on disk: whole or passed over, for any number of ranks, never unpickled."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from rlvr_lightning.errors import CheckpointError
from rlvr_lightning.training import checkpoint_io as io
from rlvr_lightning.training.run_state import _random_state, _restore_random_state
from rlvr_lightning.training.shards import saved_tensors

SHAPES = {"even": (8, 3), "odd": (7, 5), "single": (1, 4), "row": (9,), "scalar": ()}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made["half"] = torch.randn(5, generator=generator).bfloat16()
    made["bytes"] = torch.randint(256, (11,), generator=generator, dtype=torch.uint8)
    made["long"] = torch.tensor([-1, 2**60])
    return made


def read(checkpoint: Path) -> dict[str, torch.Tensor]:
    held = saved_tensors(checkpoint / io.WEIGHTS)
    into = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in held.items()}
    io.read_tensors(checkpoint, into)
    return into


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    state = {"a": [1, 2.5, None, True, "x"], "b": {"nan": math.nan, "low": -math.inf, "tenth": 0.1}}
    path = io.write(tmp_path, 16, tensors(), state)
    assert path == tmp_path / "step_00000016"
    assert_same(read(path), tensors())
    held = io.read_state(path)
    assert math.isnan(held["b"].pop("nan"))
    assert held == {"a": [1, 2.5, None, True, "x"], "b": {"low": -math.inf, "tenth": 0.1}}
    # Plain JSON, for strict readers too.
    json.loads((path / "state.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    with pytest.raises(AssertionError, match="plain data"):
        io.write(tmp_path, 17, {}, {"set": {1}})


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(-math.inf),
        torch.tensor([True, False]),
        torch.tensor([[1, 2], [3, 4]]),
        torch.zeros(0, dtype=torch.float64),
    ],
    ids=str,
)
def test_small_tensors_of_callbacks_are_plain_data(value: torch.Tensor, tmp_path: Path) -> None:
    held = io.read_state(io.write(tmp_path, 1, {}, {"callback": {"best": value}}))["callback"]["best"]
    assert held.dtype == value.dtype
    assert torch.equal(held, value)


def test_nothing_in_a_checkpoint_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = io.write(tmp_path, 1, tensors(), {"a": 1})
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    assert names == ["state.json", "weights/rank_00000.safetensors"]
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    assert io.complete(tmp_path) == [path]
    assert io.read_state(path) == {"a": 1}
    assert_same(read(path), tensors())


def test_what_changes_after_the_save_began_is_not_in_it(tmp_path: Path) -> None:
    live, state = tensors(), {"numbers": [1]}
    under_way = io.begin(tmp_path, 3, live, state)
    for value in live.values():
        value.zero_()
    state["numbers"].append(2)
    path = under_way.result()
    assert_same(read(path), tensors())
    assert io.read_state(path) == {"numbers": [1]}


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


def test_the_best_is_found_by_its_name_and_must_be_whole(tmp_path: Path) -> None:
    best, last = (io.write(tmp_path, step, {}, {}) for step in (4, 8))
    with pytest.raises(CheckpointError, match="no best checkpoint: export.checkpoint=last takes the newest"):
        io.chosen(tmp_path, "best")
    io.write_best(tmp_path, 4, 0.75)
    assert io.read_best(tmp_path) == (best, 0.75)
    assert io.chosen(tmp_path, "best") == best
    assert io.chosen(tmp_path, "last") == last
    assert io.chosen(tmp_path, str(best)) == best
    (best / "state.json").unlink()
    assert io.read_best(tmp_path) is None
    with pytest.raises(CheckpointError, match="there is no nowhere"):
        io.chosen(tmp_path, "nowhere")


def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = io.write(tmp_path, 1, tensors(), {})
    with pytest.raises(CheckpointError, match=r"step_00000001: .*Size mismatch.*for row"):
        io.read_tensors(path, {"row": torch.zeros(8)})
    with pytest.raises(CheckpointError, match=r"Missing key.*: nobody"):
        io.read_tensors(path, {"nobody": torch.zeros(8)})


def sharded(rank: int, world: int, seed: int) -> dict[str, torch.Tensor]:
    """Matrices and rows in shards, the rest a replica on each rank."""
    mesh = init_device_mesh("cpu", (world,))
    whole = tensors(seed)
    return {
        name: distribute_tensor(value, mesh, [Shard(0)]) if value.dim() and name != "long" else value
        for name, value in whole.items()
    }


def save_then_read_the_other(rank: int, world: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(29000 + os.getppid() % 900))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    mine = sharded(rank, world, 0)
    mine[f"own.{rank}"] = torch.full((2,), rank)
    path = io.begin(folder, world, mine, {"world": world}, dist.group.WORLD).result()
    assert io.complete(folder) == [folder / "step_00000001", path]
    # One rank's shards are in its own file: no rank gathers what another holds.
    sizes = json.loads((path / "state.json").read_text())["files"]
    assert len(sizes) == world
    for source in (path, folder / "step_00000001"):
        into = {name: torch.zeros_like(value) for name, value in sharded(rank, world, 0).items()}
        io.read_tensors(source, into, dist.group.WORLD)
        whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in into.items()}
        assert_same(whole, tensors())
    with pytest.raises(CheckpointError, match=r"rank 0: .*Size mismatch"):
        io.read_tensors(path, {"row": torch.zeros(8)}, dist.group.WORLD)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_write_their_parts_and_any_number_reads_them(tmp_path: Path) -> None:
    io.write(tmp_path, 1, tensors(), {"world": 1})
    mp.spawn(save_then_read_the_other, (2, tmp_path), 2)
    both = read(tmp_path / "step_00000002")
    for rank in (0, 1):
        assert both.pop(f"own.{rank}").tolist() == [rank, rank]
    assert_same(both, tensors())


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


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    module = L.LightningModule()
    torch.manual_seed(1)
    random.seed(2)
    random.gauss(0, 1)  # its pair is drawn by now, and kept
    state = {f"random.1.{name}": value for name, value in _random_state(module).items()}
    checkpoint = io.write(tmp_path, 1, state, {})

    def drawn() -> list[float]:
        return [float(torch.rand(1)), random.random(), random.gauss(0, 1), random.gauss(0, 1)]

    expected, later = drawn(), drawn()
    _restore_random_state(module, checkpoint, 0)  # a rank that did not write it goes its own way
    assert later != expected != drawn()
    _restore_random_state(module, checkpoint, 1)
    assert drawn() == expected
