"""Each constraint without golden numbers against its equation, written out token by token in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from by_hand import MEAN, entropy, mean, ppo, token_mean, tokens
from objectives import HIGH, LOW, random_case, stats_of

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.aspo import ASPO
from rlvr_lightning.methods.constraints.ce_gppo import CEGPPO
from rlvr_lightning.methods.constraints.clip_cov import ClipCov
from rlvr_lightning.methods.constraints.flexible_clip import FlexibleClip
from rlvr_lightning.methods.constraints.opefo import OPEFO, entropy_change
from rlvr_lightning.methods.constraints.sapo import SAPO
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step


def test_sapos_gates_are_exact_in_float64() -> None:
    case = random_case(1)
    expected = []
    for token in tokens(case):
        tau = 1.1 if token.a > 0 else 1.3  # neither is a float32
        expected.append(-4 / tau / (1 + math.exp(-tau * (token.r - 1))) * token.a)
    assert len({value > 0 for value in expected}) == 2
    assert math.isclose(token_mean(SAPO(1.1, 1.3), case), mean(expected), rel_tol=1e-12)


def test_aspo_inverts_the_ratios_of_positive_advantages() -> None:
    case, dual = random_case(1), 1.3
    partitioner = EntropyQuantile(0.7)
    objective = Objective(partitioner, ASPO(LOW, HIGH, dual), {}, MEAN)
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    expected, slopes = [], {}
    for token in tokens(case, plan.part_ids):
        if token.a > 0:
            value = -min(1 / token.r, dual) * token.a
            slope = 0.0 if token.r > 1 + HIGH[token.part] else value
        else:
            value = min(ppo(token, LOW[token.part], HIGH[token.part]), -dual * token.a)
            inside = 1 - LOW[token.part] <= token.r
            slope = -token.r * token.a if inside and token.r < dual else 0.0
        expected.append(value)
        slopes[token.row, token.place] = slope
    output = objective(stats, plan)
    assert math.isclose(float(output.loss.detach()), mean(expected), rel_tol=1e-12)
    (gradient,) = torch.autograd.grad(output.loss, stats.logprobs)
    for (row, place), slope in slopes.items():
        assert math.isclose(float(gradient[row, place]), slope / len(expected), rel_tol=1e-9, abs_tol=1e-12)


def test_ce_gppo_keeps_a_bounded_gradient_beyond_the_range() -> None:
    case = random_case(2)
    objective = Objective(SinglePart(), CEGPPO(0.1, 0.15, 0.6, 0.9), {}, MEAN)
    stats = stats_of(objective, case)
    output = objective(stats, objective.plan(stats, Step()))
    (gradient,) = torch.autograd.grad(output.loss, stats.logprobs)
    expected, kinds = {}, set()
    for token in tokens(case):
        if token.a < 0 and token.r < 0.9:
            kind, weight = "below", 0.6 * 0.9
        elif token.a > 0 and token.r > 1.15:
            kind, weight = "above", 0.9 * 1.15
        else:
            kind, weight = "inside", token.r
        kinds.add(kind)
        expected[token.row, token.place] = -weight * token.a
    assert kinds == {"below", "above", "inside"}
    assert math.isclose(float(output.loss.detach()), mean(list(expected.values())), rel_tol=1e-12)
    for (row, place), value in expected.items():
        # The value is the slope: each form is a constant times r / sg(r), or r itself.
        assert math.isclose(float(gradient[row, place]), value / len(expected), rel_tol=1e-9)


def test_flexible_clip_bounds_solve_the_papers_equation() -> None:
    case, (al, bl, ah, bh) = random_case(3), (-0.15, 0.2, -0.25, 0.3)
    expected = []
    for token in tokens(case):
        before = token.old[token.sampled]
        # The edge p of the allowed new probabilities satisfies p / p_old = 1 + (alpha p + beta): solved by iteration.
        upper = lower = before
        for _ in range(200):
            upper, lower = before * (1 + ah * upper + bh), before * (1 - al * lower - bl)
        expected.append(-min(token.r * token.a, min(max(token.r, lower / before), upper / before) * token.a))
    assert math.isclose(token_mean(FlexibleClip(al, bl, ah, bh), case), mean(expected), rel_tol=1e-10)


def test_flexible_clip_is_wide_for_rare_tokens_and_never_excludes_the_old_policy() -> None:
    with pytest.raises(ConfigError, match=r"FlexibleClip.beta_high must be at least -alpha_high = 0.3; got 0.2"):
        FlexibleClip(beta_high=0.2)
    with pytest.raises(ConfigError, match=r"FlexibleClip.alpha_low must be in \(-1, 0\]; got -1"):
        FlexibleClip(alpha_low=-1, beta_low=1)
    with pytest.raises(ConfigError, match=r"beta_low must be in \[-alpha_low, 1\] = \[0.2, 1\]; got 0.1"):
        FlexibleClip(beta_low=0.1)
    for p, lowest, highest in ((0.0, 0.7, 1.4), (1.0, 0.7 / 0.8, 1.4 / 1.3)):
        assert (1 - 0.3) / (1 - 0.2 * p) == pytest.approx(lowest)
        assert (1 + 0.4) / (1 + 0.3 * p) == pytest.approx(highest)


def test_clip_cov_takes_a_share_of_the_candidates_out() -> None:
    case, low, high = random_case(4), 0.05, 2.0
    all_tokens = list(tokens(case))
    log_mean, a_mean = mean([math.log(t.p) for t in all_tokens]), mean([t.a for t in all_tokens])
    candidates = [
        t
        for t in all_tokens
        if low < (math.log(t.p) - log_mean) * (t.a - a_mean) < high and ppo(t, 0.2, 0.2) == -t.r * t.a
    ]
    count = int(len(all_tokens) * 0.1)
    assert 1 < count < len(candidates)
    out = {id(t) for t in sorted(candidates, key=lambda t: t.noise)[:count]}
    expected = mean([0.0 if id(t) in out else ppo(t, 0.2, 0.2) for t in all_tokens])
    assert math.isclose(token_mean(ClipCov(0.1, low, high), case), expected, rel_tol=1e-12)


def test_opefo_balances_the_flows() -> None:
    case = random_case(5, on_policy=True)
    constraint = OPEFO()
    objective = Objective(SinglePart(), constraint, {}, MEAN)
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    scale = plan.choices["constraint"]
    change: dict[tuple[int, int], float] = {}
    for token in tokens(case):
        h = entropy(token.new)
        phi = [p * (math.log(p) + h) for p in token.new]
        flow = -token.a * (phi[token.sampled] - sum(p * f for p, f in zip(token.new, phi, strict=True)))
        change[token.row, token.place] = flow
        assert math.isclose(float(entropy_change(stats)[token.row, token.place]), flow, rel_tol=1e-9, abs_tol=1e-12)
    rising = sum(value for value in change.values() if value > 0)
    falling = -sum(value for value in change.values() if value < 0)
    assert rising != pytest.approx(falling, rel=0.05)
    # What moves the entropy neither way is not scaled.
    assert set(scale[~case.mask].tolist()) == {1.0}
    after = [sum(float(scale[at]) * v for at, v in change.items() if (v > 0) == side) for side in (True, False)]
    assert after[0] == pytest.approx(-after[1], rel=1e-12)
    assert after[0] == pytest.approx(2 * rising * falling / (rising + falling), rel=1e-12)
    # The new policy gradient itself carries no entropy flow, to first order, under the token mean.
    loss = objective(stats, plan).loss
    (gradient,) = torch.autograd.grad(loss, case.logits)
    probs = case.logits.detach().softmax(-1)
    slope = -probs * (probs.log() - (probs * probs.log()).sum(-1, keepdim=True))
    assert abs(float((gradient * slope)[case.mask].sum())) < 1e-12
    assert float((gradient * slope)[case.mask].abs().sum()) > 1e-2


def test_opefo_leaves_a_step_with_one_flow_alone() -> None:
    case = random_case(6, on_policy=True)
    objective = Objective(SinglePart(), OPEFO(), {}, MEAN)
    stats = stats_of(objective, case)
    flow = stats.statistics["entropy_flow"]
    one_way = replace(stats, advantages=-torch.sign(flow) * stats.advantages.abs())
    assert torch.equal(objective.plan(one_way, Step()).choices["constraint"], torch.ones_like(flow))
