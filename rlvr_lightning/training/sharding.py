"""FSDP2 on the policy: decoder layers one by one, the rest with the root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from rlvr_lightning.training.precision import Precision, compute_dtype

if TYPE_CHECKING:
    from rlvr_lightning.models.policy import Policy


@dataclass(frozen=True)
class ShardSettings:
    """What FSDP2 does with the weights.

    Args:
        precision: what is computed in; shards, reductions and optimizer state are float32. The Trainer's own precision
            stays 32-true: FSDP2 casts what it gathers.

    Raises:
        ConfigError: an unknown precision.
    """

    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        compute_dtype(self.precision)


def shard(policy: Policy, device_mesh: DeviceMesh | None, settings: ShardSettings) -> None:
    """Shard in place over the mesh's data-parallel dimension; without a mesh do nothing."""
    if device_mesh is None:
        return
    mesh = device_mesh["data_parallel"]
    dtype = compute_dtype(settings.precision)
    casts = MixedPrecisionPolicy(None if dtype == torch.float32 else dtype, torch.float32)
    for layer in policy.causal_lm.get_decoder().layers:
        fully_shard(layer, mesh=mesh, mp_policy=casts)
    # What the root gathers is freed after its forward pass as well: a pass for scoring has no backward pass to do it,
    # and the weights handed to engines must be the float32 shards.
    fully_shard(policy, mesh=mesh, mp_policy=casts, reshard_after_forward=True)
