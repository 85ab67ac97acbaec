"""What a run shows: a live line with phase and numbers on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.rollout.timeline import told
from rlvr_lightning.types import Rollout

if TYPE_CHECKING:
    from rlvr_lightning.datamodule import RolloutDataModule
    from rlvr_lightning.module import RLVRModule

# Characters of a response on the screen.
SHOWN = 600
# Of the names of times that are logged.
TIME = "perf/time/"


class ScreenCallback(Callback):
    """The run's face.

    Args:
        show_every_n_epochs: a sampled response with its verdict; 0 for never.

    Raises:
        ConfigError: a negative number.
    """

    def __init__(self, show_every_n_epochs: int = 10) -> None:
        if show_every_n_epochs < 0:
            raise ConfigError(f"trainer.show_every_n_epochs must be at least 0; got {show_every_n_epochs}")
        self.every = show_every_n_epochs
        self.console = Console()
        self._progress: Progress | None = None
        self._phase, self._line = "starting", ""
        self._started = self._epoch_started = time.perf_counter()
        self._fitted = False
        self._seconds: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen to the data module's phases."""
        if trainer.is_global_zero:
            cast("RolloutDataModule", trainer.datamodule).phase_listeners.append(self._on_phase)  # type: ignore[attr-defined]

    def _on_phase(self, phase: str) -> None:
        self._phase = phase
        self._refresh()

    def _refresh(self) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], phase=self._phase, numbers=self._line)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the live line."""
        self._open(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the policy stands before training."""
        self._open(trainer)
        self._started = self._epoch_started = time.perf_counter()
        baseline = cast("RLVRModule", pl_module).baseline
        if trainer.is_global_zero and baseline and trainer.current_epoch == 0:
            self.console.print(f"before training: {_accuracies(baseline, pl_module)}")

    def _open(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.console.is_terminal and self._progress is None:
            columns = (
                TextColumn("epoch {task.completed}/{task.total}", table_column=_fixed(11)),
                BarColumn(bar_width=16),
                TextColumn("[bold]{task.fields[phase]:<9}", table_column=_fixed(9)),
                # On a narrow terminal these alone are cut, at their end.
                TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
                TimeElapsedColumn(table_column=_fixed(7)),
                TimeRemainingColumn(table_column=_fixed(7)),
            )
            self._progress = Progress(*columns, console=self.console, expand=True)
            self._progress.add_task("fit", total=trainer.max_epochs, phase=self._phase, numbers="")
            self._progress.start()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refresh the numbers; now and then show a response."""
        if not trainer.is_global_zero:
            return
        done, now = trainer.current_epoch + 1, time.perf_counter()
        for name, value in _times(cast("RLVRModule", pl_module)).items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value
        self._line = _numbers(cast("RLVRModule", pl_module), now - self._epoch_started)
        self._epoch_started = now
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done)
            self._refresh()
        else:
            self.console.print(f"epoch {done}/{trainer.max_epochs} {self._line}", soft_wrap=True)
        rollouts = cast("RolloutDataModule", trainer.datamodule).last_rollouts  # type: ignore[attr-defined]
        if self.every and done % self.every == 0 and rollouts:
            self.console.print(_sample_panel(rollouts[done % len(rollouts)], done))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line for each validation."""
        if trainer.is_global_zero and trainer.state.fn == "validate" and self._fitted:
            self.console.print(_summary(cast("RLVRModule", pl_module)))
        if trainer.is_global_zero and not trainer.sanity_checking and trainer.state.fn == "fit":
            evaluation = cast("RLVRModule", pl_module).evaluation
            told = (
                _accuracies(evaluation, pl_module) if evaluation else "not measured, as the replay is of another policy"
            )
            self.console.print(f"held-out after epoch {trainer.current_epoch + 1}: {told}", soft_wrap=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The table of before and after."""
        self._close()
        self._fitted = True
        if trainer.is_global_zero:
            module = cast("RLVRModule", pl_module)
            if module.evaluated_version == module.policy_version:
                self.console.print(_summary(module))
            minutes, seconds = divmod(int(time.perf_counter() - self._started), 60)
            where = f": {told(self._seconds)}" if self._seconds else ""
            self.console.print(f"trained for {minutes} min {seconds:02d} s{where}", soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _fixed(width: int) -> Column:
    """A column that keeps its width on a narrow terminal."""
    return Column(no_wrap=True, min_width=width)


def _accuracies(values: dict[str, float], module: Any) -> str:
    unjudged = f", {module.num_unjudged} responses without a verdict" if module.num_unjudged else ""
    return f"avg@{module.eval_samples} {values['avg']:.3f}, pass@{module.eval_samples} {values['pass']:.3f}{unjudged}"


def _numbers(module: RLVRModule, seconds: float) -> str:
    """The live line: reward, accuracy, entropy and clip fraction per part, speed, time."""
    metrics = module.epoch_metrics
    parts = module.objective.partitioner.parts
    shown = [f"reward {metrics.get('reward/mean', 0.0):.3f}", f"acc {metrics.get('rollout/accuracy', 0.0):.3f}"]
    for label, kind, digits in (("H", "entropy", 3), ("clip", "clip_frac", 4)):
        values = [(part, metrics.get(f"policy/{kind}/{part}")) for part in parts]
        written = [f"{part[:4]} {value:.{digits}f}" for part, value in values if value is not None]
        if written:
            shown.append(f"{label} {' '.join(written)}")
    tokens = metrics.get("rollout/responses", 0.0) * metrics.get("rollout/response_tokens", 0.0)
    shown.append(f"{tokens / max(seconds, 1e-9):,.0f} tok/s")
    # Where the time went; waiting is the idle time.
    shown.append(told(_times(module), least=0.05))
    return "  ".join(shown)


def _times(module: RLVRModule) -> dict[str, float]:
    """Seconds of the epoch's phases."""
    return {name.removeprefix(TIME): value for name, value in module.epoch_metrics.items() if name.startswith(TIME)}


def _sample_panel(rollout: Rollout, epoch: int) -> Panel:
    verdict = rollout.verdict
    if verdict is None:
        judged = f"[yellow]not judged: {rollout.kind} {escape(rollout.error or '')}[/]"
    else:
        word = "[green]right[/]" if verdict.correct else "[red]wrong[/]"
        gold = rollout.prompt.problem.answer
        # A program has no gold answer, and stands above already.
        judged = f"{word}, answer {escape(str(verdict.extracted))}, gold {escape(gold)}" if gold else word
    question = rollout.prompt.problem.messages[-1]["content"]
    body = f"[bold]{escape(question[-SHOWN:])}[/]\n{escape(rollout.text[:SHOWN])}\n{judged}"
    return Panel(body, title=f"a response of epoch {epoch}", title_align="left", expand=False)


def _summary(module: RLVRModule) -> Table:
    table = Table(title="held-out accuracy", title_justify="left")
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("avg", "pass"):
        before, after = module.baseline.get(name), module.evaluation.get(name)
        row = [f"{value:.3f}" if value is not None else "-" for value in (before, after)]
        change = f"{after - before:+.3f}" if before is not None and after is not None else "-"
        table.add_row(f"{name}@{module.eval_samples}", *row, change)
    return table
