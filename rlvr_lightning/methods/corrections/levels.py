"""The ratio pi_old / pi_infer of a token: its own, its response's product, or its response's geometric mean."""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.responses import response_mean, response_sum
from rlvr_lightning.types import TokenStats

Level = Literal["token", "sequence", "geometric"]
# Log-ratios of whole responses may be far off; exp of more than this is no use as a weight.
MOST_LOG_RATIO = 20.0


def check_level(level: str, of: str) -> None:
    """Is there such a level?

    Raises:
        ConfigError: there is not.
    """
    if level not in get_args(Level):
        raise ConfigError(f"{of}.level must be {', '.join(get_args(Level))}; got {level}")


def mismatch_ratio(stats: TokenStats, level: Level) -> Float[Tensor, "B T"]:
    """pi_old / pi_infer of each token that carries weight, at the level asked for; 1 elsewhere.

    Args:
        stats: with the engine's log-probabilities.
        level: `token` for each token's own; `sequence` for the product over its response, which is what unbiased
            importance sampling of whole responses takes; `geometric` for that product's root of the response's length.
    """
    assert stats.rollout_logprobs is not None
    mask = stats.loss_mask
    gap = (stats.old_logprobs - stats.rollout_logprobs).masked_fill(~mask, 0.0)
    if level == "sequence":
        gap = response_sum(gap, mask, stats.segments)
    elif level == "geometric":
        gap = response_mean(gap, mask, stats.segments)
    return gap.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO).exp()
