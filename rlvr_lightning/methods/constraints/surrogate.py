"""PPO's clipped surrogate (arXiv 1707.06347) with the dual clip (arXiv 1912.09729), for one token or one response."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_surrogate(
    ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    lowest: Tensor,
    highest: Tensor,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """-min(r A, clip(r, lowest, highest) A); for A < 0 at most -dual_clip A.

    Returns:
        The loss of each token, and where its gradient is cut off.
    """
    free, cut = -ratio * advantages, -torch.minimum(torch.maximum(ratio, lowest), highest) * advantages
    loss, clipped = torch.maximum(free, cut), cut > free
    if dual_clip is not None:
        bound = -dual_clip * advantages
        clipped = clipped | ((advantages < 0) & (loss > bound))
        loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
    return loss, clipped
