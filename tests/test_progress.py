"""Where a resumed fit begins: Lightning's counters say how many epochs have begun and how many are over."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest

from rlvr_lightning.training.progress import Progress


@pytest.mark.parametrize(
    ("progress", "begun", "is_last"),
    [
        (Progress(3, 0, 12, 12), 3, False),
        (Progress(3, 1, 13, 13), 4, False),
        (Progress(3, 4, 16, 15, validating=True), 4, True),
    ],
)
def test_only_an_epoch_with_a_step_has_begun(progress: Progress, begun: int, is_last: bool, tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    progress.restore(trainer)
    loop = trainer.fit_loop
    epochs, steps = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    assert (epochs.ready, epochs.started) == (begun, begun)
    assert (epochs.processed, epochs.completed) == (3, 3)
    assert (steps.total.ready, steps.total.completed) == (progress.total_batches, progress.total_batches)
    assert (steps.current.ready, steps.current.completed) == (progress.batches, progress.batches)
    assert steps.is_last_batch is is_last
    validations = loop.epoch_loop.val_loop.batch_progress.current
    assert (validations.ready, validations.completed) == (int(is_last), 0)
    taken = loop.epoch_loop.manual_optimization.optim_step_progress
    assert (taken.total.completed, taken.current.ready, taken.current.completed) == (progress.optimizer_steps, 0, 0)
    assert loop.epoch_loop._batches_that_stepped == progress.total_batches - int(is_last)
