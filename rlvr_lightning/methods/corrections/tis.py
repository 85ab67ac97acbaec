"""Truncated importance sampling between trainer and engine (TIS, Yao et al. 2025): w = min(pi_old / pi_infer, most)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.corrections.levels import Level, check_level, mismatch_ratio
from rlvr_lightning.types import TokenStats


class TIS:
    """Weigh each token by how much more probable the trainer finds it than the engine did, up to a bound.

    Args:
        most: the bound; at least 1.
        level: of the ratio: each token's own, its response's product (`sequence`), or that one's geometric mean.

    Raises:
        ConfigError: the bound is below 1, or there is no such level.
    """

    def __init__(self, most: float = 2.0, level: Level = "token") -> None:
        if not most >= 1:
            raise ConfigError(f"TIS.most must be at least 1; got {most}")
        check_level(level, "TIS")
        self.most, self.level = most, level

    @property
    def per_response(self) -> bool:
        """Whether all tokens of a response weigh the same."""
        return self.level != "token"

    def __call__(self, stats: TokenStats) -> Float[Tensor, "B T"]:
        """min(pi_old / pi_infer, most)."""
        return mismatch_ratio(stats, self.level).clamp(max=self.most)
