"""What is made of the whole next-token distribution of every token: its entropy, and how an update would change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.objective.tile import FLOOR, ClosedStatistic, LogitGradient, Tile
from rlvr_lightning.protocols import VocabStatistic
from rlvr_lightning.types import Pass


@dataclass(frozen=True)
class Entropy(ClosedStatistic):
    """Entropy of the next-token distribution [nats].

    Args:
        differentiable: whether it carries a gradient (an entropy bonus needs one; choosing tokens does not).
    """

    differentiable: bool = False
    name: ClassVar[str] = "entropy"
    passes: ClassVar[tuple[Pass, ...]] = ("rollout", "update", "on_policy")

    def value(self, tile: Tile) -> Float[Tensor, " N"]:
        """H = -sum_v p_v log p_v, with 0 log 0 = 0."""
        return tile.entropy

    def gradient(self, tile: Tile, grad: Float[Tensor, " N"], into: LogitGradient) -> None:
        """dH / dlogit_v = -p_v (log p_v + H)."""
        into.add_plogp(-grad)
        into.add_probs(-grad * tile.entropy)


@dataclass(frozen=True)
class EntropyFlow(ClosedStatistic):
    """What the entropy loses, to first order, when the sampled token's logit gradient is followed (arXiv 2605.11491).

    With phi_v = p_v (log p_v + H), whose sign-changed value is dH / dlogit_v, a step along A d log p_o / dlogit changes
    the entropy by -A (phi_o - sum_v p_v phi_v): the statistic is the bracket [nats per unit of step and advantage].
    """

    differentiable: ClassVar[bool] = False
    name: ClassVar[str] = "entropy_flow"
    passes: ClassVar[tuple[Pass, ...]] = ("update", "on_policy")

    def value(self, tile: Tile) -> Float[Tensor, " N"]:
        """phi_o - sum_v p_v phi_v."""
        squared = tile.probs.square()
        mean: Tensor = torch.linalg.vecdot(squared, tile.logs) + tile.entropy * squared.sum(-1)
        return tile.sampled.exp() * (tile.sampled.clamp(min=FLOOR) + tile.entropy) - mean


def merge_statistics(required: Sequence[VocabStatistic]) -> tuple[VocabStatistic, ...]:
    """Each name once; of two equal names the differentiable one, or the one of more tokens, which serves both."""
    merged: dict[str, VocabStatistic] = {}
    for statistic in required:
        held = merged.get(statistic.name)
        if held is None or _extent(statistic) > _extent(held):
            merged[statistic.name] = statistic
    return tuple(merged.values())


def _extent(statistic: VocabStatistic) -> tuple[bool, float]:
    """Whether it carries a gradient, and the share of tokens it is made of."""
    share = statistic.rarest if isinstance(statistic, ClosedStatistic) else None
    return statistic.differentiable, 1.0 if share is None else share
