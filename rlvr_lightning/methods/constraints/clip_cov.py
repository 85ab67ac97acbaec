"""Tokens of high covariance taken out of the gradient (Clip-Cov, arXiv 2505.22617).

a random share of the tokens with lowest < Cov < highest get no gradient; the others PPO's clipped surrogate
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.methods.constraints.per_part import check_number
from rlvr_lightning.methods.constraints.surrogate import clipped_surrogate
from rlvr_lightning.methods.covariance import token_covariance
from rlvr_lightning.protocols import ConstraintPolicy, StepContext
from rlvr_lightning.types import TokenStats, TokenTerm, When


class ClipCov(ConstraintPolicy):
    """PPO's clipped surrogate without a few tokens whose covariance drives the entropy down.

    Args:
        share: of all tokens of the step, how many are taken out (at least one token, if there are candidates); in (0, 1).
        lowest: candidates have a covariance above this.
        highest: and below this.
        clip_low: the ratio's gradient is cut below 1 - clip_low; in [0, 1].
        clip_high: and above 1 + clip_high; at least 0.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        share: float = 2e-4,
        lowest: float = 1.0,
        highest: float = 5.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
    ) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"ClipCov.share must be in (0, 1); got {share}")
        if not lowest < highest:
            raise ConfigError(f"ClipCov.lowest must be below highest={highest}; got {lowest}")
        check_number("ClipCov", "clip_low", clip_low, 0, 1)
        check_number("ClipCov", "clip_high", clip_high, 0)
        self.share, self.lowest, self.highest, self.clip_low, self.clip_high = (
            share,
            lowest,
            highest,
            clip_low,
            clip_high,
        )

    @property
    def plans_on(self) -> When:
        """The current policy's log-probabilities."""
        return "update"

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Bool[Tensor, "B T"]:
        """The tokens taken out: those of the candidates whose random numbers are smallest."""
        assert stats.noise is not None
        covariance = token_covariance(stats, step)
        _, clipped = self._surrogate(stats)
        candidates = stats.loss_mask & ~clipped & (covariance > self.lowest) & (covariance < self.highest)
        tokens, eligible = step.sum(torch.stack([stats.loss_mask.sum(), candidates.sum()])).tolist()
        count = min(max(int(tokens * self.share), 1), int(eligible))
        return candidates & (stats.noise <= step.kth_smallest(stats.noise, candidates, count))

    def _surrogate(self, stats: TokenStats) -> tuple[Tensor, Tensor]:
        r = ratio(stats.logprobs, stats.old_logprobs)
        lowest, highest = r.new_tensor(1 - self.clip_low), r.new_tensor(1 + self.clip_high)
        return clipped_surrogate(r, stats.advantages, lowest, highest)

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate, zero where it was taken out; the denominators still count those tokens."""
        loss, clipped = self._surrogate(stats)
        return (TokenTerm("surrogate", torch.where(planned, 0.0, loss), clipped=clipped | planned),)
