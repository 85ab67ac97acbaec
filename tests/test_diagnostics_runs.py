"""Which steps have tables, and what is logged over checkpoints, ranks and real runs."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diagnosed import CUTS, QUADRANTS, ROWS, make_stats, objective, observed, rows_of
from torch.utils._python_dispatch import TorchDispatchMode
from training import drawn, fit

from rlvr_lightning.evaluation.diagnostics import Diagnostics
from rlvr_lightning.methods.aggregators import TokenMean
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.objective.objective import LossOutput, Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.types import StepPlan, TokenStats


def test_tables_are_of_the_steps_they_are_asked_for() -> None:
    built = Objective(EntropyQuantile(), ClipKL(), {}, TokenMean())
    stats = make_stats(built)
    plan = built.plan(stats, Step())
    without = replace(stats, statistics={"entropy": stats.statistics["entropy"]})
    quiet, mixed, full = Diagnostics(built), Diagnostics(built), observed(built, stats, [ROWS])
    for diagnostics in (quiet, mixed):
        diagnostics.observe(without, built(without, plan), plan, tables=False)
    mixed.observe(stats, built(stats, plan), plan, tables=True)
    tables = ("policy/quadrant", "policy/prob_hist", "policy/entropy_flow")
    none, some, all_of_them = (
        {name: value for name, value in one.drain().items() if name.startswith(tables)} for one in (quiet, mixed, full)
    )
    assert none == {}
    assert len(some) == 4 + 4 + 10 + 1
    assert some == all_of_them
    # An epoch that is gone on with still knows of the tables it has.
    mixed.observe(stats, built(stats, plan), plan, tables=True)
    resumed = Diagnostics(built)
    resumed.resume([mixed.sums()], 0, 1)
    assert resumed.drain() == mixed.drain()
    # Of a step without a token that carries weight there is none, whatever the others have.
    resumed.observe(without, built(without, plan), plan, tables=False)
    nothing = replace(stats, loss_mask=torch.zeros_like(stats.loss_mask))
    void = built.plan(nothing, Step())
    resumed.observe(nothing, built(nothing, void), void, tables=True)
    assert not any(name.startswith(tables) for name in resumed.drain())


class Waits(TorchDispatchMode):
    """Collects the calls that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_to_copy"):
            source = args[0]
            target = (kwargs or {}).get("device")
            if func.overloadpacket.__name__ != "_to_copy" or (target is not None and target != source.device):
                self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_observing_does_not_wait_for_the_device() -> None:
    built = objective()
    stats = make_stats(built)
    plan = built.plan(stats, Step())
    output, diagnostics = built(stats, plan), Diagnostics(built)
    with Waits() as waits:
        assert float(stats.logprobs.sum()) < 0
    assert waits.calls == ["aten._local_scalar_dense.default"]
    with Waits() as waits:
        diagnostics.observe(stats, output, plan)
    assert waits.calls == []


def half(built: Objective, stats: TokenStats, plan: StepPlan, rows: slice, diagnostics: Diagnostics) -> Diagnostics:
    micro = rows_of(stats, rows)
    held = {name: {key: value[rows] for key, value in getattr(plan, name).items()} for name in ("choices", "masks")}
    part = replace(plan, part_ids=plan.part_ids[rows], **held)
    diagnostics.observe(micro, built(micro, part), part)
    return diagnostics


def test_sums_go_through_a_checkpoint_as_they_were() -> None:
    """Observed, saved as text and gone on with is observed at once, to the last bit; so too by another number of ranks."""
    built = objective()
    stats = make_stats(built)
    plan = built.plan(stats, Step())
    whole, first = Diagnostics(built), Diagnostics(built)
    for diagnostics in (whole, first):
        half(built, stats, plan, slice(0, 3), diagnostics)
        diagnostics.observe_step(torch.tensor(0.1))
        diagnostics.observe_step(torch.tensor(torch.inf))
    saved = json.loads(json.dumps(first.sums(), allow_nan=False))
    again = Diagnostics(built)
    again.resume([saved], 0, 1)
    for diagnostics in (whole, again):
        half(built, stats, plan, slice(3, ROWS), diagnostics)
        diagnostics.observe_step(torch.tensor(0.7))
    expected = whole.drain()
    assert again.drain() == expected
    assert expected["policy/skipped_steps"] == 1
    assert expected["policy/grad_norm"] == pytest.approx(0.4)
    # Two ranks' sums on one, and one's on the first of two.
    other = half(built, stats, plan, slice(3, ROWS), Diagnostics(built))
    for norm in (0.1, torch.inf):
        other.observe_step(torch.tensor(norm))
    alone, idle = Diagnostics(built), Diagnostics(built)
    alone.resume([saved, other.sums()], 0, 1)
    idle.resume([saved], 1, 2)
    alone.observe_step(torch.tensor(0.7))
    taken = alone.drain()
    assert taken.keys() == expected.keys()
    for name, value in expected.items():
        assert taken[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
    assert idle.sums()["steps"] == saved["steps"]
    counts = {"policy/skipped_steps": 1.0, "policy/idle_steps": 0.0}
    assert idle.drain() == {**counts, "policy/grad_norm": pytest.approx(0.1)}
    with_max = Diagnostics(built)
    with_max.resume([{**saved, "gap": [0.5]}, saved], 0, 1)
    assert with_max.sums()["gap"] == [0.5]


def rank(index: int, folder: str) -> None:
    """One of two processes, with rows and micro-batches of its own."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=2)
    built = objective()
    stats = rows_of(make_stats(built), slice(0, 3) if index == 0 else slice(3, ROWS))
    diagnostics = observed(built, stats, [1, 3] if index == 0 else [2, 3, 5])
    diagnostics.observe_step(torch.tensor(0.5))
    torch.save(diagnostics.drain(), f"{folder}/{index}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_log_what_one_process_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    built = objective()
    diagnostics = observed(built, make_stats(built), CUTS[0])
    diagnostics.observe_step(torch.tensor(0.5))
    alone = diagnostics.drain()
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in (0, 1))
    assert first == second
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert first[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
    for name in ("policy/shield/sparks", "policy/shield/noise"):
        assert first[name] == alone[name] > 1


def test_a_real_run_logs_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rho = 0.05
    counted: list[tuple[int, int]] = []
    observe = Diagnostics.observe

    def recording(
        self: Diagnostics, stats: TokenStats, output: LossOutput, plan: StepPlan, *, tables: bool = True
    ) -> None:
        observe(self, stats, output, plan, tables=tables)
        (proxy,) = [value for name, value in stats.old_statistics.items() if name.startswith("proxy_logprobs")]
        probabilities = stats.old_logprobs.exp()
        threshold = torch.quantile(probabilities[stats.loss_mask], rho)
        low = stats.loss_mask & (stats.advantages < 0) & (probabilities < threshold)
        counted.append((int((low & proxy.isfinite()).sum()), int((low & proxy.isneginf()).sum())))
        assert int((plan.choices["lp_reg"] == 2).sum()) == counted[-1][1]

    monkeypatch.setattr(Diagnostics, "observe", recording)
    settings = ("conf=lp_reg", f"regularizer.lp_reg.quantile={rho}", "regularizer.lp_reg.threshold=0.1")
    settings += ("trainer.max_epochs=3", "trainer.diagnostics_every_n_steps=2")
    with drawn():
        fit(tmp_path, *settings)
    with (tmp_path / "logs" / "metrics.csv").open() as lines:
        epochs = [row for row in csv.DictReader(lines) if row["policy/entropy"]]
    assert len(epochs) == len(counted) == 3
    assert not any(value for name, value in epochs.pop(1).items() if name.startswith(("policy/quad", "policy/prob")))
    for row, (sparks, noise) in zip(epochs, counted[::2], strict=True):
        found = {name: float(value) for name, value in row.items() if name.startswith("policy/") and value}
        assert (found["policy/lp_reg/sparks"], found["policy/lp_reg/noise"]) == (sparks, noise)
        assert min(sparks, noise) > 0
        shares = [value for name, value in found.items() if name.startswith("policy/prob_hist/")]
        assert sum(shares) == pytest.approx(1, abs=1e-6)  # logged in float32
        assert found["policy/prob_hist/0.99"] > 0.5
        assert 0 < sum(found[f"policy/quadrant_share/{quadrant}"] for quadrant in QUADRANTS) <= 1 + 1e-6
        flows = [found[f"policy/quadrant_flow/{quadrant}"] for quadrant in QUADRANTS]
        assert sum(flows) == pytest.approx(found["policy/entropy_flow"], abs=1e-6)
        assert found["policy/entropy"] == found["policy/entropy/all"] > 0
        assert found["policy/ratio/all"] == 1
        assert found["policy/kl_old/all"] == 0
    assert (tmp_path / "curves.png").stat().st_size > 0
