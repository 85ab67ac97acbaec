"""Ctrl-C between optimizer steps: the checkpoint it leaves holds whole steps and resumes exactly."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from rlvr_lightning.datamodule import RolloutDataModule


class InterruptCallback(Callback):
    """Holds the first SIGINT back while a step is under way; a second one ends it at once."""

    def __init__(self) -> None:
        self._updating = self._pending = False
        self._previous: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over SIGINT, where this is the main thread and nobody ignores it."""
        cast("RolloutDataModule", trainer.datamodule).phase_listeners.append(self._on_phase)  # type: ignore[attr-defined]
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._updating or self._pending:
            signal.default_int_handler(number, frame)
        self._pending = True

    def _on_phase(self, phase: str) -> None:
        self._updating = phase == "updating"
        if self._pending and not self._updating:
            raise KeyboardInterrupt

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Between two steps is the moment; all ranks stop at the same one."""
        if trainer.strategy.reduce_boolean_decision(self._pending, all=False):
            raise KeyboardInterrupt

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give SIGINT back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
