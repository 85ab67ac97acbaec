"""What papers' formulas speak of, token by token in plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from objectives import AGGREGATORS, Case, stats_of

from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import ConstraintPolicy

MEAN = AGGREGATORS["token_mean"]


@dataclass
class Token:
    """What a paper's formula speaks of, as plain numbers: probabilities over the vocabulary and the sampled token."""

    row: int
    place: int
    a: float
    sampled: int
    new: list[float]
    old: list[float]
    infer: float
    noise: float
    part: str

    @property
    def p(self) -> float:
        return self.new[self.sampled]

    @property
    def r(self) -> float:
        return self.new[self.sampled] / self.old[self.sampled]


def tokens(case: Case, part_ids: Any = None) -> Iterator[Token]:
    new, old = case.logits.detach().softmax(-1), case.old_logits.softmax(-1)
    for row, place in case.mask.nonzero().tolist():
        yield Token(
            row,
            place,
            float(case.advantages[row, place]),
            int(case.ids[row, place]),
            new[row, place].tolist(),
            old[row, place].tolist(),
            math.exp(float(case.rollout_logprobs[row, place])),
            float(case.noise[row, place]),
            "all" if part_ids is None else ("knowledge", "reasoning")[int(part_ids[row, place])],
        )


def entropy(probs: list[float]) -> float:
    return -sum(p * math.log(p) for p in probs)


def token_mean(constraint: ConstraintPolicy, case: Case, **more: Any) -> float:
    objective = Objective(SinglePart(), constraint, more.pop("regularizers", {}), MEAN, **more)
    stats = stats_of(objective, case)
    return float(objective(stats, objective.plan(stats, Step())).loss.detach())


def ppo(token: Token, low: float, high: float) -> float:
    return -min(token.r * token.a, min(max(token.r, 1 - low), 1 + high) * token.a)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def quantile(values: list[float], q: float) -> float:
    ordered, position = sorted(values), q * (len(values) - 1)
    below = math.floor(position)
    return ordered[below] + (position - below) * (ordered[min(below + 1, len(values) - 1)] - ordered[below])
