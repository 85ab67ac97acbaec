"""Weightings that take tokens out against their equations, written out token by token in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from by_hand import Token, entropy, mean, tokens
from objectives import random_case
from weighing import check, evaluated

from rlvr_lightning.methods.weightings.entropy_clip import ClipB, ClipV
from rlvr_lightning.methods.weightings.erc import ERC
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import Weighting
from rlvr_lightning.types import TokenStats


def discriminator(token: Token) -> float:
    return token.p * (entropy(token.new) + math.log(token.p))


def expected_discriminator(token: Token) -> float:
    h = entropy(token.new)
    return sum(p * p * (h + math.log(p)) for p in token.new)


def deviation(values: list[float]) -> float:
    return math.sqrt(mean([(value - mean(values)) ** 2 for value in values]))


@pytest.mark.parametrize("mu", [0.5, 1.5])
def test_clip_b_takes_out_what_lies_far_below_the_steps_mean(mu: float) -> None:
    case = random_case(4)
    values = [discriminator(token) for token in tokens(case)]
    edge = mean(values) - mu * deviation(values)
    factors = check(case, ClipB(mu), lambda token: float(not (token.a < 0 and discriminator(token) < edge)))
    assert 0 < factors.count(0.0) < len(factors) / 2
    assert any(token.a > 0 and discriminator(token) < edge for token in tokens(case)) or mu > 1


@pytest.mark.parametrize("max_share", [0.9, 0.1])
def test_clip_v_takes_out_what_lies_far_below_the_policys_own_mean(max_share: float) -> None:
    case, mu = random_case(4), 0.5
    everything = list(tokens(case))
    excess = {id(token): expected_discriminator(token) - discriminator(token) for token in everything}
    # About its mean; the excess itself is not.
    edge = mu * deviation(list(excess.values()))
    over = sorted((x for token in everything if token.a < 0 and (x := excess[id(token)]) > edge), reverse=True)
    count = min(max(int(max_share * len(everything)), 1), len(over))
    assert (count == len(over)) == (max_share == 0.9)
    assert count > 1
    last = over[count - 1]

    def factor(token: Token) -> float:
        x = expected_discriminator(token) - discriminator(token)
        return float(not (token.a < 0 and x > edge and x >= last - 1e-12))

    factors = check(case, ClipV(mu, max_share), factor)
    assert count <= factors.count(0.0) <= count + 2
    assert any(token.a > 0 and excess[id(token)] > edge for token in everything)


def test_clip_v_takes_out_one_token_of_a_small_step() -> None:
    _, plan, output = evaluated(random_case(5), clip_v=ClipV(0.5, 1e-4))
    assert int(plan.choices["weighting.clip_v"].sum()) == 1
    assert int((output.factors["clip_v"] == 0).sum()) == 1


@pytest.mark.parametrize("kind", [ClipB(0.1), ClipV(0.1, 0.5)])
def test_nothing_is_far_from_equal_values(kind: Weighting) -> None:
    """Of equal values the deviation is 0, whatever a difference of large sums would make of it."""
    logprobs = torch.full((3, 7), math.log(0.3), dtype=torch.float64)
    held = {"entropy": torch.full_like(logprobs, 1.1), "entropy_flow": torch.full_like(logprobs, -0.7)}
    mask = torch.ones(3, 7, dtype=torch.bool)
    stats = TokenStats(logprobs, logprobs, -torch.ones_like(logprobs), mask, statistics=held)
    assert int(kind.plan(stats, mask.long(), Step()).sum()) == 0
    held["entropy_flow"].zero_()
    held["entropy"][0, 0], held["entropy_flow"][0, 0] = 0.5, -0.8
    assert int(kind.plan(stats, mask.long(), Step()).sum()) == 1


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.05), (0.3, 0.1)])
def test_erc_takes_out_tokens_whose_entropy_has_moved(low: float, high: float) -> None:
    case = random_case(7)

    def factor(token: Token) -> float:
        rho = (entropy(token.new) + 1e-8) / (entropy(token.old) + 1e-8)
        return float(1 - low < rho < 1 + high)

    factors = check(case, ERC(low, high), factor)
    assert 5 < factors.count(0.0) < len(factors) - 5


def test_erc_takes_out_nothing_on_policy_and_its_edges_are_out() -> None:
    assert set(evaluated(random_case(7, on_policy=True), erc=ERC(1e-6, 1e-6))[2].factors["erc"].flatten().tolist()) == {
        1
    }
    # To the last bit: each of these ratios as an edge, and a little further.
    before = torch.ones(1, 1, dtype=torch.float64)
    for entropy_now in (0.75, 1.25):
        stats = TokenStats(
            before,
            before,
            before,
            before > 0,
            statistics={"entropy": entropy_now * before},
            old_statistics={"entropy": before},
        )
        width = abs(1 - (entropy_now + 1e-8) / (1 + 1e-8))
        for wide, kept in ((width, 0.0), (width * (1 + 1e-12), 1.0)):
            assert float(ERC(wide, wide)(stats, torch.zeros(1, 1, dtype=torch.long), before)) == kept
    # Without any entropy before and after there is no ratio to speak of.
    nothing = replace(stats, statistics={"entropy": 0 * before}, old_statistics={"entropy": 0 * before})
    assert float(ERC()(nothing, torch.zeros(1, 1, dtype=torch.long), before)) == 1
