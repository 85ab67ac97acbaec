"""What makes the plan of a step's micro-batches: each its own, or the first of them that of all.

Where the choice belongs to the whole step, the first micro-batch's own pass serves its plan as well: a pass ahead of the
gradients is made of the others alone, and of none where there are no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from rlvr_lightning.objective.joining import cut, join
from rlvr_lightning.objective.objective import Objective
from rlvr_lightning.objective.step import Here
from rlvr_lightning.protocols import StepContext
from rlvr_lightning.types import MaskCount, StepPlan, TokenStats


@runtime_checkable
class Planner(Protocol):
    """Makes plans of micro-batches, the first one's first.

    Args:
        tokens: that carry weight, of the whole step and over all ranks.
    """

    tokens: int

    def plan(self, place: int, stats: TokenStats) -> StepPlan:
        """Of the micro-batch at a place, from the statistics of all its tokens. Every rank must call it."""
        ...

    def guess(self, place: int, stats: TokenStats) -> StepPlan:
        """From those that are known already, and others put in for the rest; it asks no other rank."""
        ...


class EachItsOwn(Planner):
    """Of components that choose within responses.

    Args:
        objective: whose components choose.
        known: what there is of the whole step.
    """

    def __init__(self, objective: Objective, known: MaskCount) -> None:
        self._objective, self._known, self.tokens = objective, known, int(known.tokens)

    def plan(self, place: int, stats: TokenStats) -> StepPlan:
        """See `Planner`."""
        return self._objective.plan(stats, Alone(), self._known)

    guess = plan


class OfTheStep(Planner):
    """Of components that choose from the whole step.

    Args:
        objective: whose components choose.
        known: what there is of the whole step.
        others: what is known of all micro-batches but the first.
        step: the other ranks.
    """

    def __init__(self, objective: Objective, known: MaskCount, others: Sequence[TokenStats], step: StepContext) -> None:
        self._objective, self._known, self._others, self._step = objective, known, list(others), step
        self._plans: list[StepPlan] = []
        self.tokens = int(known.tokens)

    def plan(self, place: int, stats: TokenStats) -> StepPlan:
        """See `Planner`."""
        if place == 0:
            self._plans = self._all(stats, self._step)
        return self._plans[place]

    def guess(self, place: int, stats: TokenStats) -> StepPlan:
        """See `Planner`."""
        if place > 0:
            return self._plans[place]
        first, *_ = self._all(stats, Here())
        return replace(first, counts={**first.counts, "response": self._known})

    def _all(self, first: TokenStats, step: StepContext) -> list[StepPlan]:
        if not self._others:
            return [self._objective.plan(first, step)]
        micros = [first.detached(), *self._others]
        return cut(self._objective.plan(join(micros), step), micros)


class Alone:
    """The step as those see it who choose within responses: not at all."""

    def sum(self, values: Tensor) -> Tensor:
        """Never asked for."""
        raise AssertionError("a component that is within_responses asks for the whole step")

    def quantile(self, values: Tensor, mask: Tensor, q: float) -> Tensor:
        """Never asked for."""
        return self.sum(values)

    def kth_smallest(self, values: Tensor, mask: Tensor, k: int) -> Tensor:
        """Never asked for."""
        return self.sum(values)
