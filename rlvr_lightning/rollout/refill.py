"""Drawing on until there are enough groups to learn from (dynamic sampling, DAPO, arXiv 2503.14476)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from rlvr_lightning.rollout.batching import equal_groups, rewards_of
from rlvr_lightning.rollout.gathering import from_all_ranks, is_first_rank
from rlvr_lightning.types import Rollout

log = logging.getLogger(__name__)

T = TypeVar("T")
Group = list[Rollout]


@dataclass(frozen=True)
class StepCut:
    """How what belongs to a phase is cut into optimizer steps and ranks.

    Args:
        per_epoch: prompts (or groups) of the phase, over all ranks.
        per_step: of an optimizer step, over all ranks; divides `per_epoch`, and is a multiple of `world`.
        rank: this one.
        world: how many ranks there are.
    """

    per_epoch: int
    per_step: int
    rank: int = 0
    world: int = 1

    @property
    def share(self) -> int:
        """Prompts of a step on one rank."""
        return self.per_step // self.world

    def mine(self, items: Sequence[T]) -> list[Sequence[T]]:
        """This rank's of the phase's items, step by step."""
        starts = range(self.rank * self.share, self.per_epoch, self.per_step)
        return [items[start : start + self.share] for start in starts]


def refill(draw: Callable[[int], list[Group]], wanted: int, most: int) -> tuple[list[Group], int]:
    """Draw batches until enough groups of unequal rewards are together. Every rank must call it.

    Args:
        draw: this rank's groups of a batch (0, 1, ...), in prompt order; all ranks' together are at least `wanted`.
        wanted: groups, over all ranks.
        most: batches at most.

    Returns:
        `wanted` groups, the same on every rank, and the number of batches drawn. They are the first in prompt order
        with unequal rewards; where there are too few, groups of equal rewards take the empty places.
    """
    kept: list[Group] = []
    spare: list[Group] = []
    batches = 0
    while batches < most and len(kept) < wanted:
        groups = draw(batches)
        teaches = teaching(groups)
        kept += _in_order([group for group, does in zip(groups, teaches, strict=True) if does])
        if batches == 0:
            # The first batch alone leaves as many as there can be empty places.
            spare = [group for group, does in zip(groups, teaches, strict=True) if not does]
        batches += 1
    missing = wanted - len(kept)
    if missing > 0:
        if is_first_rank():
            log.warning(
                "only %d of %d groups have unequal rewards after rollout.generation_batches=%d: the other places carry no "
                "weight",
                len(kept),
                wanted,
                batches,
            )
        kept = spread(kept, _in_order(spare)[:missing])
    return kept[:wanted], batches


def teaching(groups: Sequence[Group]) -> list[bool]:
    """Which groups' counted rewards differ: the verifier's, not the shaped ones."""
    equal = equal_groups(*rewards_of(list(chain.from_iterable(groups)), len(groups[0])))
    return [not same for same in equal.tolist()]


def spread(kept: Sequence[T], fill: Sequence[T]) -> list[T]:
    """Both in their order, evenly mixed: no optimizer step is left without a group that teaches while others have many."""
    places = len(kept) + len(fill)
    sources = {True: iter(kept), False: iter(fill)}
    return [next(sources[(place + 1) * len(kept) // places > place * len(kept) // places]) for place in range(places)]


def _in_order(groups: list[Group]) -> list[Group]:
    """All ranks' groups by prompt, as one process draws them."""
    return sorted(from_all_ranks(groups), key=lambda group: group[0].prompt.index)
