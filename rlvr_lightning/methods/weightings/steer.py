"""Tokens weigh less the more their update would change the entropy (STEER, arXiv 2510.10150).

Omega = -(A / p_old) p (1 - p) (log p + H_old),   least ** (|Omega| / max(max |Omega|, floor)),  the maximum over the step
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.statistics import Entropy
from rlvr_lightning.protocols import StepContext, VocabStatistic, Weighting
from rlvr_lightning.types import TokenStats, When

# Probabilities are kept this far from 0 and 1.
TINY = 1e-8


class STEER(Weighting):
    """A smooth attenuation of updates that would raise or lower the entropy much, both alike.

    Omega is an estimate of a token's change of the entropy: of the current policy's probability p, and of the entropy of
    the policy at the rollout. One that is no finite number counts as 0.

    Args:
        least: the factor of the token that changes most; in (0, 1). Others lie between it and 1.
        floor: a step whose largest |Omega| is below this is measured by it [nats a unit step]; above 0.

    Raises:
        ConfigError: a setting is out of range.
    """

    weighs_by_step = True

    def __init__(self, least: float = 0.8, floor: float = 0.02) -> None:
        if not 0 < least < 1:
            raise ConfigError(f"STEER.least must be in (0, 1); got {least}")
        if not 0 < floor < math.inf:
            raise ConfigError(f"STEER.floor must be above 0, and finite; got {floor}")
        self.least, self.floor = least, floor

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The entropy, without gradient."""
        return (Entropy(),)

    @property
    def plans_on(self) -> When:
        """The current policy's probabilities."""
        return "update"

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Float[Tensor, "B T"]:
        """The factor of each token."""
        p, old = stats.logprobs.exp().clamp(TINY, 1 - TINY), stats.old_logprobs.exp().clamp(min=TINY)
        change = stats.advantages / old * p * (1 - p) * (stats.logprobs + stats.old_statistics["entropy"])
        size = torch.where(stats.loss_mask & change.isfinite(), change.abs(), 0.0)
        most = step.quantile(size, stats.loss_mask, 1.0).clamp(min=self.floor)
        return (math.log(self.least) * size / most).exp()

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> Float[Tensor, "B T"]:
        """As planned."""
        return planned
