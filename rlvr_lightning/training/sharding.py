"""FSDP2 on the policy: over which ranks its weights are shared out, what is cast, and when gradients meet."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.training.precision import Precision, compute_dtype

if TYPE_CHECKING:
    from rlvr_lightning.models.policy import Policy

ShardOver = Literal["all", "node"]
ReduceGradients = Literal["auto", "step", "micro_batch"]
# Share of a device's memory the whole model's gradient may take, where `auto` decides.
GRADIENT_SHARE = 1 / 8


@dataclass(frozen=True)
class ShardSettings:
    """What FSDP2 does with the weights.

    Args:
        precision: what is computed in; shards, reductions and optimizer state are float32. The Trainer's own precision
            stays 32-true: FSDP2 casts what it gathers.
        cpu_offload: shards, their gradients and the optimizer's state lie in the host's memory; the optimizer steps
            there.
        reshard_after_forward: free a layer's gathered weights after its forward pass, and gather them once more for the
            backward pass. Without it a step gathers half as often and holds the whole model in the compute dtype.
        shard_over: `all` ranks, or the ranks of each `node`, which then holds the whole: gathering stays inside a node,
            and gradients are summed across.
        reduce_gradients: over the ranks once a `step`, for which a rank holds the whole gradient in float32 while it
            goes through its micro-batches, or after each `micro_batch`. `auto` is once a step where the whole gradient
            takes at most an eighth of the device's memory.

    Raises:
        ConfigError: an unknown value.
    """

    precision: Precision = "32-true"
    cpu_offload: bool = False
    reshard_after_forward: bool = True
    shard_over: ShardOver = "all"
    reduce_gradients: ReduceGradients = "auto"

    def __post_init__(self) -> None:
        compute_dtype(self.precision)
        for name in ("cpu_offload", "reshard_after_forward"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"strategy.{name} must be true or false; got {getattr(self, name)!r}")
        for name, known in (("shard_over", ShardOver), ("reduce_gradients", ReduceGradients)):
            if getattr(self, name) not in get_args(known):
                raise ConfigError(
                    f"strategy.{name} must be one of {', '.join(get_args(known))}; got {getattr(self, name)}"
                )


def make_mesh(device_mesh: DeviceMesh | None, settings: ShardSettings, num_nodes: int) -> DeviceMesh | None:
    """The ranks weights are shared out over; two dimensions (nodes, ranks of a node) where each node holds the whole.

    Args:
        device_mesh: the strategy's, with a dimension of all ranks; None without FSDP2.
        settings: say over what.
        num_nodes: of the run, with equally many ranks each.
    """
    if device_mesh is None:
        return None
    mesh = device_mesh["data_parallel"]
    if settings.shard_over == "all":
        return mesh
    shape = (num_nodes, mesh.size() // num_nodes)
    return init_device_mesh(mesh.device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard(policy: Policy, mesh: DeviceMesh, settings: ShardSettings) -> None:
    """Share the policy's weights out over the mesh, in place: decoder layers one by one, the rest with the root."""
    dtype = compute_dtype(settings.precision)
    casts = MixedPrecisionPolicy(None if dtype == torch.float32 else dtype, torch.float32)
    shared: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": (
            CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if settings.cpu_offload else OffloadPolicy()
        ),
    }
    for layer in policy.causal_lm.get_decoder().layers:
        fully_shard(layer, mp_policy=casts, reshard_after_forward=settings.reshard_after_forward, **shared)
    # A micro-batch holds float32 numbers of the policy at the start of the update: what the root is given stays as it is.
    fully_shard(policy, mp_policy=replace(casts, cast_forward_inputs=False), reshard_after_forward=True, **shared)


def meet(policy: Policy, settings: ShardSettings, device: torch.device, *, last: bool) -> None:
    """Say whether the coming backward pass sums gradients over the ranks.

    Args:
        policy: sharded.
        settings: say when.
        device: the ranks'; its memory decides where they say `auto`.
        last: the pass is the last one of the optimizer step.
    """
    root = cast(FSDPModule, policy)
    root.set_requires_gradient_sync(last or not reduces_once(policy, settings, device))
    # Across nodes the sums of a node meet once a step in any case.
    root.set_requires_all_reduce(last)


def reduces_once(policy: Policy, settings: ShardSettings, device: torch.device) -> bool:
    """Whether gradients are summed over the ranks once an optimizer step."""
    if settings.reduce_gradients != "auto":
        return settings.reduce_gradients == "step"
    gradient = sum(4 * parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    return gradient <= GRADIENT_SHARE * memory_of(device)


def memory_of(device: torch.device) -> float:
    """All memory of a rank's device [bytes]; on the CPU its share of the host's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
