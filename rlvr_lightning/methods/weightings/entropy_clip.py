"""Negative updates that would lower the entropy most are taken out (Clip_B and Clip_V, arXiv 2602.03392).

S = p (H + log p),   N = sum_v p_v (p_v (H + log p_v));  taken out where A < 0 and
Clip_B: S - mean S < -mu sd(S);    Clip_V: N - S > mu sd(N - S), at most a share of all tokens
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.statistics import Entropy, EntropyFlow
from rlvr_lightning.protocols import StepContext, VocabStatistic, Weighting
from rlvr_lightning.types import TokenStats, When

# A standard deviation below this is none.
LEAST_DEVIATION = 1e-12


def mean_and_deviation(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], step: StepContext
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Of the masked values of the whole step, in float64; the deviation is the population's."""
    kept = torch.where(mask, values.double(), 0.0)
    total, count = step.sum(torch.stack([kept.sum(), mask.sum().double()]))
    mean = total / count.clamp(min=1)
    # About the mean: a difference of two sums of squares would make a deviation of equal values.
    squares = step.sum(torch.where(mask, kept - mean, 0.0).square().sum())
    return mean, (squares / count.clamp(min=1)).sqrt()


class EntropyClip(Weighting):
    """What both share: a mask made of the current policy's numbers, which on-policy are those at the rollout."""

    def __init__(self, deviations: float) -> None:
        if not deviations > 0:
            raise ConfigError(f"{type(self).__name__}.deviations must be above 0; got {deviations}")
        self.deviations = deviations

    @property
    def plans_on(self) -> When:
        """The current policy."""
        return "update"

    @abstractmethod
    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Bool[Tensor, "B T"]:
        """The tokens taken out."""

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> Float[Tensor, "B T"]:
        """0 at what is taken out."""
        return (~planned).to(stats.logprobs.dtype)


class ClipB(EntropyClip):
    """Without the tokens with A < 0 whose S lies far below its mean over the step.

    Args:
        deviations: mu, in standard deviations of S over the step; above 0.

    Raises:
        ConfigError: it is not.
    """

    def __init__(self, deviations: float = 2.5) -> None:
        super().__init__(deviations)

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The entropy, without gradient."""
        return (Entropy(),)

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Bool[Tensor, "B T"]:
        """The tokens taken out."""
        logprobs = stats.logprobs.double()
        values = logprobs.exp() * (stats.statistics["entropy"].double() + logprobs)
        mean, deviation = mean_and_deviation(values, stats.loss_mask, step)
        low = (values - mean < -self.deviations * deviation) & (deviation >= LEAST_DEVIATION)
        return stats.loss_mask & (stats.advantages < 0) & low


class ClipV(EntropyClip):
    """Without the tokens with A < 0 whose S lies far below what the policy itself expects of it.

    Args:
        deviations: mu, in standard deviations of N - S over the step; above 0.
        max_share: of all tokens of the step, how many are taken out at most (but at least one), those with the largest
            N - S; in (0, 1). Equal ones are taken together.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(self, deviations: float = 8.5, max_share: float = 1e-4) -> None:
        super().__init__(deviations)
        if not 0 < max_share < 1:
            raise ConfigError(f"ClipV.max_share must be in (0, 1); got {max_share}")
        self.max_share = max_share

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """S - N, which is the entropy flow."""
        return (EntropyFlow(),)

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Bool[Tensor, "B T"]:
        """The tokens taken out."""
        flow, mask = stats.statistics["entropy_flow"].double(), stats.loss_mask
        _, deviation = mean_and_deviation(flow, mask, step)
        low = (flow < -self.deviations * deviation) & (deviation >= LEAST_DEVIATION)
        chosen = mask & (stats.advantages < 0) & low
        tokens, eligible = step.sum(torch.stack([mask.sum(), chosen.sum()])).tolist()
        count = min(max(int(tokens * self.max_share), 1), int(eligible))
        return chosen & (flow <= step.kth_smallest(flow, chosen, count))
