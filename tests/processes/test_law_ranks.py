"""Law 1 over real gloo processes, for every component: two uneven ranks compute what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from objectives import AGGREGATORS, MEAN, OBJECTIVES, loss_of, random_case, rows_of, stats_of

from rlvr_lightning.methods.controllers.target import Target
from rlvr_lightning.objective.step import Step
from rlvr_lightning.training.driver import Driver

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
SHARES = (slice(0, 5), slice(5, 16))


def compute(rows: slice) -> dict[str, torch.Tensor]:
    """Loss and gradient of these rows of each case, as micro-batches of three and a rest."""
    results = {}
    for name, build in OBJECTIVES.items():
        for kind, aggregator in AGGREGATORS.items():
            for seed in SEEDS:
                case = random_case(seed, on_policy="opefo" in name)
                mine = rows_of(case, rows)
                cuts = [slice(start, start + 3) for start in range(0, len(mine.mask), 3)]
                loss = loss_of(build(aggregator), mine, cuts, Step())
                (gradient,) = torch.autograd.grad(loss, case.logits)
                results[f"{name}/{kind}/{seed}"] = torch.cat([loss.detach().view(1), gradient.flatten()])
    return results


def drive(rows: slice) -> dict[str, Any]:
    """What a controller does with these rows of five steps."""
    objective = OBJECTIVES["archer"](MEAN)
    driver = Driver(Target("constraint.clip_high.reasoning", target=0.9, part="reasoning"), objective)
    for seed in range(5):
        mine = rows_of(random_case(seed), rows)
        stats = stats_of(objective, mine)
        driver.observe(stats, objective.plan(stats, Step()))
        driver.advance(seed + 1, 5)
    return driver.state_dict()


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(compute(SHARES[rank]), folder / f"{rank}.pt")
    torch.save(drive(SHARES[rank]), folder / f"driven_{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    mp.spawn(work, (tmp_path,), nprocs=2)
    whole = compute(slice(0, 16))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert len(whole) == len(OBJECTIVES) * len(AGGREGATORS) * len(SEEDS)
    for name, expected in whole.items():
        found = parts[0][name] + parts[1][name]
        assert (found - expected).abs().max() <= 1e-9, name
        assert expected[1:].abs().max() > 1e-6, name
    driven = drive(slice(0, 16))
    for rank in range(2):
        there = torch.load(tmp_path / f"driven_{rank}.pt")
        assert there["entropy"] == pytest.approx(driven["entropy"], rel=1e-12)
        assert there["value"] == pytest.approx(driven["value"], rel=1e-12)
    assert abs(driven["value"] - 0.5) > 0.01
