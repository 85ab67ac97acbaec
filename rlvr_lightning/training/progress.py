"""Where a run stands, in four numbers instead of Lightning's loops, and the loops brought back to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import lightning as L


@dataclass(frozen=True)
class Progress:
    """A moment between two optimizer steps.

    Args:
        epochs: finished.
        batches: optimizer steps of the epoch under way that are done; 0 between epochs.
        total_batches: optimizer steps of the run, left out ones included.
        optimizer_steps: the same without those left out.
        validating: all steps of the epoch are done, its validation is not.
    """

    epochs: int
    batches: int
    total_batches: int
    optimizer_steps: int
    validating: bool = False

    def state_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def restore(self, trainer: L.Trainer) -> None:
        """Have the fit loop begin there.

        Lightning tells from the counters which hooks have run; here none is half done, but for a validation that is to
        be run again from its beginning.
        """
        state = trainer.fit_loop.state_dict()
        under_way = int(self.batches > 0)
        _count(state["epoch_progress"], self.epochs, self.epochs, begun=under_way)
        _count(state["epoch_loop.batch_progress"], self.total_batches, self.batches)
        state["epoch_loop.batch_progress"]["is_last_batch"] = self.validating
        _count(state["epoch_loop.val_loop.batch_progress"], 0, 0, begun=int(self.validating))
        _count(state["epoch_loop.manual_optimization.optim_step_progress"], self.optimizer_steps, 0)
        # The loop counts the step whose validation it goes back to once more.
        state["epoch_loop.state_dict"]["_batches_that_stepped"] = self.total_batches - int(self.validating)
        trainer.fit_loop.load_state_dict(state)


def _count(progress: dict[str, Any], total: int, current: int, begun: int = 0) -> None:
    for name, done in (("total", total), ("current", current)):
        for key in progress[name]:
            progress[name][key] = done + (begun if key in ("ready", "started") else 0)
