"""The data module of `test benchmark=[...]`: its batches are names of benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
from torch.utils.data import DataLoader

from rlvr_lightning.evaluation.benchmarks.results import Measured
from rlvr_lightning.protocols import TrainedModule
from rlvr_lightning.rollout.benchmarks.files import write_measured
from rlvr_lightning.rollout.benchmarks.runner import BenchmarkRunner
from rlvr_lightning.rollout.synced import SyncedEngine


class BenchmarkData(L.LightningDataModule):
    """Benchmarks, one after the other, for a policy.

    Args:
        make_runner: given the number of ranks on this machine.
        engine: draws.
        output_dir: of the policy's results.
        policy: what it is.
    """

    def __init__(
        self,
        make_runner: Callable[[int], BenchmarkRunner],
        engine: SyncedEngine,
        output_dir: Path,
        policy: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.output_dir, self.policy = output_dir, policy
        self.measured: dict[str, Measured] = {}
        self.listeners: list[Callable[[str, int, int], None]] = []
        self._make_runner, self._engine = make_runner, engine
        self._runner: BenchmarkRunner | None = None

    def setup(self, stage: str) -> None:
        """Read the problems, before a weight is loaded."""
        assert self.trainer is not None
        if self._runner is None:
            self._runner = self._make_runner(self.trainer.num_devices)
            self._runner.progress += self.listeners

    def sync_engine(self) -> None:
        """Give the engine the policy's weights. Every rank must call it."""
        assert self.trainer is not None
        assert self._runner is not None
        module = cast(TrainedModule, self.trainer.lightning_module)
        self._engine.reserve(self._runner.longest)
        self._engine.sync(module, self.trainer.strategy.root_device)

    def test_dataloader(self) -> DataLoader[str]:
        """The benchmarks' names."""
        assert self._runner is not None
        return DataLoader(cast(Any, self._runner.names), batch_size=None)

    def measure(self, name: str) -> None:
        """Measure the policy on a benchmark. Every rank must call it."""
        assert self._runner is not None
        assert self.trainer is not None
        ranks = (self.trainer.global_rank, self.trainer.world_size)
        measured = self._runner.measure(name, self.output_dir, self.policy, ranks)
        if self.trainer.is_global_zero:
            write_measured(self.output_dir, measured, self.policy)
        self.measured[name] = measured

    def teardown(self, stage: str) -> None:
        """Free engine and workers."""
        if self._runner is not None:
            self._runner.close()
        self._engine.close()
