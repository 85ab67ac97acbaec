"""The objective as a whole: Archer by hand, what replaces what, what is asked for, and what sees the whole step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives import AGGREGATORS, COEF, HIGH, LOW, OBJECTIVES, PARTS, loss_of, random_case, rows_of, stats_of

from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.constraints.clip_kl import ClipKL
from rlvr_lightning.methods.constraints.only_part import OnlyPart
from rlvr_lightning.methods.constraints.opefo import OPEFO
from rlvr_lightning.methods.corrections.tis import TIS
from rlvr_lightning.methods.partitioners.entropy_quantile import EntropyQuantile
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.partitioners.top_entropy import TopEntropy
from rlvr_lightning.methods.regularizers.kl_cov import KLCov
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.planning import Alone
from rlvr_lightning.objective.responses import response_places
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import ConstraintPolicy
from rlvr_lightning.types import TokenTerm

MEAN = AGGREGATORS["sequence_mean_token_mean"]


def quantile_by_hand(values: list[float], q: float) -> float:
    ordered, position = sorted(values), q * (len(values) - 1)
    below = math.floor(position)
    return ordered[below] + (position - below) * (ordered[min(below + 1, len(values) - 1)] - ordered[below])


def test_archer_paper_by_hand() -> None:
    case = random_case(1)
    stats = stats_of(OBJECTIVES["archer"](MEAN), case)
    loss = loss_of(OBJECTIVES["archer"](MEAN), case, [slice(0, 16)], Step())
    total = 0.0
    assert stats.ref_logprobs is not None
    for row in range(16):
        tokens = [t for t in range(6) if case.mask[row, t]]
        threshold = quantile_by_hand([float(stats.old_statistics["entropy"][row, t]) for t in tokens], 0.7)
        summed = 0.0
        for t in tokens:
            part = PARTS[float(stats.old_statistics["entropy"][row, t]) >= threshold - 1e-15]
            a, new = float(stats.advantages[row, t]), float(stats.logprobs[row, t].detach())
            r = math.exp(new - float(stats.old_logprobs[row, t]))
            surrogate = -min(r * a, min(max(r, 1 - LOW[part]), 1 + HIGH[part]) * a)
            surrogate = min(surrogate, -3.0 * a) if a < 0 else surrogate
            d = float(stats.ref_logprobs[row, t]) - new
            summed += surrogate + COEF[part] * min(math.exp(d) - d - 1, 10.0)
        total += summed / len(tokens)
    assert math.isclose(float(loss.detach()), total / 16, rel_tol=1e-12)


def test_regularized_tokens_leave_the_surrogate_in_the_reference_form() -> None:
    case = random_case(4)
    objective = OBJECTIVES["lp_reg, reference"](AGGREGATORS["token_mean"])
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    sparks = plan.choices["lp_reg"] == 1
    assert 0 < int(sparks.sum()) < int(case.mask.sum())
    terms = objective(stats, plan).terms
    unclipped = -(stats.logprobs - stats.old_logprobs).detach().exp() * case.advantages
    total = unclipped[sparks].sum() / case.mask.sum()
    assert math.isclose(float(terms["lp_reg/surrogate"]), float(total), rel_tol=1e-12)


def test_a_replaced_surrogate_counts_over_the_part_that_learns() -> None:
    """80/20 with Lp-Reg's reference form: a spark outside the kept tokens stays outside."""
    case, mean = random_case(4), AGGREGATORS["token_mean"]
    regularizer = LpReg(0.8, 0.05, variant="reference")
    constraint = OnlyPart("reasoning", ClipKL(1.0, float("inf")))
    objective = Objective(TopEntropy(0.6), constraint, {"lp_reg": regularizer}, mean)
    stats = stats_of(objective, case)
    plan = objective.plan(stats, Step())
    kept, sparks = plan.masks["reasoning"], plan.choices["lp_reg"] == 1
    assert int((sparks & kept).sum()) > 1
    assert int((sparks & ~kept).sum()) > 1
    terms = objective(stats, plan).terms
    values = -(stats.logprobs - stats.old_logprobs).detach().exp() * case.advantages
    for name, tokens in (("surrogate", kept & ~sparks), ("lp_reg/surrogate", kept & sparks)):
        assert math.isclose(float(terms[name]), float(values[tokens].sum() / kept.sum()), rel_tol=1e-12)


def test_a_correction_weighs_the_surrogate_of_replaced_tokens_too() -> None:
    case = random_case(4)
    regularizer = LpReg(0.6, 0.1, variant="reference")
    with_weights = Objective(SinglePart(), ClipKL(), {"lp_reg": regularizer}, MEAN, TIS(1.0))
    halved = random_case(4).rollout_logprobs * 0 + stats_of(with_weights, case).old_logprobs + math.log(2)
    plain = Objective(SinglePart(), ClipKL(), {"lp_reg": regularizer}, MEAN)
    outputs = []
    for objective in (plain, with_weights):
        stats = stats_of(objective, case)
        stats = stats.__class__(**{**stats.__dict__, "rollout_logprobs": halved})
        outputs.append(objective(stats, objective.plan(stats, Step())).terms)
    for name in ("surrogate", "lp_reg/surrogate"):
        assert float(outputs[1][name]) == pytest.approx(float(outputs[0][name]) / 2, rel=1e-12)
    assert float(outputs[1]["lp_reg"]) == pytest.approx(float(outputs[0]["lp_reg"]), rel=1e-12)


def test_two_of_a_kind_are_two_terms() -> None:
    case, mean = random_case(4), AGGREGATORS["token_mean"]
    kinds = {"one": LpReg(0.6, 0.02), "two": LpReg(0.4, 0.01, coef=0.3)}

    def terms(**chosen: LpReg) -> dict[str, torch.Tensor]:
        objective = Objective(SinglePart(), CappedRatio(), chosen, mean)
        stats = stats_of(objective, case)
        return objective(stats, objective.plan(stats, Step())).terms

    together = terms(**kinds)
    assert list(together) == ["surrogate", "one", "two"]
    for name, regularizer in kinds.items():
        alone = float(terms(**{name: regularizer})[name])
        assert alone > 1e-4
        assert float(together[name]) == alone


def test_only_what_is_required_is_asked_for() -> None:
    grpo, dapo = OBJECTIVES["grpo"](MEAN), OBJECTIVES["dapo"](MEAN)
    assert [s.name for s in grpo.requires] == ["entropy"]
    assert grpo.requires_ref
    assert not dapo.requires_ref
    assert dapo.plans_on is None
    assert OBJECTIVES["archer"](MEAN).plans_on == "rollout"
    assert OBJECTIVES["archer, reference"](MEAN).plans_on == "update"
    names = [s.name.partition("(")[0] for s in OBJECTIVES["archer + lp_reg"](MEAN).requires]
    proxies = ["proxy_logprobs", "proxy_kl", "proxy_support"]
    assert names == ["entropy", *proxies]
    assert {name for name, build in OBJECTIVES.items() if build(MEAN).weighs_by_step} >= {"opefo", "steer"}
    assert not OBJECTIVES["archer + lp_reg"](MEAN).weighs_by_step
    assert OnlyPart("all", OPEFO()).weighs_by_step


def test_a_choice_within_responses_is_that_of_the_whole_step() -> None:
    within = {name: build(MEAN) for name, build in OBJECTIVES.items() if build(MEAN).within_responses}
    tokens = {"archer", "grpo", "dapo", "cispo", "sapo", "entropy_bonus", "aspo", "ce_gppo", "flexible_clip", "tis"}
    assert set(within) == {*tokens, "gspo", "gmpo", "dppo", "dppo, kl", "repo_r", "erc"}
    for name, objective in within.items():
        case = random_case(5, rows=6)
        stats = stats_of(objective, case)
        whole = objective.plan(stats, Step())
        parts = [stats_of(objective, rows_of(case, rows)) for rows in (slice(0, 2), slice(2, 6))]
        known = objective.count([(part.loss_mask, part.segments) for part in parts], Step())
        assert (known.tokens, known.rows) == (whole.counts["response"].tokens, whole.counts["response"].rows)
        plans = [objective.plan(part, Alone(), known) for part in parts]
        for mask in whole.masks:
            assert torch.equal(torch.cat([plan.masks[mask] for plan in plans]), whole.masks[mask]), (name, mask)


def test_a_component_of_ones_own_sees_the_whole_step_unless_it_says_otherwise() -> None:
    class Own(ConstraintPolicy):
        def __call__(self, stats: Any, part_ids: Any, planned: Any) -> tuple[TokenTerm, ...]:
            return (TokenTerm("surrogate", -stats.logprobs * stats.advantages, over="reasoning"),)

    assert not Objective(EntropyQuantile(), Own(), {}, MEAN).within_responses
    assert not Objective(EntropyQuantile(), ClipKL(), {"kl_cov": KLCov()}, MEAN).within_responses
    assert Objective(EntropyQuantile(), ClipKL(), {}, MEAN).within_responses


def test_who_asks_for_the_whole_step_has_said_so() -> None:
    class Forgetful(EntropyQuantile):
        within_responses = True

    objective = Objective(Forgetful(scope="batch"), ClipKL(), {}, MEAN)
    stats = stats_of(objective, random_case(5, rows=4))
    known = objective.count([(stats.loss_mask, None)], Step())
    with pytest.raises(AssertionError, match="within_responses asks for the whole step"):
        objective.plan(stats, Alone(), known)


def test_places_of_tokens_are_those_within_their_response() -> None:
    mask = torch.tensor([[True, False, True, True, False, True, True]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 2]])
    assert (response_places(mask, segments) * mask).tolist() == [[1, 0, 2, 1, 0, 2, 1]]
    assert (response_places(mask, None) * mask).tolist() == [[1, 0, 2, 3, 0, 4, 5]]
