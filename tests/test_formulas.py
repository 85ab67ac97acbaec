"""Settings whose value the golden cases do not vary, against their formulas written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives import AGGREGATORS, Case, random_case, stats_of

from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.gmpo import GMPO
from rlvr_lightning.methods.constraints.gspo import GSPO
from rlvr_lightning.methods.constraints.sapo import SAPO
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Step
from rlvr_lightning.types import StepPlan, TokenStats

MEAN = AGGREGATORS["token_mean"]
# d = log pi_ref - log pi
ESTIMATES = {"k1": lambda d: -d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(d) - d - 1, "abs": abs}


def planned(objective: Objective, case: Case) -> tuple[TokenStats, StepPlan, dict[str, float]]:
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    return stats, plan, {name: float(value) for name, value in objective(stats, plan).terms.items()}


def places(stats: TokenStats) -> list[tuple[int, int]]:
    return [(row, column) for row, column in stats.loss_mask.nonzero().tolist()]


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "abs"])
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_the_pull_to_the_reference_by_every_estimator(kind: Any, variant: Any) -> None:
    coef = {"knowledge": 0.3, "reasoning": 0.02}
    constraint = ClipKL(kl_coef=coef, kl_estimator=kind, variant=variant)
    stats, plan, terms = planned(Objective(EntropyQuantile(0.6), constraint, {}, MEAN), random_case(12))
    assert stats.ref_logprobs is not None
    sums, counts = {"knowledge": 0.0, "reasoning": 0.0}, {"knowledge": 0, "reasoning": 0}
    for at in places(stats):
        part = ("knowledge", "reasoning")[int(plan.part_ids[at])]
        sums[part] += coef[part] * ESTIMATES[kind](float(stats.ref_logprobs[at]) - float(stats.logprobs[at].detach()))
        counts[part] += 1
    if variant == "paper":
        expected = {"kl": sum(sums.values()) / sum(counts.values())}
    else:
        expected = {f"kl/{part}": sums[part] / counts[part] for part in sums}
    for name, value in expected.items():
        assert math.isclose(terms[name], value, rel_tol=1e-12), name


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "abs"])
def test_the_reference_form_of_lp_reg_by_every_estimator(kind: Any) -> None:
    regularizer = LpReg(0.9, 0.02, coef=0.7, kl_estimator=kind, variant="reference")
    objective = Objective(SinglePart(), ClipKL(), {"lp_reg": regularizer}, MEAN)
    stats, plan, terms = planned(objective, random_case(4))
    proxy = stats.old_statistics[regularizer.proxy.name]
    total, sparks = 0.0, 0
    for at in places(stats):
        if int(plan.choices["lp_reg"][at]) == 1:
            d = float(proxy[at]) - float(stats.logprobs[at].detach())
            total, sparks = total + 0.7 * ESTIMATES[kind](d), sparks + 1
    assert sparks > 3
    assert math.isclose(terms["lp_reg"], total / int(stats.loss_mask.sum()), rel_tol=1e-12)


@pytest.mark.parametrize("support", [1, 2, 3])
def test_a_cut_support_of_the_old_proxy_is_a_distribution_again(support: int) -> None:
    case, tau = random_case(9), 0.02
    regularizer = LpReg(0.6, tau, coef=0.7, support=support)
    stats, plan, terms = planned(Objective(SinglePart(), CappedRatio(), {"lp_reg": regularizer}, MEAN), case)
    old, new = case.old_logits.softmax(-1), case.logits.detach().softmax(-1)
    total, cut = 0.0, 0
    for at in places(stats):
        if int(plan.choices["lp_reg"][at]) != 1:
            continue
        probabilities = old[at].tolist()
        kept = [v for v, p in enumerate(probabilities) if p > tau * max(probabilities)]
        likely = sorted(kept, key=lambda v: -probabilities[v])[:support]
        cut += len(kept) > len(likely)
        mass = sum(probabilities[v] for v in likely)
        proxy = {v: probabilities[v] / mass for v in likely}
        total += 0.7 * sum(q * math.log(q / float(new[at][v])) for v, q in proxy.items())
    assert cut > 3
    assert math.isclose(terms["lp_reg"], total / int(stats.loss_mask.sum()), rel_tol=1e-9)


def test_sapos_gate_in_float64() -> None:
    stats, _, terms = planned(Objective(SinglePart(), SAPO(1.1, 1.3), {}, MEAN), random_case(14))
    total = 0.0
    for at in places(stats):
        a, r = float(stats.advantages[at]), math.exp(float(stats.logprobs[at].detach() - stats.old_logprobs[at]))
        tau = 1.1 if a > 0 else 1.3
        total -= 4 / tau / (1 + math.exp(-tau * (r - 1))) * a
    assert math.isclose(terms["surrogate"], total / int(stats.loss_mask.sum()), rel_tol=1e-12)


def test_log_ratios_are_held_at_twenty_and_k3_at_ten() -> None:
    """Far apart, the ratio of the surrogate is e^20 at most and the pull of a token 10 nats."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    logprobs = torch.tensor([[-0.5, -30.0]], dtype=torch.float64)
    far = torch.tensor([[-30.0, -0.5]], dtype=torch.float64)
    stats = TokenStats(logprobs, far, torch.ones(1, 2, dtype=torch.float64), mask, ref_logprobs=far)
    objective = Objective(SinglePart(), ClipKL(1.0, math.inf, kl_coef=1.0), {}, MEAN)
    terms = objective(stats, objective.plan(stats, Step())).terms
    assert float(terms["surrogate"]) == pytest.approx(-(math.exp(20) + math.exp(-20)) / 2, rel=1e-12)
    # d is -29.5, held at -20: e^-20 + 20 - 1, held at 10; then 29.5, held at 20 and at 10.
    assert float(terms["kl"]) == pytest.approx(10.0, rel=1e-12)


@pytest.mark.parametrize(("constraint", "most"), [(GSPO(1.0, math.inf), 10.0), (GMPO(math.inf, math.inf), 20.0)])
def test_a_responses_ratio_is_held_too(constraint: Any, most: float) -> None:
    """Far from the old policy the ratio of a response is e^10 (GSPO), that of each of its tokens e^20 (GMPO)."""
    mask = torch.tensor([[True, True, False]])
    old = torch.tensor([[-31.0, -41.0, 0.0]], dtype=torch.float64)
    stats = TokenStats(torch.full_like(old, -1.0), old, torch.ones_like(old), mask)
    objective = Objective(SinglePart(), constraint, {}, MEAN)
    assert float(objective(stats, objective.plan(stats, Step())).loss) == pytest.approx(-math.exp(most), rel=1e-12)
