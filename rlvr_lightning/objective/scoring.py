"""What policy and reference say of a step's tokens, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rlvr_lightning.objective.forces import Force, forces
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.planning import EachItsOwn, OfTheStep, Planner
from rlvr_lightning.objective.statistics import merge_statistics
from rlvr_lightning.protocols import PolicyModel, StepContext, VocabStatistic
from rlvr_lightning.types import Pass, StepBatch, StepPlan, TokenBatch, TokenStats

Guess = Callable[[TokenStats], StepPlan]


class Scorer:
    """Forward passes for the objective.

    Args:
        policy: being trained.
        reference: frozen, or None where adapters are switched off instead (or nobody needs it).
        objective: says what is required.
        temperature: divides the logits.
    """

    def __init__(
        self,
        policy: PolicyModel,
        reference: PolicyModel | None,
        objective: Objective,
        temperature: float,
    ) -> None:
        self.policy, self.reference, self.objective, self.temperature = policy, reference, objective, temperature

    def stats(
        self,
        micro: TokenBatch,
        logged: tuple[VocabStatistic, ...] = (),
        guess: Guess | None = None,
        scale: float = 1.0,
        step_tokens: int | None = None,
    ) -> TokenStats:
        """The current policy's statistics with a gradient; on-policy they are the old ones too.

        Args:
            micro: whose tokens they are of.
            logged: what only the logs want.
            guess: makes a plan of what is known so far, from which the loss's gradient is foreseen; None: nothing is.
            scale: of the loss that is gone back from.
            step_tokens: of the whole step; None: every statistic is made of all tokens.
        """
        which: Pass = "on_policy" if micro.old_logprobs is None else "update"
        wanted = merge_statistics((*self._required(which), *logged))
        foresee = None
        known = not (self.objective.weighs_by_step or (self.objective.per_response and which == "update"))
        if guess is not None and known:
            foresee = partial(self._foresee, micro, wanted, guess, scale)
        tokens = step_tokens if which == "on_policy" else None
        return self._assemble(micro, *self.policy(micro, self.temperature, wanted, foresee, tokens))

    def forces(self, micro: TokenBatch, stats: TokenStats, plan: StepPlan) -> dict[str, Force]:
        """What regularizers and policy gradient do to the tokens the former have chosen. Every rank must call it."""
        which: Pass = "on_policy" if micro.old_logprobs is None else "update"
        return forces(self.objective, self.policy, micro, stats, plan, self.temperature, self._required(which))

    def planner(self, batch: StepBatch, step: StepContext) -> Planner:
        """What plans the micro-batches, with passes of their own only where a component needs them. Every rank must call it."""
        known = self.objective.count([(micro.loss_mask, micro.segments) for micro in batch.micros], step)
        if self.objective.within_responses:
            return EachItsOwn(self.objective, known)
        others, tokens = batch.micros[1:], int(known.tokens)
        if others and self.objective.plans_on == "rollout":
            self._accompany(others, step)
        return OfTheStep(self.objective, known, [self._before(micro, tokens) for micro in others], step)

    def _foresee(
        self,
        micro: TokenBatch,
        wanted: Sequence[VocabStatistic],
        guess: Guess,
        scale: float,
        logprobs: Tensor,
        statistics: dict[str, Tensor],
    ) -> list[Tensor | None]:
        """The loss's gradient with respect to log-probabilities and statistics, if those were all."""
        with torch.enable_grad():
            leaf = logprobs.detach().clone().requires_grad_()
            named = {one.name: statistics[one.name].detach().clone() for one in wanted}
            carrying = [named[one.name].requires_grad_() for one in wanted if one.differentiable]
            stats = self._assemble(micro, leaf, named)
            loss = self.objective(stats, guess(stats)).loss * scale
            first, *others = torch.autograd.grad(loss, (leaf, *carrying), allow_unused=True)
        found = iter(others)
        return [first, *(next(found) if one.differentiable else None for one in wanted)]

    def score(self, micro: TokenBatch, device: torch.device, *, on_policy: bool) -> TokenBatch:
        """Add old and reference log-probabilities [nats] where they are needed; the result stays on the CPU."""
        there = micro.map(lambda tensor: tensor.to(device))
        if not on_policy:
            logprobs, old_statistics = self._forward(self.policy, there, self._required("rollout"))
            # Those of a response that an earlier policy drew are known from the engine alone.
            old_logprobs = logprobs if there.old_logprobs is None else there.old_logprobs
            there = replace(there, old_logprobs=old_logprobs, old_statistics=old_statistics)
        if self.objective.requires_ref and self.reference is not None:
            there = self._refer(self.reference.to(device), there)
        elif self.objective.requires_ref:
            with self.policy.adapters_off():
                there = self._refer(self.policy, there)
        return there.map(lambda tensor: tensor.cpu())

    def _refer(self, reference: PolicyModel, batch: TokenBatch) -> TokenBatch:
        """With what the reference says."""
        logprobs, statistics = self._forward(reference, batch, self._required("reference"))
        return replace(batch, ref_logprobs=logprobs, old_statistics={**batch.old_statistics, **statistics})

    def _accompany(self, micros: Sequence[TokenBatch], step: StepContext) -> None:
        """Pass through a micro-batch that another rank must pass through before the plan.

        One without rows was never scored, so that nothing is known of it without a pass; and under FSDP2 a pass gathers
        weights from every rank.
        """
        unknown = torch.tensor([micro.old_logprobs is None for micro in micros]).to(micros[0].input_ids.device)
        anywhere = step.sum(unknown.long()) > 0
        for micro, elsewhere in zip(micros, (anywhere & ~unknown).tolist(), strict=True):
            if elsewhere:
                self._forward(self.policy, micro)

    def _before(self, micro: TokenBatch, tokens: int) -> TokenStats:
        """What is known of a micro-batch before its own pass."""
        on_policy = micro.old_logprobs is None
        if self.objective.plans_on == "update" or (self.objective.plans_on == "rollout" and on_policy):
            wanted = self._required("on_policy" if on_policy else "update")
            logprobs, statistics = self._forward(self.policy, micro, wanted, tokens if on_policy else None)
        elif micro.old_logprobs is not None:
            logprobs, statistics = micro.old_logprobs, micro.old_statistics
        else:  # nobody reads them
            logprobs, statistics = torch.zeros_like(micro.rollout_logprobs), {}
        return self._assemble(micro, logprobs, statistics)

    def _required(self, which: Pass) -> tuple[VocabStatistic, ...]:
        return tuple(statistic for statistic in self.objective.requires if which in statistic.passes)

    @torch.no_grad()
    def _forward(
        self,
        policy: PolicyModel,
        batch: TokenBatch,
        statistics: tuple[VocabStatistic, ...] = (),
        step_tokens: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return policy(batch, self.temperature, statistics, None, step_tokens)

    def _assemble(self, batch: TokenBatch, logprobs: Tensor, statistics: dict[str, Tensor]) -> TokenStats:
        reference = batch.ref_logprobs
        if reference is None and self.objective.requires_ref and not batch.loss_mask.any():
            # A micro-batch without rows was never scored.
            reference = torch.zeros_like(logprobs)
            unscored = {one.name: reference for one in self._required("reference")}
            batch = replace(batch, old_statistics={**unscored, **batch.old_statistics})
        frozen = {name: value.detach() for name, value in statistics.items()}
        on_policy = batch.old_logprobs is None
        return TokenStats(
            logprobs=logprobs,
            old_logprobs=logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs,
            advantages=batch.advantages,
            loss_mask=batch.loss_mask,
            rollout_logprobs=batch.rollout_logprobs,
            ref_logprobs=reference,
            statistics=statistics,
            old_statistics={**batch.old_statistics, **frozen} if on_policy else batch.old_statistics,
            noise=batch.noise,
            segments=batch.segments,
        )
