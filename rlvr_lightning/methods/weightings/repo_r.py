"""Rare right tokens weigh more, rare wrong ones less (REPO-R, arXiv 2603.11682, appendix D.2).

max(1 - sign(A) zeta log p, 0)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.protocols import Weighting
from rlvr_lightning.types import TokenStats


class RepoR(Weighting):
    """The paper rescales the advantage; a surrogate of a rescaled advantage is the rescaled surrogate.

    Args:
        zeta: strength, per nat of the current policy's log-probability; finite. Above 0 it is to raise the entropy, below
            0 to lower it. `controller=halving_doubling` adapts it.

    Raises:
        ConfigError: it is not finite.
    """

    within_responses = True

    def __init__(self, zeta: float = 1e-3) -> None:
        if not math.isfinite(zeta):
            raise ConfigError(f"RepoR.zeta must be finite; got {zeta}")
        self.zeta = zeta

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> Float[Tensor, "B T"]:
        """The factor; an advantage never changes its sign."""
        return (1 - torch.sign(stats.advantages) * self.zeta * stats.logprobs.detach()).clamp(min=0)
