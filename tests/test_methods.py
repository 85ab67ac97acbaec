"""Corrections, regularizers, partitioners and advantages without golden numbers against their equations, in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from by_hand import MEAN, entropy, mean, ppo, quantile, token_mean, tokens
from objectives import random_case, stats_of

from rlvr_lightning.methods.advantages.rloo import RLOO
from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.corrections.mis import MIS
from rlvr_lightning.methods.corrections.tis import TIS
from rlvr_lightning.methods.partitioners.random_share import RandomShare
from rlvr_lightning.methods.regularizers.entropy_bonus import EntropyBonus
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.objective.tile import Tile


@pytest.mark.parametrize(("correction", "weight"), [(TIS(1.2), "tis"), (MIS(0.7, 1.4), "mis")])
def test_corrections_weigh_the_surrogate(correction: Any, weight: str) -> None:
    case = random_case(7)
    expected, weights = [], []
    for token in tokens(case):
        w = token.old[token.sampled] / token.infer
        w = min(w, 1.2) if weight == "tis" else w * (0.7 <= w <= 1.4)
        weights.append(w)
        expected.append(w * ppo(token, 0.2, 0.2))
    assert len(set(weights)) > 10
    assert weights.count(1.2 if weight == "tis" else 0.0) > 3
    assert math.isclose(token_mean(ClipKL(), case, correction=correction), mean(expected), rel_tol=1e-12)


@pytest.mark.parametrize("level", ["sequence", "geometric"])
def test_corrections_of_whole_responses(level: Any) -> None:
    case = random_case(7)
    ratios: dict[int, list[float]] = {}
    for token in tokens(case):
        ratios.setdefault(token.row, []).append(token.old[token.sampled] / token.infer)
    weight = {row: math.prod(held) ** (1 if level == "sequence" else 1 / len(held)) for row, held in ratios.items()}
    for correction, allowed in ((TIS(1.1, level), lambda w: min(w, 1.1)), (MIS(0.8, 1.25, level), _inside)):
        weights = {row: allowed(w) for row, w in weight.items()}
        assert len(set(weights.values())) > 1
        expected = mean([weights[token.row] * ppo(token, 0.2, 0.2) for token in tokens(case)])
        assert math.isclose(token_mean(ClipKL(), case, correction=correction), expected, rel_tol=1e-12)


def _inside(weight: float) -> float:
    return weight if 0.8 <= weight <= 1.25 else 0.0


def test_entropy_bonus_is_the_mean_entropy() -> None:
    case = random_case(8)
    bonus = token_mean(ClipKL(), case, regularizers={"entropy_bonus": EntropyBonus(0.3)})
    expected = mean([ppo(token, 0.2, 0.2) - 0.3 * entropy(token.new) for token in tokens(case)])
    assert math.isclose(bonus, expected, rel_tol=1e-12)


@pytest.mark.parametrize(("kind", "threshold"), [("relative", 0.02), ("absolute", 0.015)])
def test_lp_reg_off_policy_is_pulled_to_the_old_policys_proxy(kind: Any, threshold: float) -> None:
    case = random_case(9)
    regularizer = LpReg(0.6, threshold, kind, coef=0.7)
    loss = token_mean(CappedRatio(1.2), case, regularizers={"lp_reg": regularizer})
    everything = list(tokens(case))
    bound = quantile([token.old[token.sampled] for token in everything], 0.6)
    expected, sparks = [], 0
    for token in everything:
        value = -min(token.r, 1.2) * token.a
        tau = threshold * (max(token.old) if kind == "relative" else 1)
        if token.old[token.sampled] < bound and token.a < 0 and token.old[token.sampled] > tau:
            mass = sum(p for p in token.old if p > tau)
            pairs = [(p / mass, q) for p, q in zip(token.old, token.new, strict=True) if p > tau]
            value, sparks = value + 0.7 * sum(p * math.log(p / q) for p, q in pairs), sparks + 1
        expected.append(value)
    assert sparks >= 5
    assert math.isclose(loss, mean(expected), rel_tol=1e-12)


def test_lp_regs_support_of_the_old_proxy_is_cut_to_its_most_probable_tokens() -> None:
    case = random_case(9)
    exact, enough, cut = (
        token_mean(CappedRatio(1.2), case, regularizers={"lp_reg": LpReg(0.6, 0.02, support=size)})
        for size in (9, 64, 2)
    )
    assert exact == enough
    assert abs(cut - exact) > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_reference_filter_judges_before_the_temperature(temperature: float) -> None:
    logits = torch.randn(40, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    scaled = (logits / temperature).log_softmax(-1)
    for kind, threshold in (("relative", 0.1), ("absolute", 0.05)):
        noise_filter = LpReg(0.1, threshold, kind, variant="reference", temperature=temperature).filter
        kept, mass = noise_filter.keep(scaled)
        found = kept - mass
        tile = Tile(scaled, torch.zeros(40, dtype=torch.long), {})
        torch.testing.assert_close(noise_filter.log_mass(tile)[0], mass.squeeze(-1))
        before = logits.softmax(-1)
        tau = threshold * (before.max(-1, keepdim=True).values if kind == "relative" else 1)
        keep = before >= tau
        expected = (logits.masked_fill(~keep, -torch.inf) / temperature).log_softmax(-1)
        assert torch.equal(found.isfinite(), keep)
        torch.testing.assert_close(found[keep], expected[keep])
        after = scaled.exp()
        other = after >= threshold * (after.max(-1, keepdim=True).values if kind == "relative" else 1)
        assert not torch.equal(keep, other)


def test_random_share_follows_the_tokens_own_numbers() -> None:
    case = random_case(10)
    objective = Objective(RandomShare(0.4), ClipKL(), {}, MEAN)
    plan = objective.plan(stats_of(objective, case), Step())
    chosen = {(t.row, t.place) for t in tokens(case, plan.part_ids) if t.part == "reasoning"}
    assert chosen == {(t.row, t.place) for t in tokens(case) if t.noise < 0.4}
    assert 0.2 < len(chosen) / int(case.mask.sum()) < 0.6


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5, 9.0], [2.0, 2.0, 2.0, 2.0], [1.0, 9.0, 9.0, 9.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False], [True] * 4, [True, False, False, False]])
    expected = [[1.0 - 0.25, 0.0 - 0.75, 0.5 - 0.5, 0.0], [0.0] * 4, [0.0] * 4]
    torch.testing.assert_close(RLOO()(rewards, valid), torch.tensor(expected, dtype=torch.float64))
