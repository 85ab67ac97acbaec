"""Soft overlong punishment (DAPO, arXiv 2503.14476).

With L tokens of response:

    0                                    L <= max_length - buffer
    (max_length - buffer - L) / buffer   in between
    -1                                   L > max_length
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError


class OverlongPenalty:
    """Takes from the reward of a response that comes near the longest one there may be.

    Args:
        buffer: the last tokens before `max_length`, over which the penalty grows from 0 to 1.
        max_length: of a response [tokens].
        weight: the penalty at `max_length`.

    Raises:
        ConfigError: the buffer does not lie within the length, or the weight is not positive.
    """

    def __init__(self, buffer: int, max_length: int, weight: float = 1.0) -> None:
        if not 1 <= buffer <= max_length:
            raise ConfigError(f"OverlongPenalty.buffer must be from 1 to max_length={max_length}; got {buffer}")
        if not weight > 0:
            raise ConfigError(f"OverlongPenalty.weight must be above 0; got {weight}")
        self.buffer, self.max_length, self.weight = buffer, max_length, weight

    def __call__(self, rewards: Float[Tensor, "P G"], lengths: Int[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Rewards less the penalty for these lengths [tokens]."""
        left = (self.max_length - self.buffer - lengths).to(rewards.dtype)
        return rewards + self.weight * (left / self.buffer).clamp(-1, 0)
