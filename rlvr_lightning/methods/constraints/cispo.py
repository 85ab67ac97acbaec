"""Clipped importance weights on REINFORCE (CISPO, arXiv 2506.13585).

-sg(clip(r, 1 - low, 1 + high)) A log pi:  clipping bounds the weight and never cuts off a token's gradient
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.methods.constraints.per_part import PerPart, PerPartConstraint, check_range
from rlvr_lightning.types import TokenStats, TokenTerm


class CISPO(PerPartConstraint):
    """REINFORCE weighed by a clipped ratio.

    Args:
        clip_low: the weight is at least 1 - clip_low; in [0, 1], where 1 is no lower bound (the paper's choice).
        clip_high: the weight is at most 1 + clip_high: the width above 1, not the bound itself; at least 0.

    Raises:
        ConfigError: a number is out of range, or (when bound) names other parts than the partitioner's.
    """

    within_responses = True

    per_part: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high")

    def __init__(self, clip_low: PerPart = 1.0, clip_high: PerPart = 4.0) -> None:
        check_range("CISPO", "clip_low", clip_low, 0, 1)
        check_range("CISPO", "clip_high", clip_high, 0)
        self.clip_low, self.clip_high = clip_low, clip_high

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate; `clipped` marks weights at a bound."""
        r = ratio(stats.logprobs, stats.old_logprobs).detach()
        low, high = (self.setting(name, part_ids, r) for name in self.per_part)
        weight = torch.minimum(torch.maximum(r, 1 - low), 1 + high)
        return (TokenTerm("surrogate", -weight * stats.advantages * stats.logprobs, clipped=weight != r),)
