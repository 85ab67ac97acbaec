"""Geometric-mean ratio (GMPO, arXiv 2507.20673).

-A exp(mean_t clip(log r_t)),  log r_t clipped to at most high where A > 0, to at least -low where A < 0
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.methods.constraints.kl import MAX_LOG_RATIO
from rlvr_lightning.methods.constraints.per_part import check_number
from rlvr_lightning.objective.responses import response_mean
from rlvr_lightning.protocols import ConstraintPolicy
from rlvr_lightning.types import TokenStats, TokenTerm


class GMPO(ConstraintPolicy):
    """The geometric mean of a response's token ratios, each clipped on the side that would push further.

    Args:
        clip_low: of the log-ratio, downwards; at least 0.
        clip_high: of the log-ratio, upwards; at least 0.

    Raises:
        ConfigError: a number is out of range.
    """

    within_responses = True

    def __init__(self, clip_low: float = 0.4, clip_high: float = 0.4) -> None:
        check_number("GMPO", "clip_low", clip_low, 0)
        check_number("GMPO", "clip_high", clip_high, 0)
        self.clip_low, self.clip_high = clip_low, clip_high

    @property
    def per_response(self) -> bool:
        """One ratio a response."""
        return True

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate, the same at each token of a response."""
        log_ratio = (stats.logprobs - stats.old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        positive = stats.advantages > 0
        held = torch.where(positive, log_ratio.clamp(max=self.clip_high), log_ratio.clamp(min=-self.clip_low))
        mean = response_mean(held, stats.loss_mask, stats.segments)
        # A masked token of the response has its mean too: rubbish there would reach the gradient of the others.
        advantages = torch.where(stats.loss_mask, stats.advantages, 0.0)
        return (TokenTerm("surrogate", -advantages * mean.exp(), clipped=held != log_ratio),)
