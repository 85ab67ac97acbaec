"""Checkpoints on disk: bit for bit what was saved, for any number of ranks, never unpickled."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from checkpointed import assert_same, read, tensors
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from rlvr_lightning.errors import CheckpointError
from rlvr_lightning.training import checkpoint_io as io
from rlvr_lightning.training.run_state import _random_state, _restore_random_state


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
