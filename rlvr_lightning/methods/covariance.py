"""How a token's log-probability and advantage vary together over the step (arXiv 2505.22617).

Cov_t = (log pi_t - mean log pi)(A_t - mean A),  means over the tokens of the whole optimizer step
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.protocols import StepContext
from rlvr_lightning.types import TokenStats


def token_covariance(stats: TokenStats, step: StepContext) -> Float[Tensor, "B T"]:
    """Cov_t of each token under the current policy, in float64; 0 outside the mask."""
    mask = stats.loss_mask
    logprobs, advantages = (torch.where(mask, x.detach().double(), 0.0) for x in (stats.logprobs, stats.advantages))
    total, log_sum, advantage_sum = step.sum(torch.stack([mask.sum().double(), logprobs.sum(), advantages.sum()]))
    count = total.clamp(min=1)
    return torch.where(mask, (logprobs - log_sum / count) * (advantages - advantage_sum / count), 0.0)
