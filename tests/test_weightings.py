"""Weightings that scale against their equations, token by token in plain Python; and what becomes of all factors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from by_hand import Token, entropy, mean, ppo, token_mean, tokens
from objectives import random_case, stats_of
from weighing import MEAN, check, evaluated, surrogate

from rlvr_lightning.evaluation.diagnostics import Diagnostics
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.sapo import SAPO
from rlvr_lightning.methods.corrections.tis import TIS
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.methods.weightings.erc import ERC
from rlvr_lightning.methods.weightings.repo_r import RepoR
from rlvr_lightning.methods.weightings.stare import STARE
from rlvr_lightning.methods.weightings.steer import STEER
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.types import TokenStats


@pytest.mark.parametrize(("share", "pos", "neg"), [(0.1, 1.1, 1.0), (0.3, 1.5, 0.6)])
def test_stare_weighs_the_most_surprising_tokens_of_each_sign(share: float, pos: float, neg: float) -> None:
    case = random_case(1)
    everything = list(tokens(case))
    edges = {}
    for sign in (1, -1):
        side = sorted(token.p for token in everything if sign * token.a > 0)
        edges[sign] = side[math.ceil(share * len(side)) - 1]

    def factor(token: Token) -> float:
        sign = 1 if token.a > 0 else -1
        # As surprising as the last one chosen is chosen too.
        return {1: pos, -1: neg}[sign] if token.p <= edges[sign] * (1 + 1e-12) else 1.0

    factors = check(case, STARE(share, pos, neg, 9.0), factor)
    assert factors.count(pos) >= math.ceil(share * sum(token.a > 0 for token in everything)) > 1
    assert factors.count(neg) > (len(factors) // 2 if neg == 1 else 5)


def test_stare_counts_up_and_takes_at_least_one_token() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, -9.0, -4.0]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, 1.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 5, dtype=torch.bool)
    low = {"entropy": torch.full_like(logprobs, 0.1)}
    stats = TokenStats(logprobs, logprobs, advantages, mask, statistics=low, old_statistics=low)
    for share, expected in ((0.01, [1, 1, 2, 1, 0.5]), (0.33, [1, 1, 2, 1, 0.5]), (0.34, [1, 2, 2, 1, 0.5])):
        assert STARE(share, 2.0, 0.5).plan(stats, mask.long(), Step()).tolist() == [expected]
    one_sided = replace(stats, advantages=advantages.abs())
    assert STARE(0.2, 2.0, 0.5).plan(one_sided, mask.long(), Step()).tolist() == [[1, 1, 1, 1, 2]]


def test_stare_waits_for_the_entropy_of_the_rollouts_policy_to_fall() -> None:
    case = random_case(1)
    average = mean([entropy(token.old) for token in tokens(case)])
    assert abs(average - mean([entropy(token.new) for token in tokens(case)])) > 0.005
    plain = float(evaluated(case)[2].loss.detach())
    for target, weighed in ((average - 1e-9, False), (average + 1e-9, True)):
        _, plan, output = evaluated(case, stare=STARE(0.2, 1.5, 0.5, target))
        assert set(plan.choices["weighting.stare"].flatten().tolist()) == ({0.5, 1.0, 1.5} if weighed else {1.0})
        assert (abs(float(output.loss.detach()) - plain) > 1e-3) == weighed


def test_stare_does_nothing_where_the_entropy_is_no_number_or_equals_the_target() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for held, factor in ((math.nan, 1.0), (0.25, 1.0), (0.24, 2.0)):
        old = {"entropy": torch.full_like(logprobs, held)}
        stats = TokenStats(logprobs, logprobs, torch.ones_like(logprobs), mask, statistics=old, old_statistics=old)
        assert STARE(0.5, 2.0, 0.5, 0.25).plan(stats, mask.long(), Step()).tolist() == [[1.0, factor]]


def omega(token: Token) -> float:
    before, p = token.old[token.sampled], token.p
    return -token.a / before * p * (1 - p) * (math.log(p) + entropy(token.old))


@pytest.mark.parametrize("floor", [0.02, 500.0])
def test_steer_attenuates_by_the_estimated_change_of_entropy(floor: float) -> None:
    case, least = random_case(2), 0.4
    sizes = [abs(omega(token)) for token in tokens(case)]
    assert min(sizes) < 0.1 < max(sizes) < 500
    largest = max(*sizes, floor)
    factors = check(case, STEER(least, floor), lambda token: math.exp(math.log(least) * abs(omega(token)) / largest))
    assert {omega(token) > 0 for token in tokens(case)} == {True, False}
    assert math.isclose(min(factors), least if floor < 1 else least ** (max(sizes) / floor), rel_tol=1e-12)


def test_steer_survives_what_is_no_number() -> None:
    """Probabilities of 0 and 1, and an entropy that is not finite, neither weigh nor set the maximum."""
    logprobs = torch.tensor([[-1.0, 0.0, -800.0, -1.0]], dtype=torch.float64)
    held = {"entropy": torch.tensor([[0.5, 0.0, 0.5, math.inf]], dtype=torch.float64)}
    mask = torch.ones(1, 4, dtype=torch.bool)
    stats = TokenStats(logprobs, logprobs, torch.ones_like(logprobs), mask, statistics=held, old_statistics=held)
    factors = STEER(0.5).plan(stats, mask.long(), Step())[0].tolist()
    size = (1 - math.exp(-1)) * 0.5
    # Where p and p_old are held at 1e-8 the change is -(1 - 1e-8)(-800 + 0.5).
    rare = (1 - 1e-8) * 799.5
    expected = [0.5 ** (size / rare), 1.0, 0.5, 1.0]
    assert factors == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("zeta", [0.05, 0.4, -0.4])
def test_repo_r_rescales_the_advantage_and_never_turns_it(zeta: float) -> None:
    case = random_case(6)

    def rescaled(token: Token) -> float:
        log_p = math.log(token.p)
        return max(token.a * (1 - zeta * log_p), 0.0) if token.a > 0 else min(token.a * (1 + zeta * log_p), 0.0)

    factors = check(case, RepoR(zeta), lambda token: rescaled(token) / token.a)
    # The same is the surrogate of the rescaled advantage.
    everything = list(tokens(case))
    by_hand = mean([surrogate(replace(token, a=rescaled(token))) for token in everything])
    assert math.isclose(float(evaluated(case, one=RepoR(zeta))[2].loss.detach()), by_hand, rel_tol=1e-12)
    assert (min(factors) == 0) == (abs(zeta) == 0.4)
    zeros = {token.a > 0 for token, factor in zip(everything, factors, strict=True) if factor == 0}
    assert zeros == {0.05: set(), 0.4: {False}, -0.4: {True}}[zeta]


def test_factors_multiply_each_other_the_correction_and_replaced_tokens() -> None:
    case = random_case(4)
    weightings = {"repo_r": RepoR(0.1), "erc": ERC(0.3, 0.3)}

    def factor(token: Token) -> float:
        sign, rho = math.copysign(1, token.a), entropy(token.new) / entropy(token.old)
        engine = min(token.old[token.sampled] / token.infer, 1.2)
        return max(1 - sign * 0.1 * math.log(token.p), 0) * (0.7 < rho < 1.3) * engine

    weighed = token_mean(ClipKL(), case, correction=TIS(1.2), weightings=weightings)
    expected = mean([factor(token) * ppo(token, 0.2, 0.2) for token in tokens(case)])
    assert math.isclose(weighed, expected, rel_tol=1e-7)
    shield = {"shield": LpReg(0.9, 0.02, variant="reference")}
    objective = Objective(SinglePart(), ClipKL(), shield, MEAN, None, weightings)
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    sparks = plan.choices["shield"] == 1
    total = sum(
        -max(1 - math.copysign(0.1, t.a) * math.log(t.p), 0) * (0.7 < entropy(t.new) / entropy(t.old) < 1.3) * t.r * t.a
        for t in tokens(case)
        if sparks[t.row, t.place]
    )
    assert int(sparks.sum()) > 3
    terms = objective(stats, plan).terms
    assert math.isclose(float(terms["shield/surrogate"]), total / int(case.mask.sum()), rel_tol=1e-7)


def test_what_is_weighed_is_logged_and_what_is_taken_out_counts_as_clipped() -> None:
    case = random_case(7)
    objective = Objective(SinglePart(), SAPO(), {}, MEAN, None, {"erc": ERC(0.2, 0.2), "steer": STEER(0.5)})
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    output = objective(stats, plan)
    out = {(t.row, t.place) for t in tokens(case) if not 0.8 < entropy(t.new) / entropy(t.old) < 1.2}
    assert output.clipped is not None
    assert {(row, place) for row, place in (output.clipped & case.mask).nonzero().tolist()} == out
    diagnostics = Diagnostics(objective)
    diagnostics.observe(stats, output, plan, tables=False)
    logged = diagnostics.drain()
    count = int(case.mask.sum())
    assert logged["policy/weighting/erc"] == pytest.approx(1 - len(out) / count, rel=1e-12)
    assert logged["policy/clip_frac/all"] == pytest.approx(len(out) / count, rel=1e-12)
    factors = output.factors["steer"][case.mask]
    assert 0.5 < logged["policy/weighting/steer"] == pytest.approx(float(factors.mean()), rel=1e-12)
    # Both ways a token can lose its gradient count.
    both = evaluated(case, one=ERC(0.2, 0.2))[2].clipped
    alone = evaluated(case)[2].clipped
    assert both is not None
    assert alone is not None
    for at in case.mask.nonzero().tolist():
        assert bool(both[tuple(at)]) == (bool(alone[tuple(at)]) or tuple(at) in out)
