"""Forces on the chosen tokens: against autograd through the logits, and against pi - proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from objectives import MEAN, OBJECTIVES, identity, random_case
from test_foresight import Logits, V, batch_of
from torch import Tensor
from training import fit

from rlvr_lightning.callbacks.outputs import read_series
from rlvr_lightning.methods.aggregators import TokenMean
from rlvr_lightning.methods.constraints.capped_ratio import CappedRatio
from rlvr_lightning.methods.partitioners.single import SinglePart
from rlvr_lightning.methods.regularizers.lp_reg import LpReg
from rlvr_lightning.objective.forces import Force
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.scoring import Scorer
from rlvr_lightning.objective.step import Step
from rlvr_lightning.protocols import TokenPartitioner
from rlvr_lightning.types import StepBatch, StepPlan, TokenStats


def measured(
    objective: Objective, case: Any, *, on_policy: bool, temperature: float = 1.0
) -> tuple[dict[str, Force], TokenStats, StepPlan]:
    """What is reported of a case, with the statistics and the plan it was made of."""
    micro = batch_of(objective, case, on_policy=on_policy)
    policy = Logits(case.logits.detach().clone().requires_grad_(), identity(V))
    scorer = Scorer(cast(Any, policy), None, objective, temperature)
    planner = scorer.planner(StepBatch((micro,)), Step())
    stats = scorer.stats(micro)
    plan = planner.plan(0, stats)
    return scorer.forces(micro, stats, plan), stats, plan


def by_autograd(
    objective: Objective, case: Any, stats: TokenStats, plan: StepPlan, *, on_policy: bool
) -> dict[str, Tensor]:
    """The gradient of every term with respect to the logits."""
    logits = case.logits.detach().clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    mask, old = case.mask, {} if on_policy else dict(stats.old_statistics)
    made: dict[str, Tensor] = {}
    for statistic in objective.requires:
        if ("on_policy" if on_policy else "update") in statistic.passes:
            flat = statistic(logprobs[mask], case.ids[mask], {name: value[mask] for name, value in old.items()})
            made[statistic.name] = torch.zeros(*mask.shape, *flat.shape[1:], dtype=flat.dtype).index_put((mask,), flat)
    sampled = logprobs.gather(-1, case.ids.unsqueeze(-1)).squeeze(-1)
    whole = TokenStats(
        torch.where(mask, sampled, 0.0), stats.old_logprobs, stats.advantages, mask, stats.rollout_logprobs, stats.ref_logprobs,
        made, stats.old_statistics, stats.noise, stats.segments,
    )  # fmt: skip
    parts = objective.parts(whole, plan)
    found = {}
    for name, part in parts.items():
        (found[name],) = torch.autograd.grad(part, logits, retain_graph=True, allow_unused=True)
    return found


CHOOSING = ("lp_reg", "lp_reg, absolute", "lp_reg, reference", "kl_cov")


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", CHOOSING)
def test_forces_are_the_gradients_at_the_logits(name: str, on_policy: bool) -> None:
    objective, case = OBJECTIVES[name](MEAN), random_case(4, 60, on_policy=on_policy)
    found, stats, plan = measured(objective, case, on_policy=on_policy)
    regularizer = name.partition(",")[0]
    expected = by_autograd(objective, case, stats, plan, on_policy=on_policy)
    surrogate = sum(value for term, value in expected.items() if term == "surrogate" or term.endswith("/surrogate"))
    assert isinstance(surrogate, Tensor)
    chosen = plan.masks[regularizer]
    assert set(found) == {regularizer}
    assert 0 < int(chosen.sum()) < int(case.mask.sum())
    for force, gradient in (
        (found[regularizer].surrogate, surrogate),
        (found[regularizer].term, expected[regularizer]),
    ):
        rows = gradient[chosen]
        at_sampled = rows.gather(-1, case.ids[chosen].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(force, torch.stack([rows.norm(dim=-1), at_sampled], -1), rtol=1e-9, atol=1e-12)
    assert float(found[regularizer].surrogate[:, 0].max()) > 0


def test_on_policy_the_papers_penalty_pulls_with_pi_minus_proxy() -> None:
    coef, kappa = 0.7, 0.3
    objective = Objective(
        cast(TokenPartitioner, SinglePart()), CappedRatio(1.2), {"lp_reg": LpReg(0.6, kappa, coef=coef)}, TokenMean()
    )
    case = random_case(1, 12, on_policy=True)
    found, _, plan = measured(objective, case, on_policy=True)
    sparks, tokens = plan.masks["lp_reg"], int(case.mask.sum())
    probs = case.logits.detach().softmax(-1)[sparks]
    kept = probs > kappa * probs.amax(-1, keepdim=True)
    proxy = torch.where(kept, probs, 0.0)
    pull = coef / tokens * (probs - proxy / proxy.sum(-1, keepdim=True))
    at_sampled = pull.gather(-1, case.ids[sparks].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(
        found["lp_reg"].term, torch.stack([pull.norm(dim=-1), at_sampled], -1), rtol=1e-9, atol=1e-15
    )
    # At a kept token: -pi times the dropped mass over the kept one.
    mass = proxy.sum(-1)
    own = probs.gather(-1, case.ids[sparks].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(at_sampled, -coef / tokens * own * (1 - mass) / mass, rtol=1e-9, atol=1e-15)
    # The policy gradient of a sampled token with advantage A: -A (1 - pi) at its own logit.
    advantages = case.advantages[sparks]
    torch.testing.assert_close(found["lp_reg"].surrogate[:, 1], -advantages / tokens * (1 - own), rtol=1e-9, atol=1e-15)


def test_without_a_choice_there_is_nothing_to_measure() -> None:
    case = random_case(1, 12, on_policy=True)
    assert measured(OBJECTIVES["grpo"](MEAN), case, on_policy=True)[0] == {}


def test_a_run_logs_them_when_asked_and_learns_the_same(tmp_path: Path) -> None:
    common = ("conf=lp_reg", "regularizer.lp_reg.quantile=0.2", "trainer.max_epochs=4", "rollout.prompts_per_step=2")
    common += ("rollout.prompts_per_epoch=4", "trainer.micro_batch_size=8")
    runs = {
        name: fit(tmp_path / name, *common, *more)
        for name, more in {"plain": (), "forces": ("trainer.forces_every_n_steps=3",)}.items()
    }
    series = {name: read_series(tmp_path / name) for name in runs}
    assert not [name for name in series["plain"] if "force" in name]
    measured_at = [step for step, _ in series["forces"]["policy/force/lp_reg"]]
    # Steps 0, 3 and 6, in epochs of two.
    assert measured_at == [2, 4, 8]
    for (_, ratio), (_, term), (_, whole) in zip(
        *(series["forces"][f"policy/force/lp_reg{of}"] for of in ("", "/term", "/surrogate")), strict=True
    ):
        assert ratio == pytest.approx(term / whole, rel=1e-5)
        assert 0 < ratio < 1
    for one, other in zip(*(run.module.policy.parameters() for run in runs.values()), strict=True):
        assert torch.equal(one, other)
