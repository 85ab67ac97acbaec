"""Truncated importance sampling between trainer and engine (TIS, Yao et al. 2025): w = min(pi_old / pi_infer, most)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.types import TokenStats


class TIS:
    """Weigh each token by how much more probable the trainer finds it than the engine did, up to a bound.

    Args:
        most: the bound; at least 1.

    Raises:
        ConfigError: the bound is below 1.
    """

    def __init__(self, most: float = 2.0) -> None:
        if not most >= 1:
            raise ConfigError(f"TIS.most must be at least 1; got {most}")
        self.most = most

    def __call__(self, stats: TokenStats) -> Float[Tensor, "B T"]:
        """min(pi_old / pi_infer, most)."""
        assert stats.rollout_logprobs is not None
        return ratio(stats.old_logprobs, stats.rollout_logprobs).clamp(max=self.most)
