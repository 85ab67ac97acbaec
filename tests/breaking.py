"""Real runs, broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from training import SMALL

from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose

# Three epochs of four optimizer steps, measured after the second and the last.
RUN = (*SMALL, "conf=archer", "rollout.prompts_per_step=4", "rollout.passes=2", "trainer.max_epochs=3")


class BrokenError(RuntimeError):
    """Any error in the middle of a run."""


class Break(Callback):
    """Breaks the run at one moment: before a step, or within the first validation of the fit, or while sampling."""

    def __init__(self, error: BaseException, version: int, moment: str = "step") -> None:
        self.error, self.version, self.moment = error, version, moment

    def _at(self, moment: str, trainer: L.Trainer) -> None:
        module: Any = trainer.lightning_module
        if moment == self.moment and module.policy_version == self.version and not trainer.sanity_checking:
            raise self.error

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.datamodule.phase_listeners.append(lambda phase: self._at(phase, trainer))  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._at("step", trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self._at("validation", trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        self._at("within a step", trainer)


def broken(folder: Path, callback: Callback, *overrides: str) -> None:
    build_run(compose([*RUN, *overrides, f"output_dir={folder}"]), [callback]).fit()
