"""A penalty on the tokens of highest covariance (KL-Cov, arXiv 2505.22617).

coef |log pi - log pi_old| on the top share of tokens by Cov; with constraint=unclipped the rest is -r A
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.covariance import token_covariance
from rlvr_lightning.protocols import Regularizer, StepContext
from rlvr_lightning.types import TokenStats, TokenTerm, When


class KLCov(Regularizer):
    """Hold the tokens of highest covariance near the policy at the start of the update.

    Args:
        share: of all tokens of the step, the int(n share) highest, at least one; in (0, 1). Equal ones are taken together.
        coef: weight of the penalty; at least 0.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(self, share: float = 2e-3, coef: float = 1.0) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"KLCov.share must be in (0, 1); got {share}")
        if coef < 0:
            raise ConfigError(f"KLCov.coef must be at least 0; got {coef}")
        self.share, self.coef = share, coef

    @property
    def plans_on(self) -> When:
        """The current policy's log-probabilities."""
        return "update"

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Bool[Tensor, "B T"]:
        """The tokens of highest covariance."""
        covariance = token_covariance(stats, step)
        tokens = int(step.sum(stats.loss_mask.sum()))
        count = min(max(int(tokens * self.share), 1), tokens)
        return stats.loss_mask & (-covariance <= step.kth_smallest(-covariance, stats.loss_mask, count))

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The penalty."""
        gap = (stats.logprobs - stats.old_logprobs).abs()
        return (TokenTerm("kl_cov", torch.where(planned, self.coef * gap, 0.0)),)
