"""Clip ranges that depend on the token's probability (flexible entropy control, arXiv 2602.09782).

eps(p) = alpha p + beta with alpha < 0, for the new probability p: wide for rare tokens, tight for likely ones. Solved
for the ratio:  (1 - beta_low) / (1 + alpha_low p_old)  <=  r  <=  (1 + beta_high) / (1 - alpha_high p_old)
"""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.methods.constraints.surrogate import clipped_surrogate
from rlvr_lightning.protocols import ConstraintPolicy
from rlvr_lightning.types import TokenStats, TokenTerm


class FlexibleClip(ConstraintPolicy):
    """PPO's clipped surrogate between bounds that narrow as the token's old probability grows.

    The paper does not publish alpha and beta: the defaults are this project's, 0.3 and 0.4 for the rarest tokens and
    0.1 for certain ones. A controller may drive any of them, which is how the paper's entropy schedules act.

    Args:
        alpha_low: slope of the lower width; in (-1, 0].
        beta_low: lower width at probability 0; in [-alpha_low, 1].
        alpha_high: slope of the upper width; at most 0.
        beta_high: upper width at probability 0; at least -alpha_high.

    Raises:
        ConfigError: a number is out of range: beyond it the bounds would exclude the ratio 1.
    """

    within_responses = True

    def __init__(
        self, alpha_low: float = -0.2, beta_low: float = 0.3, alpha_high: float = -0.3, beta_high: float = 0.4
    ) -> None:
        if not -1 < alpha_low <= 0:
            raise ConfigError(f"FlexibleClip.alpha_low must be in (-1, 0]; got {alpha_low}")
        if not alpha_high <= 0:
            raise ConfigError(f"FlexibleClip.alpha_high must be at most 0; got {alpha_high}")
        if not -alpha_low <= beta_low <= 1:
            raise ConfigError(f"FlexibleClip.beta_low must be in [-alpha_low, 1] = [{-alpha_low}, 1]; got {beta_low}")
        if not beta_high >= -alpha_high:
            raise ConfigError(f"FlexibleClip.beta_high must be at least -alpha_high = {-alpha_high}; got {beta_high}")
        self.alpha_low, self.beta_low, self.alpha_high, self.beta_high = alpha_low, beta_low, alpha_high, beta_high

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate."""
        probs = stats.old_logprobs.exp()
        lowest = (1 - self.beta_low) / (1 + self.alpha_low * probs)
        highest = (1 + self.beta_high) / (1 - self.alpha_high * probs)
        r = ratio(stats.logprobs, stats.old_logprobs)
        loss, clipped = clipped_surrogate(r, stats.advantages, lowest, highest)
        return (TokenTerm("surrogate", loss, clipped=clipped),)
