"""Drawing ahead: groups that are drawn while the trainer learns from earlier ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from itertools import chain

from rlvr_lightning.errors import EngineLostError
from rlvr_lightning.protocols import ApartEngine
from rlvr_lightning.rollout.collector import Collector
from rlvr_lightning.rollout.drawing import Judged
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.rollout.prompts import PromptSource
from rlvr_lightning.rollout.refill import StepCut
from rlvr_lightning.rollout.synced import SyncedEngine
from rlvr_lightning.types import Generation, Prompt, Rollout

Sync = Callable[[], None]


class _Open:
    """A group on its way.

    Args:
        prompt: of the group.
        phase: at whose beginning it was asked for.
    """

    def __init__(self, prompt: Prompt, phase: int) -> None:
        self.prompt, self.phase = prompt, phase
        self.drawing: list[Future[Rollout]] = []
        # Those that are there, and what judging them comes to.
        self.rollouts: dict[int, Rollout] = {}
        self.judged: dict[int, Judged] = {}

    @property
    def ready(self) -> bool:
        """Whether all its responses are there, or have failed."""
        return all(future.done() for future in self.drawing)


class Ahead:
    """Groups that are drawn while others are learned from.

    Args:
        collector: of the run.
        synced: its engine, in processes of its own.
        prompts: the endless order.
        cut: which prompts of a batch are this rank's.
        lag: phases ahead.
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
        self.collector, self.synced, self.prompts, self.cut = collector, synced, prompts, cut
        self.lag, self.steps, self._sync = lag, steps, sync
        # Prompts that were asked for in an earlier session and are not learned from yet come before the order goes on.
        self.pending: list[int] = []
        self.cursor = 0
        self._phase, self._left = 0, 1
        self.version = 0
        self._open: list[_Open] = []
        self._batches_out = 0

    def begin(self, version: int, phases_left: int) -> None:
        """A phase begins.

        Args:
            version: of the policy that learns from it.
            phases_left: of the run, this one included.
        """
        self.version, self._left = version, phases_left

    def batch(self, number: int) -> list[Rollout]:
        """See `GroupSource`."""
        if self._batches_out == 0:
            self._sync()
            self._ask(1 if number else min(1 + self.lag, self._left))
        began = time.perf_counter()
        self.collector.drawing.phase("waiting")
        groups = self._taken()
        self.collector.drawing.sampling_s = time.perf_counter() - began
        self._batches_out -= 1
        rollouts = [group.rollouts[sample] for group in groups for sample in range(self.collector.group_size)]
        judged = [group.judged[sample] for group in groups for sample in sorted(group.judged)]
        return self.collector.drawing.graded(rollouts, judged)

    def go_on(self) -> None:
        """What the phase learns from is there: have the next ones drawn, with the policy of now."""
        self._phase += 1
        wanted = min(self.lag, self._left - 1)
        if self._batches_out < wanted:
            self._sync()
            self._ask(wanted - self._batches_out)

    def unfinished(self) -> list[int]:
        """Places of the prompts that were asked for and not learned from, of all ranks. Every rank must call it."""
        return sorted({*self.pending, *from_all_ranks([group.prompt.index for group in self._open])})

    def _ask(self, batches: int) -> None:
        for _ in range(batches):
            old, self.pending = self.pending[: self.cut.per_epoch], self.pending[self.cut.per_epoch :]
            new = self.cut.per_epoch - len(old)
            order = [self.prompts.take(index, 1)[0] for index in old] + self.prompts.take(self.cursor, new)
            self.cursor += new
            for prompt in chain.from_iterable(self.cut.mine(order)):
                group = _Open(prompt, self._phase)
                self._open.append(group)
                self._draw(group, range(self.collector.group_size))
            self._batches_out += 1

    def _draw(self, group: _Open, samples: Sequence[int]) -> None:
        drawing, engine = self.collector.drawing, self.synced.engine
        assert isinstance(engine, ApartEngine)
        requests = [drawing.request(group.prompt, sample, "train") for sample in samples]
        for sample, drawn in zip(samples, engine.submit(requests, self.collector.sampling), strict=True):
            there: Future[Rollout] = Future()
            group.drawing.append(there)
            drawn.add_done_callback(partial(self._arrived, group, sample, there))

    def _arrived(self, group: _Open, sample: int, there: Future[Rollout], drawn: Future[Generation]) -> None:
        """In the engine's thread: judged as soon as it is there."""
        try:
            rollout = self.collector.drawing.rollout(group.prompt, sample, drawn.result())
            if self.collector.pool.is_apart:
                group.judged[sample] = self.collector.drawing.judge(rollout)
            group.rollouts[sample] = rollout
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for it
            there.set_exception(error)
        else:
            there.set_result(rollout)

    def _taken(self) -> list[_Open]:
        """This rank's next groups: those that may wait no longer, and of the others the oldest that are ready."""
        share = self.cut.per_epoch // self.cut.world
        while True:
            lost = self._wait(share)
            if not self.synced.bring_back(lost):
                break
            self._ask_again()
        due = [group for group in self._open if self._is_due(group)]
        others = [group for group in self._open if group.ready and not self._is_due(group)]
        taken = sorted([*due, *others][:share], key=lambda group: group.prompt.index)
        self._open = [group for group in self._open if group not in taken]
        return taken

    def _is_due(self, group: _Open) -> bool:
        return group.phase <= self._phase - self.lag

    def _wait(self, share: int) -> bool:
        """Until there are enough; whether some need the engine to be brought back."""
        while True:
            ready = [group for group in self._open if group.ready]
            if any(self._missing(group) for group in ready):
                return True
            if len(ready) >= share and all(group.ready for group in self._open if self._is_due(group)):
                return False
            coming = [future for group in self._open for future in group.drawing if not future.done()]
            assert coming, "more groups are waited for than were asked for"
            wait(coming, None, FIRST_COMPLETED)

    def _missing(self, group: _Open) -> list[int]:
        """Responses that were lost with the engine, or drawn with weights that are too old.

        Raises:
            Exception: what else kept one from being drawn.
        """
        for future in group.drawing:
            error = future.exception()
            if error is not None and not isinstance(error, EngineLostError):
                raise error
        least = self.version - self.lag * self.steps
        for sample, rollout in list(group.rollouts.items()):
            if not self.synced.takes(rollout.policy_version, least):
                del group.rollouts[sample]
                group.judged.pop(sample, None)
        return [sample for sample in range(self.collector.group_size) if sample not in group.rollouts]

    def _ask_again(self) -> None:
        for group in self._open:
            if group.ready and (missing := self._missing(group)):
                group.drawing = []
                self._draw(group, missing)
