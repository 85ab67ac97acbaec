"""FSDP2 on the policy: decoder layers one by one, the rest with the root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

if TYPE_CHECKING:
    from rlvr_lightning.models.policy import Policy


def shard(policy: Policy, device_mesh: DeviceMesh | None) -> None:
    """Shard in place over the mesh's data-parallel dimension; without a mesh do nothing."""
    if device_mesh is None:
        return
    mesh = device_mesh["data_parallel"]
    for layer in policy.causal_lm.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
