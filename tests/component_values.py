"""Another value for each setting of what rewards, drives and poses problems, and the run in which it matters."""

from __future__ import annotations

from pathlib import Path

from changing import Table

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
