"""The one table of metrics: on the disk at once, each step once, whatever was killed and resumed."""

from __future__ import annotations

import csv
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from training import SMALL, fit, widest_difference

from rlvr_lightning.callbacks.table import Events, MetricsTable, read_table
from rlvr_lightning.cli.main import main
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose
from rlvr_lightning.training.checkpoint_io import read_state

OFF_POLICY = ("conf=archer", "rollout.prompts_per_step=4", "rollout.passes=2")


def table_in(folder: Path) -> MetricsTable:
    table = MetricsTable(folder)
    table.open()
    return table


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_a_row_is_whole_on_the_disk_when_it_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def counting(handle: int) -> None:
        fsync(handle)
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", counting)
    table = table_in(tmp_path)
    table.log_metrics({"epoch": 0, "a": 0.1 + 0.2}, step=4)
    table.log_metrics({"epoch": 1, "a": float("inf")}, step=8)
    assert (tmp_path / "logs" / "metrics.csv").read_text() == "step,epoch,a\n4,0,0.30000000000000004\n8,1,inf\n"
    assert (tmp_path / "logs" / "metrics.csv").stat().st_size in synced


def test_what_comes_later_of_a_step_joins_its_row_and_new_columns_find_a_place(tmp_path: Path) -> None:
    table = table_in(tmp_path)
    table.log_metrics({"val/avg_at_k": 0.5}, step=4)
    table.log_metrics({"epoch": 0, "a": 1.0}, step=4)
    table.log_metrics({"epoch": 1, "a": 2.0, "b": 3.0}, step=8)
    table.log_metrics({"epoch": 2, "a": 4.0}, step=12)
    table.log_metrics({"val/avg_at_k": 0.75}, step=8)
    assert (tmp_path / "logs" / "metrics.csv").read_text() == (
        "step,epoch,val/avg_at_k,a,b\n4,0,0.5,1.0,\n8,1,0.75,2.0,3.0\n12,2,,4.0,\n"
    )
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["metrics.csv"]


def test_cut_back_it_forgets_later_rows_their_columns_and_a_torn_line(tmp_path: Path) -> None:
    whole = table_in(tmp_path / "whole")
    for step in (4, 8):
        whole.log_metrics({"epoch": step // 4, "a": step / 3}, step=step)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    table = table_in(tmp_path / "cut")
    table.log_metrics({"epoch": 3, "a": 1.0, "late": 2.0}, step=12)
    with table.file.open("a") as file:
        file.write("16,4,0.12")  # killed within a line
    assert [row["step"] for row in read_table(table.file)] == ["4", "8", "12"]
    again = table_in(tmp_path / "cut")
    again.cut(8)
    assert again.file.read_text() == whole.file.read_text()
    for one in (whole, again):
        one.log_metrics({"epoch": 3, "a": 5.0}, step=12)
    assert again.file.read_text() == whole.file.read_text()
    again.cut(0)
    assert not again.file.exists()


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_in(tmp_path)
    table.log_metrics({"a": 1.0}, step=4)
    before = table.file.read_text()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        table.log_metrics({"b": 1.0}, step=8)
    assert table.file.read_text() == before
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["metrics.csv"]


class Stop(Callback):
    """Ctrl-C before a step; also logs something of its own at an epoch's end."""

    def __init__(self, before: int = -1) -> None:
        self.before = before

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.policy_version == self.before:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.log("mine", float(pl_module.policy_version))


def run(folder: Path, stop: Stop, *overrides: str) -> None:
    build_run(compose([*SMALL, *OFF_POLICY, *overrides, f"output_dir={folder}"]), [stop]).fit()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run(folder, Stop(), "trainer.max_epochs=3")
    return folder


def test_a_run_has_one_table_by_optimizer_steps(unbroken: Path) -> None:
    before, *rows = rows_of(unbroken)
    # Held-out problems, and nothing else, were measured before the first step.
    assert (before["step"], before["epoch"], before["reward/mean"]) == ("0", "", "")
    assert (
        float(before["val/avg_at_k"])
        == read_state(unbroken / "checkpoints" / "step_00000012")["module"]["rlvr"]["baseline"]["avg"]
    )
    assert [(row["step"], row["epoch"]) for row in rows] == [("4", "0"), ("8", "1"), ("12", "2")]
    # Held-out problems were measured after the second epoch and after the last.
    assert [bool(row["val/avg_at_k"]) for row in rows] == [False, True, True]
    assert all(row["reward/mean"] for row in rows)
    # What any callback logs stands in the same rows.
    assert [row["mine"] for row in rows] == ["4.0", "8.0", "12.0"]
    assert [path.name for path in (unbroken / "logs").iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    "before", [pytest.param(4, marks=pytest.mark.slow), 6, pytest.param(7, marks=pytest.mark.slow)]
)
def test_after_a_stop_and_a_resume_the_steps_stand_once(before: int, unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, Stop(before), "trainer.max_epochs=3")
    # Rows a killed session wrote after its last checkpoint.
    table = table_in(tmp_path)
    table.log_metrics({"epoch": 1, "reward/mean": -1.0}, step=8)
    assert main(("fit", f"resume={tmp_path}")) == 0
    assert widest_difference(unbroken, tmp_path) == 0
    mine, theirs = rows_of(tmp_path), rows_of(unbroken)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, other in zip(mine, theirs, strict=True):
        for name, value in other.items():
            if name != "mine" and not name.startswith("perf/"):
                assert row[name] == value, (row["step"], name)


def accuracies(folder: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows of the held-out problems."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "version_0")).Reload()
    return [(event.step, event.value) for event in events.Scalars("val/avg_at_k")]


def test_measuring_apart_from_training_is_no_entry(tmp_path: Path) -> None:
    fit(tmp_path, *OFF_POLICY)
    before = (tmp_path / "logs" / "metrics.csv").read_text()
    shown = accuracies(tmp_path)
    assert main(("validate", f"resume={tmp_path}", "rollout.eval_samples=4", "export.checkpoint=last")) == 0
    assert (tmp_path / "logs" / "metrics.csv").read_text() == before
    assert not list(tmp_path.glob("logs/version_*"))
    assert accuracies(tmp_path) == shown
    assert [step for step, _ in shown] == [0, 8]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_at, values in ((0, {4: 1.0, 8: 2.0, 12: 3.0}), (4, {8: 5.0})):
        events = Events(tmp_path)
        events.open(resumed_at + 1 if resumed_at else 0)
        for step, value in values.items():
            events.log_metrics({"a": value}, step)
        events.finalize("success")
        # Its files are read in the order of the second they were begun in, as sessions of a run have one each.
        ended = int(time.time())
        while int(time.time()) == ended:
            time.sleep(0.01)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    shown = EventAccumulator(str(folder)).Reload().Scalars("a")
    assert [(event.step, event.value) for event in shown] == [(4, 1.0), (8, 5.0)]
