"""Order statistics of a whole step, against sorting; over two real processes too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_lightning.objective.step import Step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_kth_smallest_is_the_sorted_one(dtype: torch.dtype, data: st.DataObject) -> None:
    width = 32 if dtype == torch.float32 else 64
    floats = st.floats(allow_nan=False, allow_infinity=False, width=width)
    values = torch.tensor(data.draw(st.lists(floats, min_size=1, max_size=30)), dtype=dtype)
    k = data.draw(st.integers(1, len(values)))
    assert Step().kth_smallest(values, torch.ones_like(values, dtype=torch.bool), k) == values.sort().values[k - 1]


def test_kth_smallest_reads_masked_values_alone() -> None:
    values = torch.tensor([[5.0, -3.0], [0.5, -9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert [float(Step().kth_smallest(values, mask, k)) for k in (1, 2, 3)] == [-3.0, 0.5, 5.0]
    assert float(Step().kth_smallest(values, mask, 0)) == -torch.inf


@pytest.mark.parametrize("q", [0.0, 0.01, 0.37, 0.8, 1.0])
def test_quantile_is_torch_quantile(q: float) -> None:
    values = torch.randn(7, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = torch.rand(7, 11, generator=torch.Generator().manual_seed(4)) < 0.6
    torch.testing.assert_close(Step().quantile(values, mask, q), torch.quantile(values[mask], q), rtol=1e-15, atol=0)


def test_quantile_of_nothing_is_infinite() -> None:
    assert float(Step().quantile(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool), 0.5)) == torch.inf


def _rank(rank: int, file: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    values = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(50, 8, generator=torch.Generator().manual_seed(1)) < 0.7
    mine = slice(0, 13) if rank == 0 else slice(13, 50)
    step = Step()
    found = [step.quantile(values[mine], mask[mine], q) for q in (0.01, 0.5, 0.93)]
    found += [step.kth_smallest(values[mine], mask[mine], 17), step.sum(values[mine].sum())]
    torch.save(torch.stack(found), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    values = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(50, 8, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = torch.stack(
        [
            *(torch.quantile(values[mask], q) for q in (0.01, 0.5, 0.93)),
            values[mask].sort().values[16],
            values.sum(),
        ]
    )
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-5, atol=1e-6)
