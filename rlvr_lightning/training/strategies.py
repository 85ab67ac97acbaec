"""How a run is spread over devices: `single`, `ddp` or `fsdp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
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

    def __init__(self, *, cpu_offload: bool = False) -> None:
        # Gradients in the host's memory are summed there.
        backend = "cpu:gloo,cuda:nccl" if cpu_offload and torch.cuda.is_available() else None
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
            timeout=COLLECTIVE_LIMIT,
        )
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        """Start the process group and make the mesh, once Lightning knows its devices."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def model_to_device(self) -> None:
        """Move what is not sharded; offloaded shards stay in the host's memory."""
        assert self.model is not None
        policy = self.model._modules.pop("policy") if self.cpu_offload else None
        super().model_to_device()
        if policy is not None:
            self.model._modules["policy"] = policy


def make_strategy(name: StrategyName, *, cpu_offload: bool = False) -> Strategy | str:
    """Lightning's strategy of that name.

    Args:
        name: `single` process, `ddp` (a replica on each rank) or `fsdp` (FSDP2: weights sharded over the ranks).
        cpu_offload: with `fsdp`, shards lie in the host's memory.

    Raises:
        ConfigError: unknown.
    """
    if name == "single":
        return "auto"
    if name == "ddp":
        return ReplicatedStrategy(find_unused_parameters=False, timeout=COLLECTIVE_LIMIT)
    if name == "fsdp":
        return ShardedStrategy(cpu_offload=cpu_offload)
    raise ConfigError(f"strategy.name must be single, ddp or fsdp; got {name!r}")
