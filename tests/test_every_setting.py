"""Each setting of each component's yaml, changed: something must come out differently, or nobody reads it.

A value of `objective_values.py` or `component_values.py` that changes nothing fails; a setting that is in neither fails in
`test_settings_left_out.py`. What the changed number must come out as is the business of the tests of each component.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from changing import changed, chosen, composed, differs, path_of, tried
from component_values import ADVANTAGES, CONTROLLERS, SHAPINGS, TASKS, VERIFIERS
from objective_values import EXHAUSTED, LP_REG_REFERENCE, OBJECTIVES
from objectives import loss_of, random_case, stats_of
from omegaconf import DictConfig
from torch import Tensor

from rlvr_lightning.config.build import build_module
from rlvr_lightning.config.components import component
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.objective.step import Step
from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.judging import judge


def result_of_objective(cfg: DictConfig) -> list[Tensor]:
    """Loss and gradient over a step of ragged off-policy responses."""
    objective = build_module(cfg, ModelSource()).objective
    case = random_case(11)
    loss = loss_of(objective, case, [slice(0, 16)], Step())
    (gradient,) = torch.autograd.grad(loss, case.logits)
    return [loss.detach(), gradient]


@pytest.mark.parametrize(
    ("group", "name", "setting", "value", "context"),
    [
        *tried({"objective": OBJECTIVES}),
        ("regularizer", "lp_reg", "kl_estimator", "k1", LP_REG_REFERENCE),
        ("regularizer", "lp_reg", "temperature", 3.0, LP_REG_REFERENCE),
        ("constraint", "bapo", "lower_limit", 0.8, EXHAUSTED),
    ],
)
def test_a_setting_of_the_objective_changes_the_loss(
    group: str, name: str, setting: str, value: Any, context: tuple[str, ...]
) -> None:
    base = (chosen(group, name), *context)
    before = result_of_objective(composed(base))
    assert differs(before, result_of_objective(changed(base, f"{path_of(group, name)}.{setting}", value)))


RESPONSES = (
    "3+4=7#8",
    "#### 8",
    "\\boxed{8}",
    "the answer is $\\sqrt{64}$",
    "<think>8</think>",
    "so <think>8</think>#8",
)


def advantages(cfg: DictConfig) -> list[Tensor]:
    rewards = torch.tensor([[1.0, 0.0, 0.25, 1.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    return [component(cfg, "advantage")(rewards, torch.ones_like(rewards).bool())]


def shaped(cfg: DictConfig) -> list[Tensor]:
    rewards, lengths = torch.ones(1, 5), torch.tensor([[10, 30, 39, 44, 48]])
    return [component(cfg, "shaping")(rewards, lengths)]


def judged(cfg: DictConfig) -> list[Any]:
    verifier = component(cfg, "verifier")
    seen: list[Any] = [verifier.judges]
    choices = cfg.verifier._target_.endswith("ChoiceVerifier")
    responses = ("\\boxed{C} Answer: B",) if choices else RESPONSES
    for response in responses:
        found = judge(verifier, response, Problem("p", (), "B" if choices else "8"))
        seen.append((found.kind, found.verdict, found.error))
    if hasattr(verifier, "close"):
        verifier.close()
    return seen


RESULTS: dict[str, Callable[[DictConfig], Any]] = {
    "advantage": advantages,
    "shaping": shaped,
    "verifier": judged,
}


@pytest.mark.parametrize(
    ("group", "name", "setting", "value", "context"),
    [*tried({"advantage": ADVANTAGES, "shaping": SHAPINGS, "verifier": VERIFIERS})],
)
def test_a_setting_of_the_rewards_changes_them(
    group: str, name: str, setting: str, value: Any, context: tuple[str, ...]
) -> None:
    base = (chosen(group, name), *context)
    before, after = (RESULTS[group](cfg) for cfg in (composed(base), changed(base, f"{group}.{setting}", value)))
    if isinstance(before[0], Tensor):
        assert differs(before, after)
    else:
        assert before != after


# Mean entropies of the steps: low for a while, then high, then down again by and by.
ENTROPIES = (0.3, *[0.05] * 8, *[0.8] * 8, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)


def driven(cfg: DictConfig) -> list[Any]:
    """What is driven, and its value and the entropy at each step."""
    module = build_module(cfg, ModelSource())
    driver, objective = module.driver, module.objective
    assert driver is not None
    stats = stats_of(objective, random_case(11))
    plan = objective.plan(stats, Step())
    seen: list[Any] = [driver.name, driver.value]
    for step, entropy in enumerate(ENTROPIES, 1):
        # Reasoning tokens have more of it.
        values = torch.where(plan.masks.get("reasoning", stats.loss_mask), 1.5, 0.8) * entropy
        driver.observe(stats.__class__(**{**stats.__dict__, "statistics": {"entropy": values}}), plan)
        driver.advance(step, len(ENTROPIES))
        seen += [driver.value, driver.entropy]
    return seen


@pytest.mark.parametrize(("group", "name", "setting", "value", "context"), [*tried({"controller": CONTROLLERS})])
def test_a_setting_of_a_controller_changes_what_it_does(
    group: str, name: str, setting: str, value: Any, context: tuple[str, ...]
) -> None:
    base = (*context, f"controller={name}")
    before = driven(composed(base))
    assert before == driven(composed(base))
    assert before != driven(changed(base, f"controller.{setting}", value))


def problems(cfg: DictConfig) -> list[list[Problem]]:
    task = component(cfg, "task")
    return [list(task.train()), list(task.held_out())]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of rows with two names for everything."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        lines = [
            {
                "id": f"{name}{i}",
                "key": f"k{i}",
                "problem": f"{name} {i}",
                "question": f"? {i}",
                "answer": f"{name} {i}",
            }
            | {"solution": f"= {i}"}
            for i in range(9)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("group", "name", "setting", "value", "context"), [*tried({"task": TASKS})])
@pytest.mark.usefixtures("rows")
def test_a_setting_of_a_task_changes_its_problems(
    group: str, name: str, setting: str, value: Any, context: tuple[str, ...]
) -> None:
    base = (f"task={name}", *(("task.path=a.jsonl",) if name == "jsonl" else ()), *context)
    before = problems(composed(base))
    assert before == problems(composed(base))
    assert before != problems(changed(base, f"task.{setting}", value))
