"""Each setting of each component's yaml, changed: something must come out differently, or nobody reads it.

A yaml with a setting that is missing here fails; so does a value here that changes nothing. What the changed number must
come out as is the business of the tests of each component.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives import loss_of, random_case, stats_of
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rlvr_lightning.config.build import build_module
from rlvr_lightning.config.components import component
from rlvr_lightning.config.compose import compose, config_dir
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.objective.step import Step
from rlvr_lightning.types import Problem
from rlvr_lightning.verifiers.judging import judge

# Groups of which there may be several, each under its name.
SEVERAL = ("regularizer", "weighting")
# Group and yaml: what the run has besides, then another value for each setting.
Table = dict[str, tuple[tuple[str, ...], dict[str, Any]]]
CLIP: dict[str, Any] = {"clip_low": 0.05, "clip_high": 0.07, "dual_clip": 1.05, "kl_coef": 0.3, "kl_estimator": "k1"}
PARTS = ("partitioner=entropy_quantile",)
# A pull to the reference in one part alone, so that its estimator and the set it is averaged over matter.
PULLED = (*PARTS, "constraint.kl_coef={knowledge: 0.2, reasoning: 0.0}")
# Above the entropy of the step.
OPEN = ("weighting.stare.target=9.0",)
# Bounds that the ratios of the case reach.
BOUNDS = ("constraint.lower=0.7", "constraint.upper=1.05", "constraint.upper_limit=1.5")
OBJECTIVES: Table = {
    "partitioner/single": ((), {}),
    "partitioner/random_share": (("constraint.clip_high={knowledge: 0.05, reasoning: 0.4}",), {"share": 0.5}),
    "partitioner/top_entropy": (
        ("constraint.clip_high={knowledge: 0.05, reasoning: 0.4}",),
        {"share": 0.5, "when": "rollout"},
    ),
    "partitioner/entropy_quantile": (
        ("constraint.clip_high={knowledge: 0.05, reasoning: 0.4}",),
        {"quantile": 0.4, "scope": "batch", "variant": "reference"},
    ),
    "constraint/clip_kl": (PULLED, {**CLIP, "variant": "reference"}),
    "constraint/clip_higher": (PULLED, {**CLIP, "variant": "reference"}),
    "constraint/unclipped": (PULLED, {**CLIP, "variant": "reference"}),
    "constraint/archer": (
        PARTS,
        {
            "clip_low": {"knowledge": 0.2, "reasoning": 0.05},
            "clip_high": {"knowledge": 0.05, "reasoning": 0.5},
            "dual_clip": 1.05,
            "kl_coef": {"knowledge": 0.5, "reasoning": 0.0},
            "kl_estimator": "k2",
            "variant": "reference",
        },
    ),
    "constraint/eighty_twenty": (
        ("partitioner=top_entropy", "constraint.constraint.kl_coef={knowledge: 0.2, reasoning: 0.0}"),
        {
            "part": "knowledge",
            **{f"constraint.{name}": value for name, value in CLIP.items()},
            "constraint.variant": "reference",
        },
    ),
    "constraint/capped_ratio": (("constraint.max_ratio=1.1",), {"max_ratio": 1.3, "variant": "reference"}),
    "constraint/gspo": ((), {"clip_low": 0.05, "clip_high": 0.05}),
    "constraint/gmpo": ((), {"clip_low": 0.05, "clip_high": 0.05}),
    "constraint/cispo": ((), {"clip_low": 0.05, "clip_high": 0.05}),
    "constraint/sapo": ((), {"tau_pos": 2.0, "tau_neg": 2.0}),
    "constraint/clip_cov": (
        ("constraint.share=0.1", "constraint.lowest=0.3"),
        {"share": 0.3, "lowest": 0.6, "highest": 0.9, "clip_low": 0.05, "clip_high": 0.05},
    ),
    "constraint/aspo": ((), {"clip_low": 0.05, "clip_high": 0.05, "dual_clip": 1.05}),
    "constraint/ce_gppo": ((), {"clip_low": 0.05, "clip_high": 0.05, "beta_low": 0.1, "beta_high": 0.1}),
    "constraint/opefo": ((), {"strength": 0.5}),
    "constraint/flexible_clip": (
        (),
        {"alpha_low": -0.05, "beta_low": 0.21, "alpha_high": -0.05, "beta_high": 0.31},
    ),
    "constraint/dppo": (
        ("constraint.delta_low=0.02", "constraint.delta_high=0.02"),
        {"divergence": "kl", "delta_low": 0.1, "delta_high": 0.1, "max_ratio": 1.1},
    ),
    "constraint/bapo": (
        (*BOUNDS, "constraint.target=0.2335"),
        {
            "target": 0.1,
            "lower": 0.8,
            "upper": 1.01,
            "upper_limit": 1.1,
            "upper_step": 0.12,
            "dual_clip": 1.05,
            "variant": "reference",
        },
    ),
    "weighting/stare": (OPEN, {"share": 0.3, "weight_pos": 1.3, "weight_neg": 0.9, "target": 0.3}),
    "weighting/steer": ((), {"least": 0.5, "floor": 200.0}),
    "weighting/clip_b": (("weighting.clip_b.deviations=0.5",), {"deviations": 1.0}),
    "weighting/clip_v": (
        ("weighting.clip_v.deviations=0.5", "weighting.clip_v.max_share=0.3"),
        {"deviations": 1.5, "max_share": 0.02},
    ),
    "weighting/repo_r": ((), {"zeta": 0.01}),
    "weighting/erc": ((), {"clip_low": 0.2, "clip_high": 0.2}),
    "regularizer/none": ((), {}),
    "regularizer/entropy_bonus": ((), {"coef": 0.5}),
    "regularizer/kl_cov": ((), {"share": 0.3, "coef": 0.5}),
    "regularizer/spark_shield": (
        ("regularizer.spark_shield.quantile=0.6", "regularizer.spark_shield.penalty=full"),
        {
            "quantile": 0.3,
            "threshold": 0.3,
            "source": "current",
            "penalty": "k3",
            "ceiling": 0.005,
            "coef": 0.5,
            "support": 2,
        },
    ),
    "regularizer/only_places": (
        ("regularizer.only_places.regularizer.quantile=0.95", "regularizer.only_places.regularizer.threshold=0.1"),
        {
            "where": "rest",
            "tokens": 2,
            "regularizer.quantile": 0.3,
            "regularizer.threshold": 0.6,
            "regularizer.threshold_kind": "absolute",
            "regularizer.coef": 0.5,
            "regularizer.variant": "reference",
            "regularizer.support": 2,
        },
    ),
    "regularizer/lp_reg": (
        ("regularizer.lp_reg.quantile=0.6",),
        {
            "quantile": 0.3,
            "threshold": 0.3,
            "threshold_kind": "absolute",
            "coef": 0.5,
            "variant": "reference",
            "support": 2,
        },
    ),
    "correction/none": ((), {}),
    "correction/tis": ((), {"most": 1.1, "level": "sequence"}),
    "correction/mis": ((), {"least": 0.9, "most": 1.1, "level": "geometric"}),
    "aggregator/token_mean": ((), {}),
    "aggregator/sequence_mean_token_mean": ((), {}),
    "aggregator/sequence_mean_token_sum": ((), {"length": 7.0}),
}
# The same regularizer in its other form.
LP_REG_REFERENCE = (
    "regularizer=[lp_reg]",
    "regularizer.lp_reg={quantile: 0.6, threshold: 0.1, variant: reference}",
)


# The bounds of BAPO where no upper one suffices.
EXHAUSTED = ("constraint=bapo", *BOUNDS, "constraint.target=0.5")


def chosen(group: str, name: str) -> str:
    return f"{group}=[{name}]" if group in SEVERAL else f"{group}={name}"


def path_of(group: str, name: str) -> str:
    return f"{group}.{name}" if group in SEVERAL else group


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """Settings of a yaml; numbers for each part are one setting."""
    for key, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            yield from leaves(value, f"{prefix}{key}.")
        elif key not in ("_target_", "defaults"):
            yield prefix + key


def settings_of(file: Path) -> set[str]:
    held = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(held, dict)
    return set(leaves(held))


def tried(tables: dict[str, Table]) -> Iterator[tuple[str, str, str, Any, tuple[str, ...]]]:
    for table in tables.values():
        for yaml, (context, others) in table.items():
            group, name = yaml.split("/")
            for setting, value in others.items():
                yield group, name, setting, value, context


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose(overrides)


def changed(overrides: tuple[str, ...], setting: str, value: Any) -> DictConfig:
    """The run with one setting changed."""
    cfg = composed(overrides).copy()
    assert OmegaConf.select(cfg, setting, default="nobody") != "nobody"
    OmegaConf.update(cfg, setting, value, merge=False)
    return cfg


def result_of_objective(cfg: DictConfig) -> list[Tensor]:
    """Loss and gradient over a step of ragged off-policy responses."""
    objective = build_module(cfg, ModelSource()).objective
    case = random_case(11)
    loss = loss_of(objective, case, [slice(0, 16)], Step())
    (gradient,) = torch.autograd.grad(loss, case.logits)
    return [loss.detach(), gradient]


def differs(one: list[Tensor], other: list[Tensor]) -> bool:
    return any(bool((mine - theirs).abs().max() > 1e-6) for mine, theirs in zip(one, other, strict=True))


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


ADVANTAGES: Table = {
    "advantage/group_relative": ((), {"normalize": False, "epsilon": 0.5}),
    "advantage/dr_grpo": (("advantage.normalize=true",), {"normalize": False, "epsilon": 0.5}),
    "advantage/rloo": ((), {}),
}
SHAPINGS: Table = {
    "shaping/none": ((), {}),
    "shaping/overlong": ((), {"max_length": 40, "buffer": 20, "weight": 0.5}),
}
REWARDS = Path(__file__).parent / "verifiers" / "rewards.py"
RESPONSES = (
    "3+4=7#8",
    "#### 8",
    "\\boxed{8}",
    "the answer is $\\sqrt{64}$",
    "<think>8</think>",
    "so <think>8</think>#8",
)
VERIFIERS: Table = {
    "verifier/exact": ((), {"pattern": "=(-?[0-9]+)"}),
    "verifier/math": ((), {"extract": "boxed", "timeout_s": 1e-4}),
    "verifier/choice": ((), {"choices": "AB", "extract": "answer_colon"}),
    "verifier/format": (
        ("verifier.tags=[think]",),
        {"tags": ["answer"], "outside": True, "pattern": "9", "min_characters": 20, "max_characters": 10},
    ),
    "verifier/function": (
        (f"verifier.path={REWARDS}:score",),
        {"path": f"{REWARDS}:length", "correct_from": 0.25, "judges": "code"},
    ),
    "verifier/composite": (
        ("verifier@verifier.parts.answer=exact", "verifier.parts.format.tags=[think]"),
        {"combine": "all", "weights": {"answer": 0.5, "format": 0.25}, "decides": "format"},
    ),
    "verifier/remote": ((), {}),
    "verifier/countdown": ((), {}),
}


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


BONUS = ("regularizer=[entropy_bonus]", "partitioner=entropy_quantile")
FLEXIBLE = ("constraint=flexible_clip", "partitioner=entropy_quantile")
RESCALED = ("weighting=[repo_r]", "+weighting@weighting.second=repo_r", "partitioner=entropy_quantile")
HIGH = ("controller.drives=constraint.clip_high", "partitioner=entropy_quantile")
CONTROLLERS: Table = {
    "controller/none": ((), {}),
    "controller/target": (
        HIGH,
        {
            "drives": "constraint.clip_low",
            "target": 0.5,
            "kp": 0.1,
            "ki": 0.01,
            "direction": -1,
            "initial": 0.4,
            "least": 0.15,
            "most": 0.25,
            "part": "reasoning",
        },
    ),
    "controller/band": (
        HIGH,
        {
            "drives": "constraint.clip_low",
            "low": 0.02,
            "high": 0.9,
            "step": 0.02,
            "initial": 0.4,
            "least": 0.19,
            "most": 0.21,
            "part": "reasoning",
        },
    ),
    "controller/stepwise": (
        (*BONUS, "controller.initial=0.02"),
        {
            "drives": "constraint.kl_coef",
            "target": 0.9,
            "step": 0.01,
            "initial": 0.05,
            "least": 0.015,
            "most": 0.03,
            "part": "reasoning",
        },
    ),
    "controller/increase_then_decrease": (
        FLEXIBLE,
        {"drives": "constraint.beta_low", "peak": 0.2, "least": 0.4, "most": 0.5, "part": "reasoning"},
    ),
    "controller/decrease_increase_decrease": (
        FLEXIBLE,
        {
            "drives": "constraint.beta_low",
            "trough": 0.1,
            "peak": 0.8,
            "least": 0.4,
            "most": 0.5,
            "part": "reasoning",
        },
    ),
    "controller/halving_doubling": (
        (*RESCALED, "controller.smallest=2e-3"),
        {
            "drives": "weighting.second.zeta",
            "target": 0.1,
            "smallest": 4e-3,
            "initial": 2e-3,
            "least": -3e-3,
            "most": 0.03,
            "part": "reasoning",
        },
    ),
    "controller/oscillating_decay": (
        FLEXIBLE,
        {"drives": "constraint.beta_low", "low_share": 0.9, "least": 0.4, "most": 0.5, "part": "reasoning"},
    ),
}
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


ROWS = {
    "template": "Q: {problem}",
    "system": "Think.",
    "problem_field": "question",
    "answer_field": "solution",
    "id_field": "key",
    "answer_pattern": "([0-9])$",
    "held_out": 1,
    "limit": 2,
    "seed": 3,
}
TASKS: Table = {
    "task/arithmetic": (
        ("task.num_train=50",),
        {
            "num_terms": 3,
            "max_operand": 9,
            "max_value": 40,
            "num_train": 49,
            "num_held_out": 5,
            "seed": 1,
            "template": "Say {problem}",
        },
    ),
    "task/sparks": (
        ("task.num_train=50",),
        {"num_steps": 3, "rumour_share": 0.2, "num_train": 49, "num_held_out": 5, "seed": 1},
    ),
    "task/countdown": (
        ("task.num_train=50",),
        {"num_numbers": 4, "max_number": 9, "max_value": 40, "num_train": 49, "num_held_out": 5, "seed": 1},
    ),
    "task/jsonl": (("task.held_out=3",), {**ROWS, "path": "b.jsonl", "held_out_path": "b.jsonl"}),
}


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


HYGIENE = {"decontaminate", "evaluation_paths", "difficulty", "solve_rates"}
# Held by tests of their own, which need more than a component.
LIMITS = {f"limits.{name}" for name in ("memory_mb", "processes", "open_files", "output_mb", "disk_mb")}
ELSEWHERE = {
    "engine/auto": {"dtype"},  # test_precision.py
    "engine/transformers": {"batch_size", "dtype"},  # rollout/test_transformers_engine.py, test_precision.py
    "engine/vllm": {
        "gpu_memory_utilization",
        "max_num_seqs",
        "enforce_eager",
        "cpu_kv_cache_gb",
        "tensor_parallel",
        "sleep",
        "dtype",
        "adapters",
    },  # vllm_engine/
    "engine/vllm_server": {
        "servers",
        "tensor_parallel",
        "urls",
        "router",
        "port",
        "gpu_memory_utilization",
        "max_num_seqs",
        "enforce_eager",
        "cpu_kv_cache_gb",
        "transfer",
        "transfer_folder",
        "timeout_s",
        "start_s",
        "retries",
        "restarts",
        "log_folder",
        "dtype",
        "adapters",
    },  # vllm_engine/
    "engine/replay": {"path"},  # rollout/test_replay.py
    "task/jsonl": HYGIENE,  # tasks/test_hygiene.py
    "task/huggingface": {*ROWS, "path", "name", "split", "held_out_split", *HYGIENE},  # tasks/test_huggingface.py
    "verifier/remote": {
        "url",
        "timeout_s",
        "retries",
        "concurrency",
        "token_env",
        "judges",
    },  # verifiers/test_remote.py
    "verifier/code": {"extract", "reward", "sandbox", "timeout_s", *LIMITS},  # verifiers/code/test_code_verifier.py
    "regularizer/only_places": {"regularizer.kl_estimator", "regularizer.temperature"},  # as of lp_reg
    "regularizer/lp_reg": {"kl_estimator", "temperature"},  # above, in the reference form
    "constraint/bapo": {"lower_limit"},  # above, where the search comes to it
}


def test_no_setting_of_a_component_is_left_out() -> None:
    known: dict[str, set[str]] = {}
    for table in (OBJECTIVES, ADVANTAGES, SHAPINGS, VERIFIERS, CONTROLLERS, TASKS):
        for yaml, (_, others) in table.items():
            known[yaml] = set(others)
    for yaml, names in ELSEWHERE.items():
        known[yaml] = known.get(yaml, set()) | names
    groups = ("advantage", "aggregator", "constraint", "controller", "correction", "engine", "partitioner")
    groups += ("regularizer", "shaping", "task", "verifier", "weighting")
    files = {f"{group}/{file.stem}": file for group in groups for file in (config_dir() / group).glob("*.yaml")}
    assert known == {yaml: settings_of(file) for yaml, file in files.items()}
