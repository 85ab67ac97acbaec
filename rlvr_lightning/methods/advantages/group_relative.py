"""Group-relative advantages (GRPO, arXiv 2402.03300; without the division: Dr.GRPO, arXiv 2503.20783).

A = (R - mean) / (std + epsilon),  mean and unbiased std over the responses to one prompt
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlvr_lightning.errors import ConfigError


class GroupRelative:
    """Reward against the mean of its group.

    Args:
        normalize: divide by the group's standard deviation.
        epsilon: added to it.

    Raises:
        ConfigError: epsilon is not positive.
    """

    # A group of one has nothing to be compared with: the run refuses group_size 1.
    min_group_size = 2

    def __init__(self, normalize: bool = True, epsilon: float = 1e-6) -> None:
        if not epsilon > 0:
            raise ConfigError(f"GroupRelative.epsilon must be above 0; got {epsilon}")
        self.normalize, self.epsilon = normalize, epsilon

    def __call__(self, rewards: Float[Tensor, "P G"], valid: Bool[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Advantages; 0 where a verdict is missing, in groups of equal rewards and where one verdict is left.

        Groups of size 1 (which a run refuses) keep their rewards, as if mean and deviation were 0 and 1.
        """
        if rewards.shape[-1] == 1:
            return torch.where(valid, rewards / (1 + self.epsilon) if self.normalize else rewards, 0.0)
        count = valid.sum(-1, keepdim=True)
        mean = torch.where(valid, rewards, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
        centred = torch.where(valid, rewards - mean, 0.0)
        # Equal rewards differ from their mean by rounding alone, and a tiny std would blow that up.
        equal = torch.where(valid, rewards, -torch.inf).amax(-1, keepdim=True) == torch.where(
            valid, rewards, torch.inf
        ).amin(-1, keepdim=True)
        centred = torch.where(equal | (count < 2), 0.0, centred)
        if not self.normalize:
            return centred
        variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        return centred / (variance.sqrt() + self.epsilon)
