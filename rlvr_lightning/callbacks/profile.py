"""A trace of one epoch, for Perfetto (ui.perfetto.dev): what runs when, on the CPU and on GPUs, under the run's phases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, record_function

if TYPE_CHECKING:
    from rlvr_lightning.datamodule import RolloutDataModule

# The first epoch starts the engine; the second is like all others.
EPOCH = 1


class ProfileCallback(Callback):
    """Writes `trace.json.gz` of the first rank: of the second epoch, sampling included, or of the only one.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "trace.json.gz"
        self._profile: Any = None
        self._phase: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to the phases; a run of one epoch begins here."""
        if trainer.is_global_zero:
            cast("RolloutDataModule", trainer.datamodule).phase_listeners.append(self._enter)  # type: ignore[attr-defined]
            if trainer.max_epochs == EPOCH:
                self._begin()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The epoch begins with its sampling, before Lightning says so; it ends here."""
        if not trainer.is_global_zero or self.file.exists():
            return
        if self._profile is not None:
            self._end()
        elif trainer.current_epoch == EPOCH - 1:
            self._begin()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """What there is may say why."""
        if self._profile is not None:
            self._end()

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(activities=activities)
        self._profile.start()

    def _enter(self, phase: str) -> None:
        if self._profile is not None:
            self._leave()
            self._phase = record_function(phase)
            self._phase.__enter__()

    def _leave(self) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None

    def _end(self) -> None:
        self._leave()
        self._profile.stop()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.file))
        self._profile = None
