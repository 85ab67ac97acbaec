"""Optimizers by name, the learning rate over a run, what a checkpoint may not decide, and steps that are left out."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR
from training import SMALL, fit, weights

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError, MissingDependencyError
from rlvr_lightning.training.optim import OptimSettings, enforce, make_optimizer, make_schedule


def rates(settings: OptimSettings, total: int) -> list[float]:
    optimizer = make_optimizer(settings, [torch.nn.Parameter(torch.ones(3))])
    schedule = make_schedule(settings, optimizer, total)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def by_torch(kind: str, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    falling: Any = (
        CosineAnnealingLR(optimizer, steps) if kind == "cosine" else LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    )
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        falling.step()
    return seen


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_falling_rate_is_torchs_after_the_warm_up(kind: Any, warmup: int) -> None:
    seen = rates(OptimSettings(0.5, warmup_steps=warmup, schedule=kind), 12)
    assert seen[:warmup] == pytest.approx([0.5 * (step + 1) / warmup for step in range(warmup)])
    assert seen[warmup:] == pytest.approx(by_torch(kind, 12 - warmup))
    assert seen[-1] > 0


def test_a_constant_rate_rises_to_its_value_in_the_warm_up() -> None:
    assert rates(OptimSettings(0.5, warmup_steps=4), 6) == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5])
    assert rates(OptimSettings(0.5), 3) == [0.5, 0.5, 0.5]


def test_the_rate_of_a_run_falls_over_all_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
        seen.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    fit(
        tmp_path,
        "conf=grpo",
        "rollout.prompts_per_step=4",
        "rollout.drop_equal_groups=false",
        "optim.schedule=cosine",
        "optim.warmup_steps=1",
        "optim.lr=1e-4",
        "trainer.max_epochs=2",
        "trainer.val_every_n_epochs=2",
    )
    assert seen == pytest.approx([1e-4 * f for f in (1, 1, *(0.5 * (1 + math.cos(math.pi * t / 3)) for t in (1, 2)))])


def test_settings_reach_the_optimizer() -> None:
    settings = OptimSettings(3e-4, 0.1, (0.8, 0.95))
    group = make_optimizer(settings, [torch.nn.Parameter(torch.ones(3))]).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (3e-4, 0.1, (0.8, 0.95))
    assert not group["fused"]  # on a CPU


def test_a_resumed_run_takes_its_own_numbers_and_the_others_state() -> None:
    def made(settings: OptimSettings) -> tuple[torch.nn.Parameter, Any, Any]:
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = make_optimizer(settings, [parameter])
        return parameter, optimizer, make_schedule(settings, optimizer, 10)

    before, after = OptimSettings(1e-2, 0.1), OptimSettings(1e-3, 0.0, (0.5, 0.6), schedule="linear")
    parameter, optimizer, schedule = made(before)
    for _ in range(4):
        parameter.grad = torch.tensor([1.0, 2.0, 3.0])
        optimizer.step()
        schedule.step()
    _, other, other_schedule = made(after)
    other.load_state_dict(optimizer.state_dict())
    other_schedule.load_state_dict(schedule.state_dict())
    enforce(after, other, other_schedule)
    group = other.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (pytest.approx(6e-4), 0.0, (0.5, 0.6))
    (state,) = other.state.values()
    assert float(state["step"]) == 4
    assert state["exp_avg"].tolist() == optimizer.state[parameter]["exp_avg"].tolist()
    other_schedule.step()
    assert group["lr"] == pytest.approx(5e-4)


def test_a_run_that_goes_on_with_another_rate_learns_at_that_rate(tmp_path: Path) -> None:
    fit(tmp_path, "conf=grpo", "rollout.prompts_per_step=8", "trainer.max_epochs=1", "trainer.val_every_n_epochs=1")
    from rlvr_lightning.config.resuming import resumed

    overrides = [f"resume={tmp_path}", "optim.lr=1e-6", "optim.weight_decay=0.5", "trainer.max_epochs=2"]
    run = build_run(resumed(compose(overrides), overrides))
    run.fit()
    group = run.trainer.optimizers[0].param_groups[0]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (1e-6, 1e-6, 0.5)
    assert run.module.policy_version == 2


class Nobody:
    """Judges every response alike, so that no group teaches."""

    def __call__(self, response: str, problem: Any) -> Any:
        from rlvr_lightning.types import Verdict

        return Verdict(correct=False, reward=0.0, extracted=None)


def test_a_step_without_a_teaching_group_moves_nothing(tmp_path: Path) -> None:
    settings = (
        "conf=archer",
        "rollout.prompts_per_step=8",
        "rollout.passes=1",
        "optim.weight_decay=0.5",
        "optim.lr=1e-2",
        "trainer.max_epochs=2",
    )
    run = build_run(compose([*SMALL, *settings, f"output_dir={tmp_path}"]))
    judge = run.data.verifier
    before: list[torch.Tensor] = []

    class Fickle(torch.nn.Module):
        """Judges fairly in the first epoch, so that Adam has momentum, and everybody alike in the second."""

        def __call__(self, response: str, problem: Any) -> Any:
            if run.module.policy_version == 0:
                return judge(response, problem)
            if not before:
                before.append(weights(run))
            return Nobody()(response, problem)

    run.data.verifier = Fickle()
    run.fit()
    assert run.module.policy_version == 2
    assert torch.equal(weights(run), before[0])
    assert run.module.epoch_metrics["policy/idle_steps"] == 1
    assert run.module.epoch_metrics["policy/skipped_steps"] == 0
    assert "policy/grad_norm" not in run.module.epoch_metrics
    (state, *_) = run.trainer.optimizers[0].state.values()
    assert float(state["step"]) == 1


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        MissingDependencyError, match=r"optim.name=adamw_8bit needs bitsandbytes.*rlvr-lightning\[optim\]"
    ):
        make_optimizer(OptimSettings(name="adamw_8bit"), [torch.nn.Parameter(torch.ones(3))])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_paged"])
def test_bitsandbytes_steps_like_adamw(name: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'rlvr-lightning[optim]'")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 128, generator=generator)
    ends = []
    for kind in ("adamw", name):
        settings = OptimSettings(1e-2, 0.1, (0.9, 0.99), warmup_steps=2, name=kind)
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make_optimizer(settings, [parameter])
        schedule = make_schedule(settings, optimizer, 4)
        for _ in range(4):
            parameter.grad = parameter.detach().sin()
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == 1e-2
        ends.append(parameter.detach())
        held = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
        assert {value.dtype for value in held if value.numel() == start.numel()} == {
            torch.uint8 if kind == "adamw_8bit" else torch.float32
        }
    moved = (ends[0] - start).abs().mean()
    assert (ends[1] - ends[0]).abs().mean() < (0.05 if name == "adamw_8bit" else 1e-5) * moved


def test_numbers_out_of_range_are_refused() -> None:
    for wrong in (
        {"lr": -1.0},
        {"betas": (0.9, 1.0)},
        {"warmup_steps": -1},
        {"grad_clip": 0.0},
        {"weight_decay": -0.1},
    ):
        with pytest.raises(ConfigError, match=f"optim.{next(iter(wrong))}"):
            OptimSettings(**wrong)
