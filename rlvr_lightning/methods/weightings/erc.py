"""Tokens whose entropy has moved too far are taken out (entropy ratio clipping, ERC, arXiv 2512.05591).

1 where 1 - clip_low < (H + e) / (H_old + e) < 1 + clip_high,  e = 1e-8;   otherwise 0
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.statistics import Entropy
from rlvr_lightning.protocols import VocabStatistic, Weighting
from rlvr_lightning.types import TokenStats

# Two distributions without entropy have the ratio 1.
TINY = 1e-8


class ERC(Weighting):
    """A second clip beside the ratio's: of the whole distribution, by the entropy at a position.

    Args:
        clip_low: a token has no gradient where the entropy is at 1 - clip_low of the rollout's, or below; in (0, 1].
        clip_high: or at 1 + clip_high, or above; above 0.

    Raises:
        ConfigError: a setting is out of range.
    """

    within_responses = True

    def __init__(self, clip_low: float = 0.05, clip_high: float = 0.05) -> None:
        if not 0 < clip_low <= 1:
            raise ConfigError(f"ERC.clip_low must be in (0, 1]; got {clip_low}")
        if not clip_high > 0:
            raise ConfigError(f"ERC.clip_high must be above 0; got {clip_high}")
        self.clip_low, self.clip_high = clip_low, clip_high

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The entropy, without gradient."""
        return (Entropy(),)

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> Float[Tensor, "B T"]:
        """0 at what is taken out."""
        moved = (stats.statistics["entropy"].detach() + TINY) / (stats.old_statistics["entropy"] + TINY)
        return ((moved > 1 - self.clip_low) & (moved < 1 + self.clip_high)).to(stats.logprobs.dtype)
