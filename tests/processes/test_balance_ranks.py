"""Rows over real gloo processes: whatever one rank drew, each has as much to do, and nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rlvr_lightning.rollout.balance import balanced, cost
from rlvr_lightning.rollout.micro_batches import Budget, Layout
from rlvr_lightning.types import Row

pytestmark = pytest.mark.slow

RANKS, CPU = 3, torch.device("cpu")
# The second rank drew long responses, the third none that carries weight.
LENGTHS = ((5, 9, 4), (60, 31, 28, 64, 17), (40, 40))


def rows(rank: int) -> list[Row]:
    made = []
    for sample, length in enumerate(LENGTHS[rank]):
        generator = torch.Generator().manual_seed(100 * rank + sample)
        ids = torch.randint(50, (length,), generator=generator)
        values = torch.rand(3, length - 1, generator=generator)
        made.append(Row(rank, sample, ids, torch.full((length - 1,), rank < 2), *values.clone()))
    return made


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    mine = balanced(rows(rank), rank, RANKS, CPU)
    torch.save([vars(row) for row in mine], folder / f"{rank}.pt")
    numbers = {}
    for packed in (True, False):
        layout = Layout(Budget(64), 0, packed)
        numbers[packed] = len(layout.cut(mine)), len(layout.laid_out(layout.cut(rows(rank))).micros)
    torch.save(numbers, folder / f"numbers_{rank}.pt")
    # Everywhere nothing to do: still one micro-batch each.
    assert len(Layout(Budget(64), 0, True).cut(balanced([], rank, RANKS, CPU))) == 1
    dist.destroy_process_group()


def test_rows_travel_to_where_there_is_least_to_do(tmp_path: Path) -> None:
    mp.spawn(work, (tmp_path,), nprocs=RANKS)
    held = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    there = {(row["prompt_index"], row["sample"]): row for part in held for row in part}
    drawn = {(row.prompt_index, row.sample): row for rank in range(2) for row in rows(rank)}
    assert sum(map(len, held)) == len(there) == len(drawn)
    for name, row in drawn.items():
        for key, value in vars(row).items():
            assert (
                torch.equal(there[name][key], value) if isinstance(value, torch.Tensor) else there[name][key] == value
            )
    loads = [sum(cost(len(row["token_ids"])) for row in part) for part in held]
    assert max(loads) / min(loads) < 1.15
    numbers = [torch.load(tmp_path / f"numbers_{rank}.pt") for rank in range(RANKS)]
    assert numbers[0] == numbers[1] == numbers[2]
    # 218 tokens on three ranks are two micro-batches of 64 each; without balance one rank has the 200 of them.
    assert numbers[0][True] == (2, 4)
