"""Sequence-level ratio in its token form (GSPO, arXiv 2507.18071).

s_i = exp(mean_t log r_t),   s_i,t = sg(s_i) pi / sg(pi),   -min(s A, clip(s, 1 - low, 1 + high) A)
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.methods.constraints.per_part import check_number
from rlvr_lightning.methods.constraints.surrogate import clipped_surrogate
from rlvr_lightning.objective.responses import response_mean
from rlvr_lightning.protocols import ConstraintPolicy
from rlvr_lightning.types import TokenStats, TokenTerm

# Above this log-ratio the ratio stays where it is.
MAX_LOG_RATIO = 10.0


class GSPO(ConstraintPolicy):
    """One length-normalised ratio a response; its gradient reaches each token by that token's own log-probability.

    Args:
        clip_low: the ratio's gradient is cut below 1 - clip_low; in [0, 1].
        clip_high: and above 1 + clip_high; at least 0.

    Raises:
        ConfigError: a number is out of range.
    """

    within_responses = True

    def __init__(self, clip_low: float = 3e-4, clip_high: float = 4e-4) -> None:
        check_number("GSPO", "clip_low", clip_low, 0, 1)
        check_number("GSPO", "clip_high", clip_high, 0)
        self.clip_low, self.clip_high = clip_low, clip_high

    @property
    def per_response(self) -> bool:
        """One ratio a response."""
        return True

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate."""
        log_ratio = (stats.logprobs - stats.old_logprobs).detach()
        mean = response_mean(log_ratio, stats.loss_mask, stats.segments)
        s = (mean + stats.logprobs - stats.logprobs.detach()).clamp(max=MAX_LOG_RATIO).exp()
        lowest, highest = s.new_tensor(1 - self.clip_low), s.new_tensor(1 + self.clip_high)
        loss, clipped = clipped_surrogate(s, stats.advantages, lowest, highest)
        return (TokenTerm("surrogate", loss, clipped=clipped),)
