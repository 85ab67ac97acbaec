"""When a run is saved, and which checkpoints stay: real runs."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from breaking import RUN, Break, BrokenError, broken
from lightning.pytorch.callbacks import Callback
from training import SMALL, fit

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.training import checkpoint_io as io
from rlvr_lightning.training import checkpoints
from rlvr_lightning.training.checkpoints import Checkpoints
from rlvr_lightning.training.shards import ShardWriter


class Watch(Break):
    """Says when the third step is done; breaks the run then."""

    def __init__(self) -> None:
        super().__init__(BrokenError(), 3)
        self.third_step = threading.Event()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.policy_version == 3:
            self.third_step.set()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, finish = Watch(), ShardWriter.finish

    def late(self: ShardWriter, **results: Any) -> None:
        assert watch.third_step.wait(60), "training waited for the checkpoint"
        finish(self, **results)

    monkeypatch.setattr(ShardWriter, "finish", late)
    with pytest.raises(BrokenError):
        broken(tmp_path, watch, "trainer.save_every_n_steps=2")
    assert [path.name for path in io.complete(tmp_path / "checkpoints")] == ["step_00000002"]


@pytest.mark.parametrize("last", [0.25, 0.75])
def test_the_best_and_the_newest_stay(last: float, tmp_path: Path) -> None:
    run = build_run(compose([*RUN, "trainer.val_every_n_epochs=1", f"output_dir={tmp_path}"]))
    scores = iter((0.5, 0.75, last))

    class Scores(Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                pl_module.evaluation = {"avg": next(scores), "pass": 1.0}

    run.trainer.callbacks.insert(0, Scores())  # type: ignore[attr-defined]
    run.fit()
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.json", "step_00000008", "step_00000012"]
    assert io.read_best(folder) == (folder / "step_00000008", 0.75)


def test_minutes_are_counted_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each look at the clock after a step is 20 s later: a minute is over after three steps.
    clock, saved = [0.0], []

    def now() -> float:
        clock[0] += 20.0
        return clock[0]

    begin = io.begin
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=now))
    monkeypatch.setattr(io, "begin", lambda folder, step, *rest: saved.append(step) or begin(folder, step, *rest))
    fit(tmp_path, *RUN[len(SMALL) :], "trainer.save_every_n_minutes=1", "trainer.val_every_n_epochs=3")
    assert saved == [3, 6, 9, 12]


@pytest.mark.parametrize("name", ["every_n_steps", "every_n_minutes"])
def test_intervals_are_above_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"trainer.save_{name} must be above 0 or null; got 0"):
        Checkpoints(tmp_path, 1, **{name: 0})


class AtTheEnd(Callback):
    """Fails when training is over, as a long measurement may."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise RuntimeError("too late")


def test_the_last_epoch_is_saved_before_anything_is_done_at_the_end(tmp_path: Path) -> None:
    often = ("trainer.max_epochs=3", "trainer.val_every_n_epochs=5")
    run = build_run(compose([*SMALL, *often, f"output_dir={tmp_path}"]), [AtTheEnd()])
    with pytest.raises(RuntimeError, match="too late"):
        run.fit()
    assert io.newest(tmp_path / "checkpoints").name == "step_00000003"
