"""The loss against formulas written out token by token, and laws 1 and 2: how a step is cut changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import random_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlvr_lightning.aggregators import SequenceMeanTokenMean, SequenceMeanTokenSum, TokenMean
from rlvr_lightning.constraints.capped_ratio import CappedRatio
from rlvr_lightning.constraints.clip_kl import ClipKL
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective import Objective
from rlvr_lightning.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.partitioners.single import SinglePart
from rlvr_lightning.regularizers.lp_reg import LpReg
from rlvr_lightning.step import Step
from rlvr_lightning.types import TokenStats

PARTS = ("knowledge", "reasoning")
LOW, HIGH, COEF = {PARTS[0]: 0.1, PARTS[1]: 0.4}, {PARTS[0]: 0.15, PARTS[1]: 0.5}, {PARTS[0]: 0.3, PARTS[1]: 0.02}


def with_proxy(stats: TokenStats) -> TokenStats:
    """Statistics of both policies as Lp-Reg's paper variant requires them; the penalty carries a gradient."""
    penalty = (stats.logprobs - 1).square() / 5
    return replace(stats, statistics={**stats.statistics, "proxy_kl": penalty})


def archer(variant: Any = "paper", scope: Any = "response", regularizers: Any = None) -> Objective:
    constraint = ClipKL(LOW, HIGH, 3.0, COEF, variant=variant)
    partitioner = EntropyQuantile(0.7, scope, variant)
    return Objective(partitioner, constraint, regularizers or {}, SequenceMeanTokenMean())


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "archer": archer,
    "archer, reference": lambda: archer("reference"),
    "archer, batch": lambda: archer(scope="batch"),
    "archer + lp_reg": lambda: archer(regularizers={"lp_reg": LpReg(0.4)}),
    "archer + lp_reg, reference": lambda: archer("reference", regularizers={"lp_reg": LpReg(0.4, variant="reference")}),
    "lp_reg": lambda: Objective(SinglePart(), CappedRatio(1.2), {"lp_reg": LpReg(0.4)}, TokenMean()),
    "lp_reg, reference": lambda: Objective(
        SinglePart(), CappedRatio(1.2, "reference"), {"lp_reg": LpReg(0.4, variant="reference")}, TokenMean()
    ),
    "grpo": lambda: Objective(SinglePart(), ClipKL(kl_coef=0.1), {}, SequenceMeanTokenMean()),
    "dapo": lambda: Objective(SinglePart(), ClipKL(0.2, 0.28), {}, TokenMean()),
    "sum": lambda: Objective(SinglePart(), ClipKL(), {}, SequenceMeanTokenSum(7.0)),
}


def loss_and_gradient(objective: Objective, stats: TokenStats) -> tuple[Tensor, Tensor]:
    stats = with_proxy(stats)
    loss = objective(stats, objective.plan(stats, Step())).loss
    (gradient,) = torch.autograd.grad(loss, stats.logprobs)
    return loss.detach(), gradient


def rows_of(stats: TokenStats, index: Any) -> TokenStats:
    changes: dict[str, Any] = {}
    for item in fields(stats):
        value = getattr(stats, item.name)
        if isinstance(value, Tensor):
            changes[item.name] = value[index]
        elif isinstance(value, dict):
            changes[item.name] = {key: tensor[index] for key, tensor in value.items()}
    return replace(stats, **changes)


def quantile_by_hand(values: list[float], q: float) -> float:
    ordered, position = sorted(values), q * (len(values) - 1)
    below = math.floor(position)
    return ordered[below] + (position - below) * (ordered[min(below + 1, len(values) - 1)] - ordered[below])


def test_archer_paper_by_hand() -> None:
    stats = random_stats(1)
    loss, _ = loss_and_gradient(archer(), stats)
    rows, total = 0, 0.0
    assert stats.ref_logprobs is not None
    for row in range(stats.loss_mask.shape[0]):
        tokens = [t for t in range(stats.loss_mask.shape[1]) if stats.loss_mask[row, t]]
        threshold = quantile_by_hand([float(stats.old_statistics["entropy"][row, t]) for t in tokens], 0.7)
        summed = 0.0
        for t in tokens:
            part = PARTS[float(stats.old_statistics["entropy"][row, t]) >= threshold - 1e-15]
            a, new = float(stats.advantages[row, t]), float(stats.logprobs[row, t].detach())
            r = math.exp(new - float(stats.old_logprobs[row, t]))
            surrogate = -min(r * a, min(max(r, 1 - LOW[part]), 1 + HIGH[part]) * a)
            surrogate = min(surrogate, -3.0 * a) if a < 0 else surrogate
            d = float(stats.ref_logprobs[row, t]) - new
            summed += surrogate + COEF[part] * (math.exp(d) - d - 1)
        rows, total = rows + 1, total + summed / len(tokens)
    assert math.isclose(float(loss), total / rows, rel_tol=1e-12)


def test_lp_reg_paper_by_hand() -> None:
    stats = random_stats(2)
    proxy = stats.old_statistics["proxy_logprobs"].clone()
    proxy[0, 0] = -math.inf  # noise: dropped by the filter, so never a spark
    stats = replace(stats, old_statistics={**stats.old_statistics, "proxy_logprobs": proxy})
    objective = Objective(SinglePart(), CappedRatio(1.2), {"lp_reg": LpReg(0.4, coef=0.7)}, TokenMean())
    loss, _ = loss_and_gradient(objective, stats)
    tokens = stats.loss_mask.nonzero().tolist()
    threshold = quantile_by_hand([math.exp(float(stats.old_logprobs[i, t])) for i, t in tokens], 0.4)
    total, sparks = 0.0, 0
    for i, t in tokens:
        a, new, old = (float(x[i, t].detach()) for x in (stats.advantages, stats.logprobs, stats.old_logprobs))
        total -= min(math.exp(new - old), 1.2) * a
        if math.exp(old) < threshold and a < 0 and math.isfinite(float(proxy[i, t])):
            total, sparks = total + 0.7 * (new - 1) ** 2 / 5, sparks + 1
    assert sparks > 2
    assert math.isclose(float(loss), total / len(tokens), rel_tol=1e-12)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(1, 7), max_size=4), extra=st.integers(0, 3))
@settings(max_examples=12, deadline=None)
def test_loss_does_not_depend_on_how_the_step_is_cut(name: str, seed: int, cuts: list[int], extra: int) -> None:
    objective, stats = OBJECTIVES[name](), random_stats(seed, rows=8)
    whole, gradient = loss_and_gradient(objective, stats)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    cut = with_proxy(stats)
    shuffled = rows_of(cut, order)
    if extra:  # padded further, with rubbish where nobody may look
        shuffled = pad(shuffled, extra)
    plan = objective.plan(shuffled, Step())
    bounds = sorted({0, 8, *(c for c in cuts)})
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in pairwise(bounds):
        total = total + objective(rows_of(shuffled, slice(start, stop)), plan.rows(slice(start, stop))).loss
    (cut_gradient,) = torch.autograd.grad(total, stats.logprobs)
    assert math.isclose(float(total), float(whole), rel_tol=1e-9, abs_tol=1e-9)
    torch.testing.assert_close(cut_gradient, gradient, rtol=1e-9, atol=1e-9)


def pad(stats: TokenStats, extra: int) -> TokenStats:
    def widen(tensor: Tensor) -> Tensor:
        rubbish = torch.full((tensor.shape[0], extra), torch.inf, dtype=torch.float64)
        return torch.cat([tensor, torch.zeros_like(rubbish).bool() if tensor.dtype == torch.bool else rubbish], 1)

    changes = {item.name: getattr(stats, item.name) for item in fields(stats)}
    widened = {key: widen(value) for key, value in changes.items() if isinstance(value, Tensor)}
    mappings = {
        key: {name: widen(tensor) for name, tensor in value.items()}
        for key, value in changes.items()
        if isinstance(value, dict)
    }
    return replace(stats, **widened, **mappings)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_gradient_is_the_finite_difference(name: str) -> None:
    objective, stats = OBJECTIVES[name](), random_stats(5, rows=4, length=5)
    _, gradient = loss_and_gradient(objective, stats)
    held = with_proxy(stats)
    plan = objective.plan(held, Step())
    assert gradient[~stats.loss_mask].abs().max() == 0
    for row, column in stats.loss_mask.nonzero().tolist():
        sides = []
        for step in (1e-6, -1e-6):
            moved = stats.logprobs.detach().clone()
            moved[row, column] += step
            sides.append(float(objective(with_proxy(replace(stats, logprobs=moved)), plan).loss))
        assert math.isclose((sides[0] - sides[1]) / 2e-6, float(gradient[row, column]), rel_tol=1e-5, abs_tol=1e-8)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_empty_step_is_zero_with_a_graph(name: str) -> None:
    stats = random_stats(3)
    empty = replace(stats, loss_mask=torch.zeros_like(stats.loss_mask))
    loss, gradient = loss_and_gradient(OBJECTIVES[name](), empty)
    assert float(loss) == 0
    assert gradient.abs().max() == 0


def test_regularized_tokens_leave_the_surrogate_in_the_reference_form() -> None:
    stats = with_proxy(random_stats(4))
    objective = OBJECTIVES["lp_reg, reference"]()
    plan = objective.plan(stats, Step())
    sparks = plan.masks["lp_reg"]
    assert 0 < int(sparks.sum()) < int(stats.loss_mask.sum())
    terms = objective(stats, plan).terms
    ratio = (stats.logprobs - stats.old_logprobs).detach().exp()
    unclipped = (-ratio * stats.advantages)[sparks].sum() / stats.loss_mask.sum()
    assert math.isclose(float(terms["surrogate/sparks"]), float(unclipped), rel_tol=1e-12)


def test_parts_that_do_not_match_are_refused_with_their_names() -> None:
    with pytest.raises(ConfigError, match="constraint.clip_low is set for the parts knowledge, reasoning, but .* all"):
        Objective(SinglePart(), ClipKL(LOW, HIGH), {}, TokenMean())


def test_only_what_is_required_is_asked_for() -> None:
    assert [s.name for s in OBJECTIVES["grpo"]().requires] == ["entropy"]
    assert OBJECTIVES["grpo"]().requires_ref
    assert not OBJECTIVES["dapo"]().requires_ref
    assert OBJECTIVES["dapo"]().plans_on is None
    assert archer().plans_on == "rollout"
    assert archer("reference").plans_on == "update"
    assert {s.name for s in OBJECTIVES["archer + lp_reg"]().requires} == {"entropy", "proxy_logprobs", "proxy_kl"}
