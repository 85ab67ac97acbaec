"""Each method without golden numbers against its equation, written out token by token in plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from objectives import AGGREGATORS, HIGH, LOW, Case, random_case, stats_of

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.advantages.rloo import RLOO
from rlvr_lightning.methods.constraints.aspo import ASPO
from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.constraints.ce_gppo import CEGPPO
from rlvr_lightning.methods.constraints.clip_cov import ClipCov
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.flexible_clip import FlexibleClip
from rlvr_lightning.methods.constraints.opefo import OPEFO, entropy_change
from rlvr_lightning.methods.constraints.sapo import SAPO
from rlvr_lightning.methods.corrections.mis import MIS
from rlvr_lightning.methods.corrections.tis import TIS
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.random_share import RandomShare
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.regularizers.entropy_bonus import EntropyBonus
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.objective.tile import Tile
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
