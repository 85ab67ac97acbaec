"""Leave-one-out advantages (RLOO, arXiv 2402.14740): each reward against the mean of the others.

A = R_i - mean of R_j, j != i = n / (n - 1) (R_i - mean R)
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlvr_lightning.methods.advantages.group_relative import GroupRelative


class RLOO:
    """Reward against the mean of the other responses to the prompt."""

    # A group of one has no others: the run refuses group_size 1.
    min_group_size = 2

    def __call__(self, rewards: Float[Tensor, "P G"], valid: Bool[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Advantages; 0 where a verdict is missing, in groups of equal rewards and where one verdict is left."""
        count = valid.sum(-1, keepdim=True)
        others = torch.where(count > 1, count / (count - 1).clamp(min=1), 1.0).to(rewards.dtype)
        return others * GroupRelative(normalize=False)(rewards, valid)
