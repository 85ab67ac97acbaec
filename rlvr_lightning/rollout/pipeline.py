"""From the endless prompt order to the phases of a run: who draws which prompts when, and with which weights.

With `max_lag=0` a phase is drawn when it is needed, with the weights it is learned with: strictly on-policy. With lag n,
groups are drawn while the trainer learns from earlier ones, n phases ahead at most. Whichever are ready are learned from,
the oldest first; none is lost, and none is learned from more than n phases after its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from rlvr_lightning.rollout.ahead import Ahead, Sync
from rlvr_lightning.rollout.collector import Collected, Collector, GroupSource
from rlvr_lightning.rollout.prompts import PromptSource
from rlvr_lightning.rollout.refill import StepCut
from rlvr_lightning.rollout.synced import SyncedEngine
from rlvr_lightning.types import Rollout

FOREVER = 2**31


class OnTheSpot:
    """Groups that are drawn when they are asked for.

    Args:
        collector: draws.
        prompts: the endless order.
        start: where in it the phase begins.
        cut: which prompts of a batch are this rank's.
        version: optimizer steps of the policy that learns from them.
    """

    def __init__(self, collector: Collector, prompts: PromptSource, start: int, cut: StepCut, version: int) -> None:
        self.collector, self.prompts, self.start, self.cut = collector, prompts, start, cut
        self.version = version

    def batch(self, number: int) -> list[Rollout]:
        """See `GroupSource`."""
        of_steps = self.cut.mine(self.prompts.take(self.start + number * self.cut.per_epoch, self.cut.per_epoch))
        return self.collector.draw(list(chain.from_iterable(of_steps)), self.collector.group_size, "train")


class Pipeline:
    """Phase after phase.

    Args:
        collector: of the run.
        synced: its engine.
        prompts: the endless order.
        cut: which prompts of a batch are this rank's.
        lag: phases that may be drawn ahead.
        steps: optimizer steps of a phase.
        sync: gives the engine the policy of now. Every rank calls it.
    """

    def __init__(
        self,
        collector: Collector,
        synced: SyncedEngine,
        prompts: PromptSource,
        cut: StepCut,
        lag: int,
        steps: int,
        sync: Sync,
    ) -> None:
        self.collector, self.synced, self.prompts, self.cut, self._sync = collector, synced, prompts, cut, sync
        self.ahead = Ahead(collector, synced, prompts, cut, lag, steps, sync) if lag else None
        # Version of the policy the last phase was begun with, and where in the prompt order it and the next one begin.
        self.version, self._cursor, self._next = -1, 0, 0

    def collect(
        self, version: int, phases_left: int, batches: int, *, drop_equal_groups: bool, mask_truncated: bool
    ) -> Collected:
        """The phase that the policy of `version` learns from. Every rank must call it.

        Args:
            version: optimizer steps of the policy.
            phases_left: of the run, this one included.
            batches: of prompts, drawn at most to refill the places of dropped groups.
            drop_equal_groups: groups of equal rewards carry no weight.
            mask_truncated: responses cut by their length carry no weight.
        """
        # A phase that was drawn before, in a session that did not get far, is drawn from the same prompts.
        if self.version != version:
            self._cursor = self._next
        source: GroupSource
        if self.ahead is None:
            self._sync()
            ahead = not self.synced.on_policy
            source = OnTheSpot(self.collector, self.prompts, self._cursor, self.cut, version)
        else:
            source, ahead = self.ahead, True
            self.ahead.begin(version, phases_left)
        drawn = self.collector.collect(
            source,
            self.cut,
            batches,
            drop_equal_groups=drop_equal_groups,
            mask_truncated=mask_truncated,
            ahead=ahead,
        )
        self.version, self._next = version, self._cursor + drawn.batches * self.cut.per_epoch
        if self.ahead is not None:
            self.ahead.go_on()
        return drawn

    def state(self) -> dict[str, Any]:
        """As plain data. Every rank must call it."""
        ahead = {} if self.ahead is None else {"asked": self.ahead.cursor, "pending": self.ahead.unfinished()}
        return {"buffer_version": self.version, "cursor": self._cursor, "next_cursor": self._next, **ahead}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there: what was asked for ahead and not learned from is asked for again, first."""
        self.version, self._cursor, self._next = state["buffer_version"], state["cursor"], state["next_cursor"]
        pending = list(state.get("pending", ()))
        if self.ahead is not None:
            self.ahead.cursor, self.ahead.pending = state.get("asked", self._next), pending
        elif pending:
            # Strictly on-policy a phase is a piece of the order: it begins with the first that was not learned from.
            self._next = pending[0]


def phases_left(epochs: int | None, done: int) -> int:
    """Of a run; without an end there are always more."""
    return FOREVER if epochs is None or epochs < 0 else epochs - done
