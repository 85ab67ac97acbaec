"""A run of ours that takes a step when it is told to: `python -m benchmarks.training ENGINE OVERRIDES...`.

The engine `random` draws nothing (`random_engine.py`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from benchmarks.turns import answer, peak, wait
from rlvr_lightning.config.build import build_run
from rlvr_lightning.config.compose import compose

PARTS = ("sampling", "verifying", "syncing", "scoring", "updating", "other")


class TakesTurns(Callback):
    """An epoch is a step is a turn: everything between the ends of two epochs, sampling and weights' way to the engine included."""

    def __init__(self) -> None:
        self._began = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first turn starts the engine."""
        self._next(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One turn is over."""
        seconds, metrics = time.perf_counter() - self._began, pl_module.epoch_metrics
        parts = {name: float(metrics.get(f"perf/time/{name}", 0.0)) for name in PARTS}  # type: ignore[union-attr, operator]
        if trainer.is_global_zero:
            answer(seconds, peak(), **parts)
        self._next(trainer)

    def _next(self, trainer: L.Trainer) -> None:
        # Other ranks wait for the first one.
        if trainer.is_global_zero and not wait():
            os._exit(0)
        self._began = time.perf_counter()


def main(arguments: Sequence[str]) -> None:
    """Train until nobody asks for another step."""
    engine, *overrides = arguments
    config = compose([*overrides, f"output_dir={tempfile.mkdtemp()}"])
    if engine == "random":
        config.engine = OmegaConf.create({"_target_": "benchmarks.random_engine.RandomEngine"})
    run = build_run(config)
    callbacks: list[Any] = run.trainer.callbacks  # type: ignore[attr-defined]
    # Screen and tables are part of a step; this comes behind them.
    callbacks.append(TakesTurns())
    run.fit()


if __name__ == "__main__":
    main(sys.argv[1:])
