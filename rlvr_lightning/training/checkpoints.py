"""When a run is saved, which checkpoints are kept, and going on from one.

Saved at every validation, every few steps or minutes, on Ctrl-C and at the end; written in a thread while training goes
on. The newest complete checkpoint and the best stay; the one before goes when the new one is whole.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import ProcessGroup

from rlvr_lightning.errors import CheckpointError, ConfigError
from rlvr_lightning.evaluation.held_out import EvaluatedModule
from rlvr_lightning.training import checkpoint_io as files
from rlvr_lightning.training.progress import Progress
from rlvr_lightning.training.run_state import host_group, restore_policy, restore_run, run_state, run_tensors

log = logging.getLogger(__name__)

# Seconds that an error elsewhere waits for a checkpoint under way; the one before is whole in any case.
GRACE = 20.0


class Resume(Callback):
    """Brings the run, or for other verbs than `fit` its policy, to where a checkpoint left it.

    Args:
        checkpoint: to begin with; None to begin anew.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore everything."""
        if self.checkpoint is not None:
            restore_run(trainer, pl_module, self.checkpoint, host_group(trainer))
            self.checkpoint = None
            # The policy was measured before training, when the run began.
            trainer.num_sanity_val_steps = 0

    def _restore_policy(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.checkpoint is not None and trainer.state.fn != "fit":
            restore_policy(pl_module, self.checkpoint, host_group(trainer))
            self.checkpoint = None

    on_validation_start = on_test_start = on_predict_start = _restore_policy


class Checkpoints(Checkpoint):
    """Saves the run.

    Args:
        folder: of the checkpoints.
        every_n_epochs: between two of them; as often as the policy is measured, so that the best can be kept.
        every_n_steps: also in the middle of an epoch; None for no such.
        every_n_minutes: likewise.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self, folder: Path, every_n_epochs: int, every_n_steps: int | None = None, every_n_minutes: float | None = None
    ) -> None:
        for name, value in (("save_every_n_steps", every_n_steps), ("save_every_n_minutes", every_n_minutes)):
            if value is not None and not value > 0:
                raise ConfigError(f"trainer.{name} must be above 0 or null; got {value}")
        self.folder, self.every_n_epochs = folder, every_n_epochs
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._group: ProcessGroup | None = None
        # Where the run stands; None within a step, where nothing can be saved.
        self._here: Progress | None = None
        self._saved_version = 0
        self._saved_at = 0.0
        self._due = False
        self._under_way: files.Writing | None = None
        self._score: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After `Resume`."""
        module = cast(EvaluatedModule, pl_module)
        self.folder = trainer.strategy.broadcast(self.folder)
        self._group = host_group(trainer)
        self._saved_version = module.policy_version
        self._saved_at = time.monotonic()
        loop: Any = trainer.fit_loop
        self._stand(trainer, pl_module, trainer.current_epoch, loop.epoch_loop.batch_progress.current.completed)

    def _stand(self, trainer: L.Trainer, module: Any, epochs: int, batches: int, *, validating: bool = False) -> None:
        self._here = Progress(epochs, batches, module.policy_version, trainer.global_step, validating)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From here to the step's end nothing is consistent."""
        self._here = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in mid-epoch where it is time."""
        self._settle(trainer, wait_for_it=False)
        self._due = self._is_time(trainer, cast(EvaluatedModule, pl_module).policy_version)
        if not trainer.is_last_batch:  # then the epoch's end comes at once
            self._stand(trainer, pl_module, trainer.current_epoch, batch_idx + 1)
            if self._due:
                self._save(trainer, pl_module)

    def _is_time(self, trainer: L.Trainer, version: int) -> bool:
        by_steps = self.every_n_steps is not None and version % self.every_n_steps == 0
        if self.every_n_minutes is None:
            return by_steps
        late = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        return by_steps or bool(trainer.strategy.reduce_boolean_decision(late, all=False))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """All of the epoch's steps are done; stopped here, the run begins again with the validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self._stand(trainer, pl_module, trainer.current_epoch, batches, validating=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Until the epoch's end is told to everybody."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._here = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after a validation, where it was time within the epoch, and after the last epoch."""
        epochs = trainer.current_epoch + 1
        self._stand(trainer, pl_module, epochs, 0)
        # What is done at the end of training, such as measuring benchmarks, may take long or fail.
        if self._due or epochs % self.every_n_epochs == 0 or epochs == trainer.max_epochs:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last epoch's, where it was not among the few."""
        if cast(EvaluatedModule, pl_module).policy_version != self._saved_version:
            self._save(trainer, pl_module)
        self._settle(trainer, wait_for_it=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ctrl-C and SIGTERM between two steps leave a checkpoint; after anything else the last complete one stays."""
        if not isinstance(exception, KeyboardInterrupt | SIGTERMException):
            if self._under_way is not None:
                self._under_way.join(GRACE)
            return
        self._settle(trainer, wait_for_it=True)
        if self._here is not None and self._here.total_batches != self._saved_version:
            self._save(trainer, pl_module)
            self._settle(trainer, wait_for_it=True)

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to write, after the one before is whole. Every rank must call it."""
        module = cast(EvaluatedModule, pl_module)
        assert self._here is not None
        self._settle(trainer, wait_for_it=True)
        measured = module.evaluated_version == module.policy_version
        self._score = module.evaluation.get("avg") if measured else None
        self._saved_version, self._saved_at, self._due = module.policy_version, time.monotonic(), False
        tensors, state = run_tensors(trainer, module), run_state(trainer, module, self._here)
        self._under_way = files.begin(self.folder, module.policy_version, tensors, state, self._group)

    def _settle(self, trainer: L.Trainer, *, wait_for_it: bool) -> None:
        """Take note of a checkpoint that is whole by now, on all ranks at the same step.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._under_way is None:
            return
        if wait_for_it:
            self._under_way.join()
        if not trainer.strategy.reduce_boolean_decision(self._under_way.done(), all=True):
            return
        finished, self._under_way = self._under_way, None
        try:
            path = finished.result()
        except CheckpointError as error:
            kept = files.complete(self.folder)
            go_on = f"the last complete checkpoint is as it was: make room, then fit resume={self.folder.parent}"
            raise CheckpointError(f"{error}; {go_on if kept else 'there was none before: make room'}") from error
        if trainer.is_global_zero:
            best = files.read_best(self.folder)
            if self._score is not None and (best is None or self._score > best[1]):
                files.write_best(self.folder, files.step_of(path), self._score)
                best = path, self._score
            files.drop(self.folder, {path} if best is None else {path, best[0]})
