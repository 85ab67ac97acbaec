"""The last epoch is measured whatever its number, so that a run never ends without knowing where it arrived."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback


class MeasureAtTheEnd(Callback):
    """Validates after the last epoch, within the fit: what is logged and saved there includes it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Also where a run resumes within its last epoch."""
        if trainer.max_epochs is not None and trainer.current_epoch + 1 >= trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    on_train_epoch_start = on_train_start
