"""One optimizer step of a real run, against AdamW's own equations; and what may go wrong in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from training import SMALL, fit, weights

from rlvr_lightning.config.build import Run, build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.rollout.canary import PROMPTS
from rlvr_lightning.rollout.engines.transformers_engine import TransformersEngine
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec

ON_POLICY = ("conf=grpo", "rollout.prompts_per_step=null", "trainer.max_epochs=1")


def parameters(module: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.policy.parameters()])


@dataclass
class Watch(Callback):
    """The weights before the first step and after each, and AdamW's moments after the first."""

    weights: list[Tensor] = field(default_factory=list)
    moments: dict[str, Tensor] = field(default_factory=dict)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.weights:
            self.weights.append(parameters(pl_module))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append(parameters(pl_module))
        if not self.moments:
            state = trainer.optimizers[0].state
            held = [state[parameter] for parameter in pl_module.policy.parameters()]
            for name in ("exp_avg", "exp_avg_sq"):
                self.moments[name] = torch.cat([values[name].flatten() for values in held])


def watched(folder: Path, callback: Callback, *overrides: str) -> Run:
    run = build_run(compose([*SMALL, *overrides, f"output_dir={folder}"]), [callback])
    run.fit()
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Watch, Run]:
    """One on-policy step without a bound on the gradient."""
    watch = Watch()
    return watch, watched(tmp_path_factory.mktemp("plain"), watch, *ON_POLICY, "optim.grad_clip=null")


def adam(before: Tensor, gradient: Tensor, lr: float, decay: float, betas: tuple[float, float]) -> Tensor:
    """Decoupled weight decay (arXiv 1711.05101), the first step, in float64."""
    first, second = (1 - betas[0]) * gradient, (1 - betas[1]) * gradient.square()
    move = (first / (1 - betas[0])) / ((second / (1 - betas[1])).sqrt() + 1e-8)
    return before.double() * (1 - lr * decay) - lr * move


def test_without_a_bound_the_moments_hold_the_whole_gradient(plain: tuple[Watch, Run]) -> None:
    watch, run = plain
    gradient = watch.moments["exp_avg"].double() / (1 - 0.9)
    assert float(gradient.norm()) == pytest.approx(run.module.epoch_metrics["policy/grad_norm"], rel=1e-4)
    torch.testing.assert_close(watch.moments["exp_avg_sq"].double(), 0.001 * gradient.square(), rtol=1e-3, atol=1e-12)
    expected = adam(watch.weights[0], gradient, 2e-4, 0.0, (0.9, 0.999))
    assert (watch.weights[1].double() - expected).abs().max() < 2e-7


def test_clipping_decay_betas_and_rate_are_those_of_the_settings(plain: tuple[Watch, Run], tmp_path: Path) -> None:
    whole = plain[0].moments["exp_avg"].double() / (1 - 0.9)
    norm = float(whole.norm())
    bound = norm / 8
    settings = ("optim.weight_decay=0.5", "optim.betas=[0.6,0.7]", "optim.lr=1e-3", f"optim.grad_clip={bound}")
    watch = Watch()
    run = watched(tmp_path, watch, *ON_POLICY, *settings)
    # What is logged is the norm before it was bounded.
    assert run.module.epoch_metrics["policy/grad_norm"] == pytest.approx(norm, rel=1e-4)
    gradient = watch.moments["exp_avg"].double() / (1 - 0.6)
    assert float(gradient.norm()) == pytest.approx(bound, rel=1e-4)
    torch.testing.assert_close(gradient, whole / 8, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(watch.moments["exp_avg_sq"].double(), 0.3 * gradient.square(), rtol=1e-3, atol=1e-12)
    expected = adam(watch.weights[0], gradient, 1e-3, 0.5, (0.6, 0.7))
    assert (watch.weights[1].double() - expected).abs().max() < 2e-6
    decayed = watch.weights[0].double().abs().max() * 1e-3 * 0.5
    assert decayed > 1e-4


def test_a_gradient_within_the_bound_is_left_as_it_is(plain: tuple[Watch, Run], tmp_path: Path) -> None:
    norm = plain[1].module.epoch_metrics["policy/grad_norm"]
    watch = Watch()
    watched(tmp_path, watch, *ON_POLICY, f"optim.grad_clip={2 * norm}")
    assert torch.equal(watch.moments["exp_avg"], plain[0].moments["exp_avg"])


class Poison(Watch):
    """Makes one number of the gradient of the second step not finite."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.module = value, None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.module = pl_module
        parameter = next(iter(pl_module.policy.parameters()))
        parameter.register_hook(self.hook)

    def hook(self, gradient: Tensor) -> Tensor:
        assert self.module is not None
        if self.module.policy_version != 1:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[0] = self.value
        return gradient


@pytest.mark.parametrize(("value", "clip"), [(float("nan"), "1.0"), (float("inf"), "null")])
def test_a_step_without_a_finite_gradient_is_left_out_and_counted(value: float, clip: str, tmp_path: Path) -> None:
    watch = Poison(value)
    steps = ("conf=grpo", "rollout.prompts_per_step=2", "trainer.max_epochs=1", f"optim.grad_clip={clip}")
    run = watched(tmp_path, watch, *steps)
    _, first, second, third, fourth = watch.weights
    assert torch.equal(first, second)
    assert not torch.equal(second, third)
    assert fourth.isfinite().all()
    assert run.module.epoch_metrics["policy/skipped_steps"] == 1
    # Of the three others.
    assert 0 < run.module.epoch_metrics["policy/grad_norm"] < 1e3
    assert run.module.policy_version == 4


class Values(Callback):
    """The number a controller has set, before each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(pl_module.objective.constraint.beta_high)


def test_a_schedule_runs_over_the_optimizer_steps_of_all_epochs(tmp_path: Path) -> None:
    seen = Values()
    overrides = ("conf=flexible_clip", "controller=increase_then_decrease", "controller.peak=0.5")
    steps = ("rollout.prompts_per_step=4", "rollout.passes=2", "trainer.max_epochs=2")
    watched(tmp_path, seen, *overrides, *steps)
    # Two epochs of four: up over four steps, then down.
    assert seen.values == pytest.approx([0.35 + 0.0625 * k for k in (0, 1, 2, 3, 4, 3, 2, 1)])


def test_micro_batches_of_an_on_policy_step_choose_the_tokens_of_the_whole_one(tmp_path: Path) -> None:
    common = ("conf=archer_lp_reg", "rollout.prompts_per_step=null", "trainer.max_epochs=1")
    common += ("regularizer.lp_reg.quantile=0.4", "partitioner.scope=batch", "rollout.drop_equal_groups=false")
    whole, cut = (fit(tmp_path / size, *common, f"trainer.micro_batch_size={size}") for size in ("64", "5"))
    assert whole.data.steps_per_epoch == cut.data.steps_per_epoch == 1
    one, other = whole.module.epoch_metrics, cut.module.epoch_metrics
    assert 0 < one["policy/tokens_in/lp_reg"] < 0.4
    assert one["policy/loss/lp_reg"] > 1e-4
    for name, value in one.items():
        if name.startswith(("policy/", "rollout/")) and not name.endswith("per_s"):
            assert other[name] == pytest.approx(value, rel=2e-3, abs=1e-6), name
    assert (weights(whole) - weights(cut)).abs().mean() < 2e-6


def test_the_reference_of_a_lora_run_is_the_model_without_its_adapters(tmp_path: Path) -> None:
    """On-policy: with the adapters on, the reference would be the policy itself at every step."""
    lora = ("peft=lora", "optim.lr=1e-2", "constraint.kl_coef=0.1", "trainer.max_epochs=2")
    run = fit(tmp_path, "conf=grpo", "rollout.prompts_per_step=null", *lora)
    metrics = run.module.epoch_metrics
    assert metrics["policy/kl_old"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy/kl_ref/all"] > 1e-5
    assert metrics["policy/loss/kl"] > 1e-6


class Interrupt(Callback):
    """Presses Ctrl-C in the middle of a step."""

    def __init__(self, version: int) -> None:
        self.version, self.reached = version, -1

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        if pl_module.policy_version == self.version:
            self.version = -1
            os.kill(os.getpid(), signal.SIGINT)
            self.reached = pl_module.policy_version


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(tmp_path: Path) -> None:
    press = Interrupt(1)
    steps = ("conf=grpo", "rollout.prompts_per_step=2", "trainer.max_epochs=1")
    run = build_run(compose([*SMALL, *steps, f"output_dir={tmp_path}"]), [press])
    before = signal.getsignal(signal.SIGINT)
    try:
        # Started in the background of a shell, the tests themselves may ignore SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run.fit()
    finally:
        signal.signal(signal.SIGINT, before)
    assert press.reached == 1  # it did not end the step
    assert run.module.policy_version == 2  # nor begin another


class Measurements(Callback):
    """What each validation found."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.found.append(dict(pl_module.evaluation))


class Recording(TransformersEngine):
    """The real engine, and what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Sequence[GenerationRequest]] = []

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        # The few after a sync aside, which compare engine and trainer.
        if len(requests) > PROMPTS:
            self.requests.append(requests)
        yield from super().stream(requests, sampling)


def test_the_baseline_is_the_first_measurement_and_held_out_problems_have_seeds_of_their_own(tmp_path: Path) -> None:
    seen, engine = Measurements(), Recording()
    often = (
        "conf=grpo",
        "rollout.prompts_per_step=8",
        "trainer.val_every_n_epochs=1",
        "optim.lr=3e-3",
        "task.num_held_out=8",
    )
    run = build_run(compose([*SMALL, *often, f"output_dir={tmp_path}"]), [seen])
    run.data.engine = engine
    run.fit()
    assert len(seen.found) == 3
    assert run.module.baseline == seen.found[0]
    assert seen.found[0] != seen.found[2] == run.module.evaluation
    # Before training and after each of two epochs; responses to the same problems are drawn with the same seeds.
    sizes = [len(asked) for asked in engine.requests]
    assert sizes == [16, 32, 16, 32, 16]
    apart, drawn = engine.requests[0], [*engine.requests[1], *engine.requests[3]]
    assert list(apart) == list(engine.requests[2]) == list(engine.requests[4])
    assert len({request.seed for request in (*apart, *drawn)}) == len(apart) + len(drawn)
