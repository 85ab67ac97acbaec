"""Rollout buffers go when no checkpoint can need them any more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from rlvr_lightning.errors import CheckpointError
from rlvr_lightning.rollout.buffers import drop_buffers
from rlvr_lightning.training.checkpoint_io import read_state

if TYPE_CHECKING:
    from rlvr_lightning.datamodule import RolloutDataModule


class DropBuffers(Callback):
    """Keeps of the rollout buffers those that a complete checkpoint, or one still being written, may go on from.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The epoch's own buffer is whole by now."""
        data = cast("RolloutDataModule", trainer.datamodule)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            since, keep = needed_buffers(self.folder / "checkpoints", data.steps_per_epoch)
            drop_buffers(self.folder / "buffers", keep, since)

    on_fit_end = on_train_epoch_start


def needed_buffers(checkpoints: Path, steps: int) -> tuple[int, set[int]]:
    """Which buffers must stay: all since a policy version, and some before it.

    Args:
        checkpoints: the run's folder of them.
        steps: optimizer steps of a rollout phase.
    """
    # Without any checkpoint everything stays; one that is being written is of the newest one's phase or of a later one.
    since, keep = -1, set()
    for path in checkpoints.glob("step_*"):
        try:
            place = read_state(path)["data"]
        except CheckpointError:  # a torn one, which nobody can go on from
            continue
        version, phase = place["policy_version"], place["buffer_version"]
        under_way = 0 <= phase < version < phase + steps
        keep |= {phase} if under_way else set()
        since = max(since, phase if under_way else version)
    return since, keep
