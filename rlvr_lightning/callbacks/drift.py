"""Warns when engine and trainer drift apart: learning goes on from log-probabilities that are another policy's."""

from __future__ import annotations

import logging
import statistics
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from rlvr_lightning.module import RLVRModule

log = logging.getLogger(__name__)

# What is watched: of all sampled tokens where the trainer scores them, else of the canary's.
WATCHED = ("rollout/logprob_gap", "rollout/canary_gap")
# Epochs that are averaged, growth that is told, and a mean difference that nothing notices [nats].
EPOCHS, GROWTH, NEGLIGIBLE = 5, 2.0, 1e-3


class DriftWarning(Callback):
    """Compares the last epochs' difference of log-probabilities with the first ones'; says so at each doubling."""

    def __init__(self) -> None:
        self._recent: list[float] = []
        # What the next warning is measured by [nats]; 0 before there is anything.
        self._usual = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the epoch's numbers."""
        metrics = cast("RLVRModule", pl_module).epoch_metrics
        name = next((name for name in WATCHED if metrics.get(name)), None)
        if name is None:
            return
        self._recent = [*self._recent, metrics[name]][-EPOCHS:]
        if len(self._recent) < EPOCHS:
            return
        now = statistics.fmean(self._recent)
        if not self._usual:
            self._usual = now
        elif now > GROWTH * self._usual and now > NEGLIGIBLE:
            if trainer.is_global_zero:
                log.warning(
                    "engine and trainer drift apart: %s was %.2g nats in the mean of epochs %d to %d, %.2g before: see correction=tis "
                    "and rollout.canary_tolerance",
                    name,
                    now,
                    trainer.current_epoch + 2 - EPOCHS,
                    trainer.current_epoch + 1,
                    self._usual,
                )
            self._usual = now

    def state_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"recent": self._recent, "usual": self._usual}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._recent, self._usual = list(state_dict["recent"]), state_dict["usual"]
