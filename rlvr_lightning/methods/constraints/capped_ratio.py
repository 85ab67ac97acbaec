"""The surrogate Lp-Reg is added to (arXiv 2510.03222): importance ratios capped from above, without a lower clip.

paper: -clip(r, 0, U) A;    reference code: max(-r A, -clip(r, 0, U) A)
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.protocols import ConstraintPolicy
from rlvr_lightning.types import TokenStats, TokenTerm


class CappedRatio(ConstraintPolicy):
    """Surrogate whose ratio is at most `max_ratio`.

    Args:
        max_ratio: U; above 1.
        variant: `paper` caps whatever the advantage's sign; `reference` (the published code) takes the larger loss, so
            that a negative advantage is not capped.

    Raises:
        ConfigError: a setting is out of range.
    """

    within_responses = True

    def __init__(self, max_ratio: float = 10.0, variant: Literal["paper", "reference"] = "paper") -> None:
        if not max_ratio > 1:
            raise ConfigError(f"CappedRatio.max_ratio must be above 1; got {max_ratio}")
        if variant not in ("paper", "reference"):
            raise ConfigError(f"CappedRatio.variant must be paper or reference; got {variant!r}")
        self.max_ratio, self.variant = max_ratio, variant

    def __call__(
        self,
        stats: TokenStats,
        part_ids: Int[Tensor, "B T"],
        planned: Tensor,
    ) -> tuple[TokenTerm, ...]:
        """The surrogate."""
        r = ratio(stats.logprobs, stats.old_logprobs)
        free, capped = -r * stats.advantages, -r.clamp(max=self.max_ratio) * stats.advantages
        if self.variant == "paper":
            return (TokenTerm("surrogate", capped, clipped=r > self.max_ratio),)
        return (TokenTerm("surrogate", torch.maximum(free, capped), clipped=capped > free),)
