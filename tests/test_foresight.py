"""The gradient formed with the logits is that of a pass that foresees nothing, whatever was foreseen; and mostly it was right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import pytest
import torch
from objectives import MEAN, OBJECTIVES, identity, random_case, rows_of, stats_of
from torch import Tensor, nn

from rlvr_lightning.objective import fused
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.scoring import Scorer
from rlvr_lightning.objective.statistics import Entropy, EntropyFlow
from rlvr_lightning.objective.step import Step
from rlvr_lightning.objective.token_stats import token_stats
from rlvr_lightning.types import StepBatch, TokenBatch

V = 9
# Of a few tokens, each response in several of them.
CHUNK = 3 * V
# What cannot be foreseen while a response is half known, off-policy: nothing is tried.
WHOLE = {"gspo", "gmpo", "mis", "tis_response"}


class Logits:
    """A policy that is its last hidden states and an output layer."""

    def __init__(self, hidden: Tensor, head: nn.Linear) -> None:
        self.hidden, self.head, self.tried = hidden, head, False

    def __call__(
        self, batch: TokenBatch, temperature: float, wanted: Any = (), foresee: Any = None, tokens: Any = None
    ) -> Any:
        self.tried = foresee is not None
        old = batch.old_statistics
        return token_stats(
            self.hidden, batch.targets, batch.loss_mask, self.head, temperature, wanted, old, CHUNK, foresee, tokens
        )


def batch_of(objective: Objective, case: Any, *, on_policy: bool) -> TokenBatch:
    old = stats_of(objective, case)
    ids = torch.nn.functional.pad(case.ids, (1, 0))
    known: dict[str, Any] = {"old_logprobs": old.old_logprobs, "old_statistics": dict(old.old_statistics)}
    if on_policy:
        # Scored by nobody but the reference.
        names = {one.name for one in objective.requires if "reference" in one.passes}
        known = {"old_statistics": {name: known["old_statistics"][name] for name in names}}
    return TokenBatch(
        ids, case.mask, case.advantages, case.rollout_logprobs, case.noise, ref_logprobs=old.ref_logprobs, **known
    )


def gradients(objective: Objective, case: Any, *, on_policy: bool, foresee: bool) -> tuple[list[Tensor], bool]:
    """Of hidden states and weight, as a training step makes them; and whether anything was foreseen."""
    torch.manual_seed(0)
    head = identity(V).requires_grad_()
    hidden = case.logits.detach().clone().requires_grad_()
    policy = Logits(hidden, head)
    scorer = Scorer(cast(Any, policy), None, objective, 1.0)
    micro = batch_of(objective, case, on_policy=on_policy)
    planner = scorer.planner(StepBatch((micro,)), Step())
    stats = scorer.stats(
        micro, (), partial(planner.guess, 0) if foresee else None, 3.0, planner.tokens if foresee else None
    )
    (objective(stats, planner.plan(0, stats)).loss * 3.0).backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    return [hidden.grad, head.weight.grad], policy.tried


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens whose logits were made again, of each pass that went back."""
    counts: list[int] = []
    go_back = fused._go_back

    def counted(job: Any, *rest: Any) -> None:
        counts.append(len(job.token_ids))
        go_back(job, *rest)

    monkeypatch.setattr(fused, "_go_back", counted)
    monkeypatch.setattr(fused, "TILE_ELEMENTS", 2 * V)
    return counts


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_what_was_foreseen_changes_nothing(name: str, on_policy: bool, mended: list[int]) -> None:
    objective = OBJECTIVES[name](MEAN)
    if objective.on_policy_only and not on_policy:
        pytest.skip("on-policy alone")
    case = random_case(4, 12, on_policy=on_policy)
    plain, _ = gradients(objective, case, on_policy=on_policy, foresee=False)
    mended.clear()
    found, tried = gradients(objective, case, on_policy=on_policy, foresee=True)
    torch.testing.assert_close(found, plain, rtol=1e-11, atol=1e-14)
    assert tried == (not objective.weighs_by_step and (on_policy or not objective.per_response))
    if tried and objective.plans_on is None:
        assert mended == []


class InParts(Logits):
    """The same of several micro-batches."""

    def __init__(self, parts: dict[int, Tensor], head: nn.Linear) -> None:
        self.parts, self.head, self.tried = parts, head, False
        self.passes = 0

    def __call__(self, batch: TokenBatch, *rest: Any) -> Any:
        self.passes += 1
        self.hidden = self.parts[id(batch)]
        return super().__call__(batch, *rest)


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_several_micro_batches_are_planned_on_the_policy_their_components_read(name: str, on_policy: bool) -> None:
    """A component that reads another policy than it says, or other responses, would plan on nothing."""
    objective = OBJECTIVES[name](MEAN)
    if objective.on_policy_only and not on_policy:
        pytest.skip("on-policy alone")
    case = random_case(8, 16, on_policy=on_policy)
    (whole, _), _ = gradients(objective, case, on_policy=on_policy, foresee=False)
    parts = [rows_of(case, rows) for rows in (slice(0, 5), slice(5, 16))]
    micros = [batch_of(objective, part, on_policy=on_policy) for part in parts]
    leaves = [part.logits.detach().clone().requires_grad_() for part in parts]
    policy = InParts({id(micro): leaf for micro, leaf in zip(micros, leaves, strict=True)}, identity(V))
    scorer = Scorer(cast(Any, policy), None, objective, 1.0)
    planner = scorer.planner(StepBatch(tuple(micros)), Step())
    # The first one's own pass plans as well.
    reads = objective.plans_on == "update" or (on_policy and objective.plans_on == "rollout")
    assert policy.passes == (1 if reads and not objective.within_responses else 0)
    for place, micro in enumerate(micros):
        stats = scorer.stats(micro, (EntropyFlow(),), partial(planner.guess, place), 3.0, planner.tokens)
        (objective(stats, planner.plan(place, stats)).loss * 3.0).backward()
    torch.testing.assert_close(torch.cat([leaf.grad for leaf in leaves]), whole, rtol=1e-9, atol=1e-12)


def test_a_choice_of_few_tokens_is_made_up_for(mended: list[int]) -> None:
    case = random_case(4, 12, on_policy=True)
    gradients(OBJECTIVES["lp_reg"](MEAN), case, on_policy=True, foresee=True)
    assert 0 < sum(mended) < 0.3 * int(case.mask.sum())


def test_methods_with_one_ratio_a_response_are_known() -> None:
    assert {name for name, build in OBJECTIVES.items() if build(MEAN).per_response} == WHOLE & set(OBJECTIVES)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("what", ["rubbish", "nothing", "some", "nan"])
def test_a_wrong_guess_costs_time_alone(what: str, bias: bool, mended: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    head = nn.Linear(4, V, bias=bias, dtype=torch.float64)
    hidden = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(V, (3, 5), generator=generator)
    mask = torch.rand(3, 5, generator=generator) < 0.7
    weights = torch.randn(3, 5, generator=generator, dtype=torch.float64)

    def guess(logprobs: Tensor, named: dict[str, Tensor]) -> Sequence[Tensor | None]:
        assert set(named) == {"entropy"}
        some = torch.arange(15).view(3, 5) % 2 == 0
        right, half = weights.clone(), torch.full_like(weights, 0.5)
        return {
            "rubbish": [-weights, None],
            "nothing": [None, None],
            "some": [torch.where(some, right, 7.0), half],
            "nan": [torch.full_like(weights, torch.nan), None],
        }[what]

    def run(foresee: Any) -> list[Tensor]:
        head.zero_grad()
        leaf = hidden.clone().requires_grad_()
        logprobs, named = token_stats(leaf, ids, mask, head, 0.7, [Entropy(differentiable=True)], None, CHUNK, foresee)
        loss = (weights * logprobs).sum() + 0.5 * named["entropy"].sum()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        first = [leaf.grad.clone(), *(one.grad.clone() for one in head.parameters())]  # type: ignore[union-attr]
        loss.backward()  # type: ignore[no-untyped-call]
        both = [leaf.grad, *(one.grad for one in head.parameters())]
        torch.testing.assert_close(both, [2 * one for one in first])
        return first

    plain = run(None)
    mended.clear()
    found = run(guess)
    scored = int(mask.sum())
    some = int((mask.view(-1) & (torch.arange(15) % 2 == 1)).sum())
    # Once for what was wrong, once whole for the second backward pass.
    assert mended == [some if what == "some" else scored, scored]
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-14)
