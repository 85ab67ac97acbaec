"""A bounded gradient beyond the clip range (CE-GPPO, arXiv 2509.20712).

A < 0, r < 1 - low:   -beta_low (1 - low) (r / sg(r)) A;     A > 0, r > 1 + high:  -beta_high (1 + high) (r / sg(r)) A
otherwise -r A
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.methods.constraints.per_part import PerPart, PerPartConstraint, check_range
from rlvr_lightning.types import TokenStats, TokenTerm


class CEGPPO(PerPartConstraint):
    """What PPO cuts off keeps a gradient of fixed size.

    Args:
        clip_low: the lower edge is 1 - clip_low; in [0, 1].
        clip_high: the upper edge is 1 + clip_high; at least 0.
        beta_low: weight of what lies below, where A < 0; at least 0 (the paper: 0.5 to 0.75).
        beta_high: weight of what lies above, where A > 0; at least 0.

    Raises:
        ConfigError: a number is out of range, or (when bound) names other parts than the partitioner's.
    """

    within_responses = True

    per_part: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high", "beta_low", "beta_high")

    def __init__(
        self,
        clip_low: PerPart = 0.2,
        clip_high: PerPart = 0.28,
        beta_low: PerPart = 0.5,
        beta_high: PerPart = 1.0,
    ) -> None:
        check_range("CEGPPO", "clip_low", clip_low, 0, 1)
        for name, value in (("clip_high", clip_high), ("beta_low", beta_low), ("beta_high", beta_high)):
            check_range("CEGPPO", name, value, 0)
        self.clip_low, self.clip_high, self.beta_low, self.beta_high = clip_low, clip_high, beta_low, beta_high

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate; `clipped` marks where the gradient is the bounded one."""
        r = ratio(stats.logprobs, stats.old_logprobs)
        low, high, beta_low, beta_high = (self.setting(name, part_ids, r) for name in self.per_part)
        below = (stats.advantages < 0) & (r < 1 - low)
        above = (stats.advantages > 0) & (r > 1 + high)
        unit = r / r.detach()
        held = torch.where(below, beta_low * (1 - low) * unit, torch.where(above, beta_high * (1 + high) * unit, r))
        return (TokenTerm("surrogate", -held * stats.advantages, clipped=below | above),)
