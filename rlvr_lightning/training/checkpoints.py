"""Where checkpoints come from: at every validation, on Ctrl-C, and at the end of a run whatever its length."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`, every few epochs, on an exception and after the last epoch.

    Args:
        folder: of the checkpoints.
        every_n_epochs: between two of them.
    """

    def __init__(self, folder: Path, every_n_epochs: int) -> None:
        super().__init__(
            folder,
            "last",
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            save_on_exception=True,
            enable_version_counter=False,
        )
        self._file = folder / "last.ckpt"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last epoch's, where it was not among the few."""
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(self._file)


def best_checkpoint(folder: Path) -> ModelCheckpoint:
    """`best.ckpt` by avg@k on the held-out problems."""
    return ModelCheckpoint(folder, "best", monitor="val/avg_at_k", mode="max", enable_version_counter=False)
