"""No split: every token belongs to the one part `all`. With it `clip_kl` is GRPO or DAPO."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.protocols import StepContext, TokenPartitioner
from rlvr_lightning.types import TokenStats


class SinglePart(TokenPartitioner):
    """All response tokens are treated alike."""

    within_responses = True

    @property
    def parts(self) -> tuple[str, ...]:
        """`all`."""
        return ("all",)

    def __call__(self, stats: TokenStats, step: StepContext) -> Int[Tensor, "B T"]:
        """Zeros."""
        return torch.zeros_like(stats.loss_mask, dtype=torch.long)
