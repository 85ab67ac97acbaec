"""Ranks with sharded policies, and the one process they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.training.sharding import ShardSettings, make_mesh, meet, shard
from rlvr_lightning.types import TokenBatch

ROWS, LENGTH, CPU = 12, 24, torch.device("cpu")
LIMIT = timedelta(minutes=2)
ADAPTED = {"lora": {}, "dora": {"use_dora": True}}


def source(**settings: Any) -> ModelSource:
    return ModelSource(**settings)


def adapted(kind: str) -> ModelSource:
    from peft import LoraConfig

    config = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM", **ADAPTED[kind])
    return ModelSource(lora=config)


def batch(rows: slice) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 19, (ROWS, LENGTH), generator=generator)[rows]
    advantages = torch.randn(ROWS, LENGTH - 1, generator=generator)[rows]
    zeros = torch.zeros_like(advantages)
    return TokenBatch(ids, torch.ones_like(advantages, dtype=torch.bool), advantages, zeros, zeros)


class Ranks:
    """What a check is given: this rank's place, and sharded policies."""

    def __init__(self, rank: int, world: int, nodes: int = 1) -> None:
        self.rank, self.world, self.nodes = rank, world, nodes
        self.all = init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))

    def policy(self, model: ModelSource | None = None, *, trainable: bool = True, **settings: Any) -> Policy:
        torch.manual_seed(5)
        shared = ShardSettings(**settings)
        mesh = make_mesh(self.all, shared, self.nodes)
        assert mesh is not None
        share = partial(shard, mesh=mesh, settings=shared)
        return Policy(model or source(), trainable=trainable, share=share)

    def learn(self, policy: Policy, micros: int = 1, settings: ShardSettings | None = None) -> Tensor:
        """Gradients of this rank's rows, in micro-batches; the loss over all ranks."""
        mine, total = batch(slice(self.rank, None, self.world)), torch.zeros(())
        for index, rows in enumerate(torch.arange(len(mine.input_ids)).chunk(micros)):
            part = mine.map(lambda tensor, rows=rows: tensor[rows])
            if settings is not None:
                meet(policy, settings, CPU, last=index == micros - 1)
            loss = loss_of(policy, part)
            (loss * self.world).backward()
            total += loss.detach()
        dist.all_reduce(total)
        return total


def loss_of(policy: Policy, part: TokenBatch) -> Tensor:
    logprobs, _ = policy(part, 1.0)
    assert logprobs.dtype == torch.float32
    return -(logprobs * part.advantages).sum() / (ROWS * LENGTH)


def gradients(policy: Policy) -> dict[str, Tensor]:
    found = {}
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32
            whole = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
            found[name] = whole.clone()
    return found


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in policy.full_weights()}


@torch.no_grad()
def move(policy: Policy) -> None:
    """What training does to adapters."""
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1)


def alone(model: ModelSource | None = None, *, moved: bool = False) -> tuple[Policy, Tensor]:
    torch.manual_seed(5)
    policy = Policy(model or source())
    if moved:
        move(policy)
    loss = loss_of(policy, batch(slice(None)))
    loss.backward()
    return policy, loss.detach()


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, as a share of their norm."""
    assert found.keys() == expected.keys()
    apart = sum(float((found[name] - value).double().square().sum()) for name, value in expected.items())
    return (apart / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5


class counted:  # noqa: N801 - reads as a verb
    """Count the calls of a collective."""

    def __init__(self, name: str, calls: list[int]) -> None:
        self.name, self.calls, self.original = name, calls, getattr(dist, name)

    def __enter__(self) -> None:
        def collective(*arguments: Any, **named: Any) -> Any:
            self.calls[0] += 1
            return self.original(*arguments, **named)

        setattr(dist, self.name, collective)

    def __exit__(self, *_: object) -> None:
        setattr(dist, self.name, self.original)


def work(rank: int, world: int, nodes: int, checks: tuple[Callable[[Ranks], Any], ...], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=LIMIT)
    ranks = Ranks(rank, world, nodes)
    torch.save({check.__name__: check(ranks) for check in checks}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def spawned(world: int, nodes: int, checks: tuple[Callable[[Ranks], Any], ...], folder: Path) -> list[dict[str, Any]]:
    mp.spawn(work, (world, nodes, checks, folder), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
