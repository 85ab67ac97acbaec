"""From token terms to one number. `count` is of the whole optimizer step, so the sum over its micro-batches is right.

Weights have the dtype of the counts (float64): dividing a mask by a scalar would round them to float32.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import MaskCount


class TokenMean:
    """Every token weighs the same: sum over tokens / their number in the step (DAPO, arXiv 2503.14476)."""

    def __call__(
        self, mask: Bool[Tensor, "B T"], lengths: Float[Tensor, "B T"], count: MaskCount
    ) -> Float[Tensor, "B T"]:
        """1 / tokens of the step."""
        return mask.to(count.tokens.dtype) / count.tokens.clamp(min=1)


class SequenceMeanTokenMean:
    """Every response weighs the same: mean over responses of token means (GRPO, arXiv 2402.03300)."""

    def __call__(
        self, mask: Bool[Tensor, "B T"], lengths: Float[Tensor, "B T"], count: MaskCount
    ) -> Float[Tensor, "B T"]:
        """1 / (responses of the step * tokens of the response)."""
        return mask.to(count.rows.dtype) / (lengths.clamp(min=1) * count.rows.clamp(min=1))


class SequenceMeanTokenSum:
    """Mean over responses of token sums, divided by a constant length (Dr.GRPO, arXiv 2503.20783).

    Args:
        length: the constant [tokens]; 1 for the plain sum.

    Raises:
        ConfigError: the length is not positive.
    """

    def __init__(self, length: float = 1.0) -> None:
        if not length > 0:
            raise ConfigError(f"SequenceMeanTokenSum.length must be above 0; got {length}")
        self.length = length

    def __call__(
        self, mask: Bool[Tensor, "B T"], lengths: Float[Tensor, "B T"], count: MaskCount
    ) -> Float[Tensor, "B T"]:
        """1 / (responses of the step * length)."""
        return mask.to(count.rows.dtype) / (count.rows.clamp(min=1) * self.length)
