"""The run's one table of metrics: each optimizer step that has something to tell stands in it once, over any number of
kills and resumes.

Lightning's own CSV logger begins a new file whenever a run is resumed and keeps rows in memory.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlvr_lightning.rollout.files import sync_folder, write_whole

Row = dict[str, str]


class MetricsTable(Logger):
    """Rows of `logs/metrics.csv`, one for each optimizer step (the number of steps taken) that something is logged of.

    A row is on the disk when `log_metrics` returns; what is logged later of the same step is added to its row.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / "logs" / "metrics.csv"
        self._columns: list[str] | None = None
        self._last = -1
        self._open = False

    @property
    def name(self) -> str:
        """Of the folder the table lies in."""
        return self.file.parent.name

    @property
    def version(self) -> str:
        """There is one table a run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The output folder."""
        return str(self.file.parent.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """`config.yaml` has them."""

    def open(self) -> None:
        """Take rows from now on: what is measured apart from training is none of the run's books."""
        self._open = True

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Forget what came after `step`: it comes again."""
        rows = [row for row in read_table(self.file) if int(row["step"]) <= step]
        if rows:
            self._rewrite(rows)
        else:
            self.file.unlink(missing_ok=True)
            self._columns, self._last = [], -1

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the row of `step`."""
        if not self._open or not metrics:
            return
        assert step is not None
        if self._columns is None:
            self.cut(step)
            assert self._columns is not None
        row = {"step": str(step), **{name: repr(value) for name, value in metrics.items()}}
        if step > self._last and self._columns and set(row) <= set(self._columns):
            self._append(row)
        else:
            rows = {int(known["step"]): known for known in read_table(self.file)}
            rows[step] = {**rows.get(step, {}), **row}
            self._rewrite([rows[number] for number in sorted(rows)])

    def _append(self, row: Row) -> None:
        assert self._columns is not None
        with self.file.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self._last = int(row["step"])

    def _rewrite(self, rows: list[Row]) -> None:
        columns = list(dict.fromkeys(["step", "epoch", *(name for row in rows for name in row)]))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.file, text.getvalue().encode())
        sync_folder(self.file.parent.parent)
        self._columns, self._last = columns, int(rows[-1]["step"])


def read_table(file: Path) -> list[Row]:
    """The rows of a table, without their empty cells; a line that a kill cut short is none."""
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0]
    lines: Iterable[str] = whole.splitlines()
    return [{name: value for name, value in row.items() if value} for row in csv.DictReader(lines)]


class Events(TensorBoardLogger):
    """TensorBoard's files of a run, all sessions of it under one name.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="tensorboard", version=0)
        self._open = False

    def open(self, step: int) -> None:
        """Take numbers from now on, and have TensorBoard hide what earlier sessions wrote of `step` and later."""
        self._open, self._kwargs["purge_step"] = True, step

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As TensorBoard's logger does, of a run that is being trained."""
        if self._open:
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Likewise."""
        if self._open:
            super().save()


class TableCallback(Callback):
    """Opens a run's books, and takes them back to the step of the checkpoint the run goes on from.

    Args:
        table: the run's.
    """

    def __init__(self, table: MetricsTable) -> None:
        self.table = table

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Training begins, or has ended already and is only measured once more."""
        self.table.open()
        # The checkpoint is loaded by now: the callback that does it comes first.
        step = pl_module.policy_version
        for logger in trainer.loggers:
            if isinstance(logger, Events):
                logger.open(step + 1 if step else 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Rows of later steps come again."""
        self.table.cut(pl_module.policy_version)
