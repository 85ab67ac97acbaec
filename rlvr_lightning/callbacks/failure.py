"""The first thing that hears of an error in a run: before any other callback, which may wait for ranks that are gone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rlvr_lightning.training import watch
from rlvr_lightning.training.failure import FILE, Failure

if TYPE_CHECKING:
    from rlvr_lightning.datamodule import RolloutDataModule


class FailureCallback(Callback):
    """With several ranks an error ends them all; with one it is written down. Must be the first callback."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The folder is settled among the ranks by now."""
        self._folder = cast("RolloutDataModule", trainer.datamodule).output_dir  # type: ignore[attr-defined]
        watch.begin(None, self._folder)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An earlier session's failure is over."""
        if trainer.is_global_zero and self._folder is not None:
            (self._folder / FILE).unlink(missing_ok=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Does not return with several ranks, but after Ctrl-C."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            watch.interrupt()
            return
        watch.fail(exception)
        Failure.of(exception, trainer.global_rank).write(self._folder)
