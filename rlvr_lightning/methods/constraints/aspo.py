"""Inverted ratios for positive advantages (ASPO, arXiv 2510.06062).

A > 0: -min(1 / sg(r), dual_clip) (r / sg(r)) A;   otherwise PPO's clipped surrogate
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.methods.constraints.per_part import PerPart, PerPartConstraint, check_range
from rlvr_lightning.methods.constraints.surrogate import clipped_surrogate
from rlvr_lightning.types import TokenStats, TokenTerm


class ASPO(PerPartConstraint):
    """A right answer's tokens weigh more the less probable they have become.

    Args:
        clip_low: for A <= 0 the ratio's gradient is cut below 1 - clip_low; in [0, 1].
        clip_high: for A > 0 a token whose ratio is above 1 + clip_high gets no gradient, as in PPO; at least 0, and inf
            for no such cut.
        dual_clip: most weight of an inverted ratio, and for A < 0 the loss is at most -dual_clip A; above 1. The
            inverted ratio's bound is soft: the weight is held, the gradient flows on.

    Raises:
        ConfigError: a number is out of range, or (when bound) names other parts than the partitioner's.
    """

    within_responses = True

    per_part: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high")

    def __init__(self, clip_low: PerPart = 0.2, clip_high: PerPart = 0.2, dual_clip: float = 3.0) -> None:
        check_range("ASPO", "clip_low", clip_low, 0, 1)
        check_range("ASPO", "clip_high", clip_high, 0)
        if not dual_clip > 1:
            raise ConfigError(f"ASPO.dual_clip must be above 1; got {dual_clip}")
        self.clip_low, self.clip_high, self.dual_clip = clip_low, clip_high, dual_clip

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate."""
        r = ratio(stats.logprobs, stats.old_logprobs)
        low, high = (self.setting(name, part_ids, r) for name in self.per_part)
        loss, clipped = clipped_surrogate(r, stats.advantages, 1 - low, 1 + high, self.dual_clip)
        fixed = r.detach()
        inverted = -(1 / fixed).clamp(max=self.dual_clip) * (r / fixed) * stats.advantages
        # A cut token keeps its weight in the value; only its gradient is gone.
        inverted = torch.where(clipped, inverted.detach(), inverted)
        return (TokenTerm("surrogate", torch.where(stats.advantages > 0, inverted, loss), clipped=clipped),)
