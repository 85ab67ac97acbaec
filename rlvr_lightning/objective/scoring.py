"""What policy and reference say of a step's tokens, micro-batch by micro-batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.protocols import PolicyModel, StepContext, VocabStatistic
from rlvr_lightning.types import Pass, StepPlan, TokenBatch, TokenStats


class Scorer:
    """Forward passes for the objective.

    Args:
        policy: being trained.
        reference: frozen, or None where adapters are switched off instead (or nobody needs it).
        objective: says what is required.
        temperature: divides the logits.
        micro_batch_size: responses in memory at a time.
    """

    def __init__(
        self,
        policy: PolicyModel,
        reference: PolicyModel | None,
        objective: Objective,
        temperature: float,
        micro_batch_size: int,
    ) -> None:
        self.policy, self.reference, self.objective = policy, reference, objective
        self.temperature, self.micro_batch_size = temperature, micro_batch_size

    def stats(self, micro: TokenBatch) -> TokenStats:
        """The current policy's statistics with a gradient; on-policy they are the old ones too."""
        which: Pass = "on_policy" if micro.old_logprobs is None else "update"
        logprobs, statistics = self.policy(micro, self.temperature, self._required(which))
        return self._assemble(micro, logprobs, statistics)

    def plan_ahead(self, batch: TokenBatch, step: StepContext) -> StepPlan:
        """The plan of a step of several micro-batches, with a pass of its own only where a component needs one."""
        on_policy = batch.old_logprobs is None
        if self.objective.plans_on == "update" or (self.objective.plans_on == "rollout" and on_policy):
            logprobs, statistics = self._forward(
                self.policy, batch, self._required("on_policy" if on_policy else "update")
            )
        elif batch.old_logprobs is not None:
            logprobs, statistics = batch.old_logprobs, batch.old_statistics
        else:  # nobody reads them
            logprobs, statistics = torch.zeros_like(batch.rollout_logprobs), {}
        return self.objective.plan(self._assemble(batch, logprobs, statistics), step)

    def score(self, batch: TokenBatch, device: torch.device, *, on_policy: bool) -> TokenBatch:
        """Add old and reference log-probabilities [nats] where they are needed; the result stays on the CPU."""
        there = batch.map(lambda tensor: tensor.to(device))
        if not on_policy:
            old_logprobs, old_statistics = self._forward(self.policy, there, self._required("rollout"))
            there = replace(there, old_logprobs=old_logprobs, old_statistics=old_statistics)
        if self.objective.requires_ref and self.reference is not None:
            there = replace(there, ref_logprobs=self._forward(self.reference.to(device), there)[0])
        elif self.objective.requires_ref:
            with self.policy.adapters_off():
                there = replace(there, ref_logprobs=self._forward(self.policy, there)[0])
        return there.map(lambda tensor: tensor.cpu())

    def _required(self, which: Pass) -> tuple[VocabStatistic, ...]:
        return tuple(statistic for statistic in self.objective.requires if which in statistic.passes)

    @torch.no_grad()
    def _forward(
        self, policy: PolicyModel, batch: TokenBatch, statistics: tuple[VocabStatistic, ...] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        parts = [policy(micro, self.temperature, statistics) for _, micro in batch.split(self.micro_batch_size)]
        named = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
        return torch.cat([part[0] for part in parts]), named

    @staticmethod
    def _assemble(batch: TokenBatch, logprobs: Tensor, statistics: dict[str, Tensor]) -> TokenStats:
        frozen = {name: value.detach() for name, value in statistics.items()}
        on_policy = batch.old_logprobs is None
        return TokenStats(
            logprobs=logprobs,
            old_logprobs=logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs,
            advantages=batch.advantages,
            loss_mask=batch.loss_mask,
            rollout_logprobs=batch.rollout_logprobs,
            ref_logprobs=batch.ref_logprobs,
            statistics=statistics,
            old_statistics=frozen if on_policy else batch.old_statistics,
            noise=batch.noise,
            segments=batch.segments,
        )
