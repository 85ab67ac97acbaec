"""The most surprising tokens weigh more while the entropy is low (STARE, arXiv 2606.19236).

W on the ceil(P n) of the n tokens with A > 0 whose -log p is largest, M on those of the tokens with A < 0; otherwise 1.
In a step with mean entropy H >= target: 1
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.statistics import Entropy
from rlvr_lightning.protocols import StepContext, VocabStatistic, Weighting
from rlvr_lightning.types import TokenStats, When


class STARE(Weighting):
    """Emphasis on what the policy found improbable and was right about, and less on what it was wrong about.

    Chosen from the whole optimizer step, by the current policy's log-probabilities; the gate is the mean entropy of the
    step's tokens under the policy at the rollout. Equal log-probabilities at the threshold are taken together.

    Args:
        share: P, of the tokens of each sign of the advantage; in (0, 1).
        weight_pos: W, of those with A > 0; at least 1.
        weight_neg: M, of those with A < 0; in [0, 1]. 1 is the paper's variant O1, below 1 its C2.
        target: entropy below which the tokens are weighed [nats]; above 0, and inf for always.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self, share: float = 0.1, weight_pos: float = 1.1, weight_neg: float = 1.0, target: float = 0.3
    ) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"STARE.share must be in (0, 1); got {share}")
        if not 1 <= weight_pos < math.inf:
            raise ConfigError(f"STARE.weight_pos must be at least 1, and finite; got {weight_pos}")
        if not 0 <= weight_neg <= 1:
            raise ConfigError(f"STARE.weight_neg must be in [0, 1]; got {weight_neg}")
        if not target > 0:
            raise ConfigError(f"STARE.target must be above 0; got {target}")
        self.share, self.weight_pos, self.weight_neg, self.target = share, weight_pos, weight_neg, target

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The entropy, without gradient."""
        return (Entropy(),)

    @property
    def plans_on(self) -> When:
        """The current policy's log-probabilities."""
        return "update"

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Float[Tensor, "B T"]:
        """The factor of each token."""
        factor = torch.ones_like(stats.logprobs)
        if not self._low(stats, step):
            return factor
        for sign, weight in ((1, self.weight_pos), (-1, self.weight_neg)):
            factor = factor.masked_fill(self._surprising(stats, sign, step), weight)
        return factor

    def _low(self, stats: TokenStats, step: StepContext) -> bool:
        entropy = torch.where(stats.loss_mask, stats.old_statistics["entropy"].double(), 0.0)
        total, tokens = step.sum(torch.stack([entropy.sum(), stats.loss_mask.sum().double()])).tolist()
        # Of an entropy that is no number nothing follows.
        return bool(total < self.target * tokens)

    def _surprising(self, stats: TokenStats, sign: int, step: StepContext) -> Bool[Tensor, "B T"]:
        side = stats.loss_mask & (sign * stats.advantages > 0)
        count = math.ceil(int(step.sum(side.sum())) * self.share)
        return side & (stats.logprobs <= step.kth_smallest(stats.logprobs, side, count))

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> Float[Tensor, "B T"]:
        """As planned."""
        return planned
