"""How a run is spread over devices: `single`, `ddp` or `fsdp`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlvr_lightning.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

StrategyName = Literal["single", "ddp", "fsdp"]


def make_strategy(name: StrategyName, world_size: int) -> Strategy | str:
    """Lightning's strategy of that name.

    Args:
        name: `single` process, `ddp` (a replica on each rank) or `fsdp` (FSDP2: weights sharded over the ranks).
        world_size: ranks in all.

    Raises:
        ConfigError: unknown, or `single` with several ranks.
    """
    if name == "single":
        if world_size != 1:
            raise ConfigError(f"strategy=single runs one process; got {world_size}: choose ddp or fsdp")
        return "auto"
    if name == "ddp":
        from lightning.pytorch.strategies import DDPStrategy

        return DDPStrategy(find_unused_parameters=False)
    if name == "fsdp":
        from lightning.pytorch.strategies import ModelParallelStrategy

        # "auto" would mean tensor parallelism inside a node.
        return ModelParallelStrategy(
            data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    raise ConfigError(f"strategy.name must be single, ddp or fsdp; got {name!r}")
