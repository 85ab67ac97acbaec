"""Weighted objectives evaluated, and compared with a factor written out token by token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from by_hand import Token, mean, ppo, tokens
from objectives import AGGREGATORS, Case, stats_of

from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.objective.objective import LossOutput, Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import Weighting
from rlvr_lightning.types import StepPlan, TokenStats

MEAN = AGGREGATORS["token_mean"]
LOW, HIGH, DUAL = 0.2, 0.28, 1.5


def surrogate(token: Token) -> float:
    """PPO's with the dual clip, as STARE, STEER and ERC weigh it."""
    loss = ppo(token, LOW, HIGH)
    return min(loss, -DUAL * token.a) if token.a < 0 else loss


def evaluated(case: Case, constraint: Any = None, **weightings: Weighting) -> tuple[TokenStats, StepPlan, LossOutput]:
    base = ClipKL(LOW, HIGH, DUAL) if constraint is None else constraint
    objective = Objective(SinglePart(), base, {}, MEAN, None, weightings)
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    return stats, plan, objective(stats, plan)


def check(case: Case, weighting: Weighting, factor: Callable[[Token], float]) -> list[float]:
    """Loss and gradient are the surrogate's times the factor by hand, over all tokens; returns the factors."""
    everything = list(tokens(case))
    factors = [factor(token) for token in everything]
    stats, _, output = evaluated(case, one=weighting)
    by_hand = mean([w * surrogate(token) for w, token in zip(factors, everything, strict=True)])
    assert math.isclose(float(output.loss.detach()), by_hand, rel_tol=1e-12)
    (gradient,) = torch.autograd.grad(output.loss, stats.logprobs)
    plain_stats, _, plain = evaluated(case)
    (slope,) = torch.autograd.grad(plain.loss, plain_stats.logprobs)
    for w, token in zip(factors, everything, strict=True):
        at = (token.row, token.place)
        assert math.isclose(float(output.factors["one"][at]), w, rel_tol=1e-11), at
        assert math.isclose(float(gradient[at]), w * float(slope[at]), rel_tol=1e-9, abs_tol=1e-15)
    return factors
