"""Any number of any component by its path, and the driver that measures the entropy and sets one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives import MEAN, OBJECTIVES

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.flexible_clip import FlexibleClip
from rlvr_lightning.methods.constraints.only_part import OnlyPart
from rlvr_lightning.methods.controllers.halving_doubling import HalvingDoubling
from rlvr_lightning.methods.controllers.oscillating_decay import OscillatingDecay
from rlvr_lightning.methods.controllers.protocol import Controller
from rlvr_lightning.methods.controllers.stepwise import Stepwise
from rlvr_lightning.methods.controllers.target import Target
from rlvr_lightning.methods.corrections.tis import TIS
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.regularizers.entropy_bonus import EntropyBonus
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.methods.weightings.repo_r import RepoR
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.training.driver import Driver
from rlvr_lightning.training.settings import Setting, numbers
from rlvr_lightning.types import MaskCount, StepPlan, TokenStats


def objective(**changes: Any) -> Objective:
    """Two parts, a number for each; two regularizers; a correction."""
    clip_high = {"knowledge": 0.2, "reasoning": 0.5}
    settings: dict[str, Any] = {"constraint": ClipKL(clip_high=clip_high), "correction": TIS(2.0), **changes}
    regularizers = {"entropy_bonus": EntropyBonus(0.01), "lp_reg": LpReg(0.1)}
    return Objective(EntropyQuantile(), settings["constraint"], regularizers, MEAN, settings["correction"])


def test_every_number_of_an_objective_has_a_path() -> None:
    assert numbers(objective()) == [
        "partitioner.quantile",
        "constraint.clip_low",
        "constraint.clip_high.knowledge",
        "constraint.clip_high.reasoning",
        "constraint.kl_coef",
        "regularizer.entropy_bonus.coef",
        "regularizer.lp_reg.quantile",
        "regularizer.lp_reg.threshold",
        "regularizer.lp_reg.coef",
        "regularizer.lp_reg.temperature",
        "regularizer.lp_reg.support",
        "correction.most",
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_number_of_any_component_can_be_set_to_another_and_back(name: str) -> None:
    held = OBJECTIVES[name](MEAN)
    for path in numbers(held):
        setting = Setting(held, path)
        before, others = setting.value, {other: Setting(held, other).value for other in numbers(held) if other != path}
        setting.set(before * 0.999)
        assert setting.value == before * 0.999, path
        assert {other: Setting(held, other).value for other in others} == others
        setting.set(before)
        assert setting.value == before


def test_a_part_a_wrapped_component_and_a_regularizer_are_set_alone() -> None:
    held = objective()
    constraint = held.constraint
    Setting(held, "constraint.clip_high.reasoning").set(0.7)
    assert held.constraint.clip_high == {"knowledge": 0.2, "reasoning": 0.7}  # type: ignore[attr-defined]
    assert held.constraint.parts == ("knowledge", "reasoning")  # type: ignore[attr-defined]
    assert constraint.clip_high["reasoning"] == 0.5  # type: ignore[attr-defined]
    bonus = held.regularizers["entropy_bonus"]
    Setting(held, "regularizer.lp_reg.quantile").set(0.3)
    assert held.regularizers["lp_reg"].quantile == 0.3  # type: ignore[attr-defined]
    assert held.regularizers["entropy_bonus"] is bonus
    wrapped = objective(constraint=OnlyPart("reasoning", ClipKL(dual_clip=3.0)))
    Setting(wrapped, "constraint.constraint.clip_high").set(0.6)
    inner = wrapped.constraint.constraint  # type: ignore[attr-defined]
    assert (inner.clip_high, inner.dual_clip, inner.parts) == (0.6, 3.0, ("knowledge", "reasoning"))
    with pytest.raises(ConfigError, match="ClipKL.clip_high must be in"):
        Setting(wrapped, "constraint.constraint.clip_high").set(-1)
    assert inner.clip_high == 0.6


def test_a_weightings_number_is_set_alone() -> None:
    weightings = {"one": RepoR(0.1), "two": RepoR(0.2)}
    held = Objective(SinglePart(), ClipKL(), {}, MEAN, None, weightings)
    assert {"weighting.one.zeta", "weighting.two.zeta"} < set(numbers(held))
    driver = Driver(HalvingDoubling("weighting.two.zeta", most=0.4), held)
    assert driver.value == 0.2
    driver.setting.set(-0.03)
    assert [held.weightings[name].zeta for name in weightings] == [0.1, -0.03]  # type: ignore[attr-defined]
    assert held.weightings["one"] is weightings["one"]
    with pytest.raises(ConfigError, match=r"controller.drives=weighting.three.zeta is no number .* weighting.one.zeta"):
        Driver(HalvingDoubling("weighting.three.zeta"), held)


def refusal(controller: Controller, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Driver(controller, objective(**changes))
    return str(caught.value)


def test_what_cannot_be_driven_is_refused_in_one_line() -> None:
    assert refusal(Target("constraint.clip_hgih.reasoning")) == (
        "controller.drives=constraint.clip_hgih.reasoning is no number of this run's components; did you mean "
        "constraint.clip_high.reasoning or constraint.clip_high.knowledge or constraint.clip_low?"
    )
    for path in ("constraint.clip_high", "constraint.dual_clip", "constraint.variant", "constraint.parts", "task.seed"):
        expected = f"controller.drives={path} is no number of this run's components; "
        assert refusal(Target(path)).startswith(expected)
    assert refusal(Target("advantage.eps")) == (
        "controller.drives=advantage.eps: advantages are made once a rollout phase, before its optimizer steps, so a "
        "controller cannot move their settings"
    )
    assert refusal(Target("partitioner.quantile")) == (
        "partitioner.quantile cannot be controller.least=0.0: EntropyQuantile.quantile must be in (0, 1); got 0.0"
    )
    assert refusal(Target("constraint.clip_low", most=2)) == (
        "constraint.clip_low cannot be controller.most=2: ClipKL.clip_low must be in [0, 1]; got 2"
    )
    assert refusal(Target("constraint.clip_low", part="all")) == (
        "controller.part=all is not a part; the partitioner makes knowledge, reasoning"
    )
    assert refusal(Target("constraint.clip_low", least=0.3)) == (
        "constraint.clip_low begins at 0.2, outside controller.least=0.3 and controller.most=1: set one of the three, "
        "or controller.initial"
    )


def test_what_the_old_policys_statistics_depend_on_moves_on_policy_alone(tmp_path: Path) -> None:
    path = "regularizer.lp_reg.threshold"
    overrides = ["conf=lp_reg", "controller=band", f"controller.drives={path}", f"output_dir={tmp_path}"]
    bounds = ["controller.least=0.01", "controller.most=0.1"]
    run = build_run(compose([*overrides, *bounds]))
    assert run.module.objective.on_policy_only == (f"controller.drives={path}",)
    with pytest.raises(ConfigError) as caught:
        build_run(compose([*overrides, *bounds, "rollout.prompts_per_step=16"]))
    assert str(caught.value) == (
        f"controller.drives={path} makes sense only on-policy, but 2 optimizer steps learn from each rollout phase: set "
        "rollout.prompts_per_step=null and rollout.passes=1"
    )
    with pytest.raises(ConfigError, match="^OPEFO makes sense only on-policy, but 3 optimizer steps"):
        build_run(compose(["conf=opefo", "rollout.passes=3", f"output_dir={tmp_path}"]))


class Forgetful(FlexibleClip):
    """Keeps one of its arguments under another name."""

    def __init__(self, beta_high: float = 0.4, width: float = 0.3) -> None:
        super().__init__(beta_high=beta_high)
        self.other = width


def test_a_component_that_cannot_be_built_anew_is_refused() -> None:
    assert refusal(Target("constraint.beta_high", least=0.35), constraint=Forgetful()).endswith(
        "Forgetful does not keep its argument width as an attribute, so a controller cannot build it anew with another "
        "value"
    )


def test_a_driven_coefficient_of_the_reference_makes_it_needed_at_once() -> None:
    held = objective()
    assert not held.requires_ref
    Driver(Target("constraint.clip_low"), held)
    assert not held.requires_ref
    Driver(Target("constraint.kl_coef", direction=-1), held)
    assert held.constraint.kl_coef == 0.0  # type: ignore[attr-defined]
    assert held.requires_ref


def micro_batches() -> list[tuple[TokenStats, StepPlan]]:
    """Three, of 2 x 3, 1 x 3 and 3 x 3 tokens; masked positions hold nan."""
    entropy = torch.arange(18, dtype=torch.float32).view(6, 3) / 10
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0], [1, 0, 0]]).bool()
    part = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    entropy[~mask] = torch.nan
    zeros = torch.zeros(6, 3)
    stats = TokenStats(zeros, zeros, zeros, mask, statistics={"entropy": entropy})
    masks = {"response": mask, "knowledge": mask & (part == 0), "reasoning": mask & (part == 1)}
    count = MaskCount(torch.tensor(9.0), torch.tensor(5.0))
    plan = StepPlan(part, {}, masks, dict.fromkeys(masks, count))
    cut = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 6)):
        micro = replace(stats, loss_mask=mask[rows], statistics={"entropy": entropy[rows]})
        own = {name: chosen[rows] for name, chosen in masks.items()}
        cut.append((micro, replace(plan, part_ids=part[rows], masks=own)))
    return cut


@pytest.mark.parametrize(
    ("part", "tokens"),
    [(None, [0, 1, 3, 6, 7, 8, 12, 13, 15]), ("knowledge", [0, 6, 7, 8, 13, 15]), ("reasoning", [1, 3, 12])],
)
def test_the_entropy_is_the_mean_over_the_steps_tokens(part: str | None, tokens: list[int]) -> None:
    driver = Driver(Target("constraint.clip_low", kp=0.1, ki=0.0, target=1.0, part=part), objective())
    assert driver.metrics() == {"controller/constraint.clip_low": 0.2}
    for stats, plan in micro_batches():
        driver.observe(stats, plan)
    driver.advance(1, 10)
    mean = sum(tokens) / len(tokens) / 10
    assert driver.entropy == pytest.approx(mean, rel=1e-7)
    assert driver.value == pytest.approx(0.2 + 0.1 * (1 - mean), rel=1e-7)
    assert driver.metrics() == {"controller/constraint.clip_low": driver.value, "controller/entropy": driver.entropy}


def test_a_step_without_tokens_or_a_finite_entropy_moves_nothing() -> None:
    driver = Driver(Stepwise("constraint.clip_low", step=0.01, initial=None, most=1.0), objective())
    stats, plan = micro_batches()[0]
    driver.observe(stats, plan)
    driver.advance(1, 10)
    assert driver.entropy == pytest.approx((0.0 + 0.1 + 0.3) / 3)
    assert driver.value == pytest.approx(0.21)
    before = driver.state_dict()
    empty = replace(plan, masks={name: torch.zeros_like(mask) for name, mask in plan.masks.items()})
    driver.observe(stats, empty)
    driver.advance(2, 10)
    broken = replace(stats, statistics={"entropy": torch.full((2, 3), torch.nan)})
    driver.observe(broken, plan)
    driver.advance(3, 10)
    assert driver.state_dict() == before


def test_a_drivers_state_is_its_own() -> None:
    driver, other = (Driver(Target("constraint.clip_low"), objective()) for _ in range(2))
    for stats, plan in micro_batches():
        driver.observe(stats, plan)
    driver.advance(1, 10)
    other.load_state_dict(driver.state_dict())
    assert other.state_dict() == driver.state_dict()
    assert other.value == driver.value != 0.2
    with pytest.raises(CheckpointError) as caught:
        Driver(Stepwise(initial=None), objective()).load_state_dict(driver.state_dict())
    assert str(caught.value) == (
        "in the checkpoint Target drives constraint.clip_low, but here Stepwise drives regularizer.entropy_bonus.coef: a "
        "run keeps its controller"
    )


def test_a_driver_begins_where_the_controller_does() -> None:
    held = Objective(SinglePart(), FlexibleClip(), {}, MEAN)
    driver = Driver(OscillatingDecay(), held)
    assert driver.value == held.constraint.beta_high == 0.35  # type: ignore[attr-defined]
