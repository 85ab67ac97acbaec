"""How a run is spread over devices: `single`, `ddp` or `fsdp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.training.launcher import COLLECTIVE_LIMIT, Watched

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

StrategyName = Literal["single", "ddp", "fsdp"]


class ReplicatedStrategy(Watched, DDPStrategy):
    """A replica of the policy on each rank."""


class ShardedStrategy(Watched, ModelParallelStrategy):
    """FSDP2 over all ranks there turn out to be; "auto" would mean tensor parallelism inside a node."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=COLLECTIVE_LIMIT)

    def setup_environment(self) -> None:
        """Start the process group and make the mesh, once Lightning knows its devices."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def make_strategy(name: StrategyName) -> Strategy | str:
    """Lightning's strategy of that name.

    Args:
        name: `single` process, `ddp` (a replica on each rank) or `fsdp` (FSDP2: weights sharded over the ranks).

    Raises:
        ConfigError: unknown.
    """
    if name == "single":
        return "auto"
    if name == "ddp":
        return ReplicatedStrategy(find_unused_parameters=False, timeout=COLLECTIVE_LIMIT)
    if name == "fsdp":
        return ShardedStrategy()
    raise ConfigError(f"strategy.name must be single, ddp or fsdp; got {name!r}")
