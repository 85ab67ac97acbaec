"""DPPO's mask and BAPO's bounds against their equations and their authors' search, in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import Token, mean, tokens
from objectives import AGGREGATORS, HIGH, Case, random_case, stats_of

from rlvr_lightning.methods.constraints.bapo import BAPO
from rlvr_lightning.methods.constraints.dppo import DPPO
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.objective.objective import LossOutput, Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import ConstraintPolicy
from rlvr_lightning.types import StepPlan, TokenStats

MEAN = AGGREGATORS["token_mean"]


def evaluated(constraint: ConstraintPolicy, case: Case) -> tuple[TokenStats, StepPlan, LossOutput]:
    objective = Objective(SinglePart(), constraint, {}, MEAN)
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    return stats, plan, objective(stats, plan)


def binary_kl(mu: float, p: float) -> float:
    return mu * math.log(mu / p) + (1 - mu) * math.log((1 - mu + 1e-8) / (1 - p + 1e-8))


def check_dppo(case: Case, kind: Any, low: Any, high: Any, cap: float, partitioner: Any = None) -> list[str]:
    """Value and slope of every token by hand, over all tokens; returns what became of each."""
    objective = Objective(partitioner or SinglePart(), DPPO(kind, low, high, cap), {}, MEAN)
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    output = objective(stats, plan)
    (gradient,) = torch.autograd.grad(output.loss, stats.logprobs)
    everything = list(tokens(case, plan.part_ids if partitioner else None))
    fates, values = [], []
    for token in everything:
        p, mu = token.p, token.infer
        distance = abs(p - mu) if kind == "tv" else binary_kl(mu, p)
        delta_low, delta_high = (side[token.part] if isinstance(side, dict) else side for side in (low, high))
        away = (token.a > 0 and p > mu and distance > delta_high) or (token.a < 0 and p < mu and distance > delta_low)
        far = distance > (delta_high if token.a > 0 else delta_low)
        fates.append("masked" if away else "back" if far else "capped" if p / mu > cap else "near")
        # Its slope in the log-probability is its value: a held weight times r / sg(r).
        value = 0.0 if away else -min(p / mu, cap) * token.a
        values.append(value)
        at = (token.row, token.place)
        assert math.isclose(float(gradient[at]), value / len(everything), rel_tol=1e-10, abs_tol=1e-16), at
        assert output.clipped is not None
        assert bool(output.clipped[at]) == away
    assert math.isclose(float(output.loss.detach()), mean(values), rel_tol=1e-12)
    return fates


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("tv", 0.05, 0.1), ("tv", 0.1, 0.02), ("kl", 0.02, 0.05), ("kl", 0.05, 0.01)]
)
def test_dppo_masks_what_has_moved_too_far_from_the_engines_policy(kind: Any, low: float, high: float) -> None:
    fates = check_dppo(random_case(1), kind, low, high, 1.5)
    assert min(fates.count(fate) for fate in ("masked", "back", "capped", "near")) > 1


def test_dppos_bounds_may_differ_by_part() -> None:
    fates = check_dppo(random_case(1), "tv", {"knowledge": 0.02, "reasoning": 0.1}, HIGH, 9.0, EntropyQuantile(0.7))
    assert fates.count("masked") > 2


def test_dppo_knows_no_policy_at_the_start_of_the_update() -> None:
    case = random_case(3)
    stats, plan, output = evaluated(DPPO("tv", 0.05, 0.05), case)
    objective = Objective(SinglePart(), DPPO("tv", 0.05, 0.05), {}, MEAN)
    elsewhere = replace(stats, old_logprobs=stats.old_logprobs - 1.0)
    assert float(objective(elsewhere, plan).loss.detach()) == float(output.loss.detach())
    assert stats.rollout_logprobs is not None
    shifted = replace(stats, rollout_logprobs=stats.rollout_logprobs - 0.3)
    assert abs(float(objective(shifted, plan).loss.detach()) - float(output.loss.detach())) > 1e-3


def test_dppos_gradient_flows_beyond_the_cap_and_beyond_e_to_the_twenty() -> None:
    logprobs = torch.tensor([[-0.1, -0.1, -40.0]], dtype=torch.float64, requires_grad=True)
    engine = torch.tensor([[-4.0, -40.0, -0.1]], dtype=torch.float64)
    advantages = torch.tensor([[-1.0, -1.0, 1.0]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    stats = TokenStats(logprobs, engine, advantages, mask, rollout_logprobs=engine)
    for cap, weights in ((20.0, [20.0, 20.0]), (math.inf, [math.exp(3.9), math.exp(20)])):
        (term,) = DPPO(max_ratio=cap)(stats, mask.long(), mask)
        (gradient,) = torch.autograd.grad(term.values.sum(), logprobs)
        assert gradient[0].tolist() == pytest.approx([*weights, -math.exp(-20)], rel=1e-12)


def searched(case: Case, settings: dict[str, Any], variant: str, lower_step: float) -> tuple[float, float, list[str]]:
    """The bounds as the authors search them, step by step, and which bound each step raised."""
    everything = list(tokens(case))
    weight = {id(t): t.old[t.sampled] if variant == "paper" else 1.0 for t in everything}
    lower, upper = settings["lower"], settings["upper"]

    def reached() -> bool:
        def value(t: Token) -> float:
            return weight[id(t)] * min(t.r * t.a, min(max(t.r, lower), upper) * t.a)

        positive = sum(value(t) for t in everything if t.a > 0)
        negative = -sum(value(t) for t in everything if t.a < 0)
        whole = positive + negative if variant == "paper" else negative
        return positive / whole >= settings["target"]

    raised: list[str] = []
    while not reached():
        room_above = upper < settings["upper_limit"] - 1e-9
        room_below = lower < settings["lower_limit"] - 1e-9
        order = [("upper", room_above), ("lower", room_below)]
        side = next((name for name, room in (order if variant == "paper" else order[::-1]) if room), None)
        if side is None:
            break
        raised.append(side)
        if side == "upper":
            upper = min(upper + settings["upper_step"], settings["upper_limit"])
        else:
            lower = min(lower + lower_step, settings["lower_limit"])
    return lower, upper, raised


# What the search raises, by the target: nothing, the upper bound in part, both to their limits.
TARGETS = {
    "paper": {0.3: (), 0.343: ("upper",), 0.9: ("lower", "upper")},
    "reference": {0.5: (), 0.57: ("lower", "upper"), 1.5: ("lower", "upper")},
}


@pytest.mark.parametrize(("variant", "target"), [(name, target) for name, held in TARGETS.items() for target in held])
@pytest.mark.parametrize("upper_step", [0.05, 0.13])
def test_bapo_finds_the_bounds_of_the_published_search(variant: Any, target: float, upper_step: float) -> None:
    case, dual = random_case(4), 1.6
    settings = {"target": target, "lower": 0.6, "lower_limit": 0.9, "upper": 1.05, "upper_limit": 1.5}
    settings["upper_step"] = upper_step
    lower, upper, raised = searched(case, settings, variant, 0.02)
    assert tuple(sorted(set(raised))) == TARGETS[variant][target]
    assert (upper == 1.5) == (target in (0.9, 1.5))
    _, plan, output = evaluated(BAPO(**settings, dual_clip=dual, variant=variant), case)
    found = plan.choices["constraint"][case.mask]
    torch.testing.assert_close(found, torch.tensor([lower, upper], dtype=torch.float64).expand_as(found))
    expected, cut = [], 0
    for token in tokens(case):
        value = -min(token.r * token.a, min(max(token.r, lower), upper) * token.a)
        value = min(value, -dual * token.a) if token.a < 0 else value
        inside = lower <= token.r <= dual if token.a < 0 else token.r <= upper
        cut += not inside
        expected.append(value)
    assert math.isclose(float(output.loss.detach()), mean(expected), rel_tol=1e-9)
    assert output.clipped is not None
    assert int((output.clipped & case.mask).sum()) == cut > 2


@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_a_search_that_comes_to_the_lower_bound_ends_at_its_limit(variant: Any) -> None:
    """Why BAPO has no steps for it: however fine they are, none of them brings the positive tokens a larger share."""
    for seed in range(6):
        settings = {"target": 0.4 if variant == "paper" else 1.0, "lower": 0.6, "lower_limit": 0.9, "upper": 1.05}
        settings |= {"upper_limit": 1.5, "upper_step": 0.05}
        for step in (0.01, 0.02, 0.3):
            lower, _, raised = searched(random_case(seed), settings, variant, step)
            assert lower == (pytest.approx(0.9) if "lower" in raised else 0.6)


def test_bapo_takes_whole_steps_up_to_the_limit() -> None:
    """Of the paper's numbers 36 steps of 0.05 lie between 1.2 and 3, whatever their sum rounds to."""
    logprobs = torch.tensor([[math.log(3.2 / 4), math.log(0.9)]], dtype=torch.float64)
    old = torch.tensor([[math.log(1 / 4), math.log(0.9)]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    stats = TokenStats(logprobs, old, advantages, mask)

    def upper(target: float, **settings: Any) -> float:
        return float(BAPO(target, **settings).plan(stats, mask.long(), Step())[0, 0, 1])

    def share(bound: float) -> float:
        return 0.25 * bound / (0.25 * bound + 0.9)

    for steps in range(37):
        bound = 1.2 + 0.05 * steps
        assert upper(share(bound) - 1e-9) == pytest.approx(bound, rel=1e-12)
    assert upper(share(3.0) + 1e-9) == 3.0
    assert upper(0.9, upper_limit=1.23) == 1.23
    assert upper(0.9, upper=1.5, upper_limit=1.5) == 1.5


@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_bapo_begins_anew_and_needs_no_search_without_negative_tokens(variant: Any) -> None:
    case = random_case(4)
    constraint = BAPO(0.99, variant=variant)
    objective = Objective(SinglePart(), constraint, {}, MEAN)
    stats = stats_of(objective, case).detached()
    for _ in range(2):
        assert constraint.plan(stats, case.mask.long(), Step())[0, 0].tolist() == [0.9, 3.0]
        alone = replace(stats, advantages=stats.advantages.abs())
        assert constraint.plan(alone, case.mask.long(), Step())[0, 0].tolist() == [0.6, 1.2]
        nobody = replace(stats, loss_mask=torch.zeros_like(case.mask))
        assert constraint.plan(nobody, case.mask.long(), Step())[0, 0].tolist() == [0.6, 1.2]
