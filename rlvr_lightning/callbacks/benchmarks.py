"""Benchmarks while a run learns: measured every few optimizer steps, apart from validation and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.evaluation.benchmarks.results import Measured
from rlvr_lightning.rollout.benchmarks.files import write_measured
from rlvr_lightning.rollout.benchmarks.runner import BenchmarkRunner

if TYPE_CHECKING:
    from rlvr_lightning.datamodule import RolloutDataModule
    from rlvr_lightning.module import RLVRModule


class BenchmarkCallback(Callback):
    """Measures before the first optimizer step, after every few of them, and after the last.

    What is measured changes nothing that is learned: responses have seeds of their own, and the engine is given the
    policy's newest weights before each rollout phase in any case.

    Args:
        make_runner: given the number of ranks on this machine.
        every_n_steps: optimizer steps between two measurements.
        policy: what else identifies the policy, for the files.

    Raises:
        ConfigError: the number is not positive.
    """

    def __init__(
        self, make_runner: Callable[[int], BenchmarkRunner], every_n_steps: int, policy: dict[str, Any]
    ) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"evaluation.every_n_steps must be at least 1; got {every_n_steps}")
        self.every_n_steps, self.policy = every_n_steps, policy
        self._make_runner = make_runner
        self._runner: BenchmarkRunner | None = None
        self._measured = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the problems, before a weight is loaded."""
        if stage == "fit" and self._runner is None:
            self._runner = self._make_runner(trainer.num_devices)
            _data(trainer).reserve(self._runner.longest)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Between two steps: stopped here, the run goes on with the same measurement."""
        version = cast("RLVRModule", pl_module).policy_version
        if version % self.every_n_steps == 0 and version != self._measured:
            self._measure(trainer, cast("RLVRModule", pl_module))
            _data(trainer).phase("updating")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where it arrived."""
        self._measure(trainer, cast("RLVRModule", pl_module))

    def _measure(self, trainer: L.Trainer, module: RLVRModule) -> None:
        assert self._runner is not None
        data, version = _data(trainer), module.policy_version
        assert data.output_dir is not None
        folder = benchmark_folder(data.output_dir, version)
        for name in self._runner.names:
            data.sync_engine()
            data.phase("sampling")
            measured = self._runner.measure(name, folder, {**self.policy, "policy_version": version}, data.ranks)
            if trainer.is_global_zero:
                write_measured(folder, measured, {**self.policy, "policy_version": version})
                Console().print(f"after step {version}: {told(measured)}", soft_wrap=True)
            for logger in trainer.loggers:
                logger.log_metrics(_metrics(measured), step=version)
        self._measured = version

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """End the workers that judge."""
        if self._runner is not None:
            self._runner.close()


def benchmark_folder(output_dir: Path, version: int) -> Path:
    """Where a run's policy after `version` optimizer steps has its results."""
    return output_dir / "benchmarks" / f"step_{version:08}"


def told(measured: Measured) -> str:
    """A line: averages with their standard errors."""
    return ", ".join(f"{one.name} {one.value:.3f} ± {one.standard_error:.3f}" for one in measured.estimates)


def _metrics(measured: Measured) -> dict[str, float]:
    at = f"benchmark/{measured.name}"
    return {
        f"{at}/avg_at_k": measured.average.value,
        f"{at}/avg_at_k_standard_error": measured.average.standard_error,
        f"{at}/pass_at_k": measured.passing.value,
        f"{at}/response_tokens": measured.tokens,
        f"{at}/truncated": measured.truncated,
    }


def _data(trainer: L.Trainer) -> RolloutDataModule:
    return cast("RolloutDataModule", trainer.datamodule)  # type: ignore[attr-defined]
