"""Tokens chosen by chance: the control every claim about choosing tokens needs."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.protocols import StepContext, TokenPartitioner
from rlvr_lightning.types import TokenStats


class RandomShare(TokenPartitioner):
    """Each token is `reasoning` by chance, whatever it says: the parts' names are those of what it stands in for.

    A token's random number comes from the run's seed, its prompt and its sample: it stays in its part in every pass.

    Args:
        share: the chance of being reasoning; in (0, 1).

    Raises:
        ConfigError: the share is out of range.
    """

    within_responses = True

    def __init__(self, share: float = 0.2) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"RandomShare.share must be in (0, 1); got {share}")
        self.share = share

    @property
    def parts(self) -> tuple[str, ...]:
        """`knowledge` (0) and `reasoning` (1)."""
        return ("knowledge", "reasoning")

    def __call__(self, stats: TokenStats, step: StepContext) -> Int[Tensor, "B T"]:
        """1 with the given chance."""
        assert stats.noise is not None
        return ((stats.noise < self.share) & stats.loss_mask).to(torch.long)
