"""Ctrl-C between optimizer steps: the checkpoint it leaves holds whole steps and resumes exactly."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from rlvr_lightning.errors import INTERRUPTED
from rlvr_lightning.training import watch
from rlvr_lightning.training.failure import end_process

if TYPE_CHECKING:
    from rlvr_lightning.datamodule import RolloutDataModule


class InterruptCallback(Callback):
    """Holds the first SIGINT back while a step is under way; a second one ends it at once.

    Several ranks hear of it at moments of their own, and one that stopped there would leave the others in a collective:
    they stop at the next step or phase (sampling, verifying, ...), all at the same.
    """

    def __init__(self) -> None:
        self._updating = self._pending = False
        self._trainer: L.Trainer | None = None
        self._previous: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over SIGINT, where this is the main thread and nobody ignores it."""
        self._trainer = trainer
        cast("RolloutDataModule", trainer.datamodule).phase_listeners.append(self._on_phase)  # type: ignore[attr-defined]
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        several = self._trainer.world_size > 1
        if self._pending and several:
            watch.interrupt()
            end_process(INTERRUPTED)
        if self._pending or not (self._updating or several):
            signal.default_int_handler(number, frame)
        self._pending = True
        if several:
            watch.ask()

    def _on_phase(self, phase: str) -> None:
        self._updating = phase == "updating"
        if self._stops() and not self._updating:
            raise KeyboardInterrupt

    def _stops(self) -> bool:
        """Whether any rank was asked to stop; all ranks must ask."""
        assert self._trainer is not None
        return bool(self._trainer.strategy.reduce_boolean_decision(self._pending, all=False))

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Between two steps is the moment; all ranks stop at the same one."""
        if self._stops():
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here until the epoch's end is told to everybody nothing can be saved; the next phase is the moment."""
        self._updating = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give SIGINT back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
