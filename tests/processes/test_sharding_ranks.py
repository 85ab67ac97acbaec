"""FSDP2 over real gloo ranks is one process: weights, gradients, adapters, and each setting does what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from objectives import MEAN, OBJECTIVES
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from rlvr_lightning.models.policy import Policy
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.objective.scoring import Scorer
from rlvr_lightning.objective.step import Step
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.training.optim import gradient_norm
from rlvr_lightning.training.sharding import ShardSettings, make_mesh, meet, reduces_once, shard
from rlvr_lightning.types import StepBatch, TokenBatch

pytestmark = pytest.mark.slow

ROWS, LENGTH, CPU = 12, 24, torch.device("cpu")
# Its name since torch 2.13, and before.
REDUCE_SCATTER = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
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


def loading(ranks: Ranks) -> dict[str, Any]:
    policy, reference = ranks.policy(), ranks.policy(trainable=False)
    local = sum(p.to_local().numel() for p in policy.parameters())  # type: ignore[attr-defined]
    whole = sum(p.numel() for p in policy.parameters())
    return {
        "weights": weights(policy),
        "reference": weights(reference),
        "share": local / whole,
        "fingerprint": policy.fingerprint,
        "adapted_fingerprint": ranks.policy(adapted("lora")).fingerprint,
    }


def learning(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, settings in {
        "float32": {},
        "bfloat16": {"precision": "bf16-mixed"},
        "offloaded": {"cpu_offload": True},
    }.items():
        policy = ranks.policy(**settings)  # type: ignore[arg-type]
        found[name] = {"loss": ranks.learn(policy), "gradients": gradients(policy)}
        parameters = list(policy.parameters())
        norm = gradient_norm(parameters)
        torch.nn.utils.clip_grads_with_norm_(parameters, 0.5 * float(norm), norm)
        found[name] |= {"norm": norm, "clipped": gradient_norm(parameters)}
        offload = policy._get_fsdp_state()._fsdp_param_group.offload_policy  # type: ignore[operator]
        found[name]["offloads"] = isinstance(offload, CPUOffloadPolicy)
        assert {p.dtype for p in parameters} == {torch.float32}
        next(iter(parameters)).grad.mul_(torch.nan)  # type: ignore[union-attr]
        found[name]["broken"] = gradient_norm(parameters)
    return found


@dataclass(frozen=True)
class Witness:
    """What a statistic is given, whatever the policy computes in."""

    name: ClassVar[str] = "witness"
    passes: ClassVar[tuple[str, ...]] = ("update",)
    differentiable: ClassVar[bool] = False

    def __call__(self, logprobs: Tensor, token_ids: Tensor, old: Any) -> Tensor:
        assert logprobs.dtype == torch.float32
        return old["witness"].double()


def casting(ranks: Ranks) -> dict[str, Any]:
    part = batch(slice(0, 2))
    numbers = torch.rand(part.advantages.shape, generator=torch.Generator().manual_seed(0))
    policy = ranks.policy(precision="bf16-mixed")
    _, found = policy(replace(part, old_statistics={"witness": numbers}), 1.0, (Witness(),))
    return {"same": torch.equal(found["witness"], numbers.double())}


def recomputing(ranks: Ranks) -> dict[str, Any]:
    policy, runs = ranks.policy(source(gradient_checkpointing=2)), [0] * 4
    for index, layer in enumerate(policy.causal_lm.get_decoder().layers):
        layer.self_attn.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    ranks.learn(policy)
    return {"gradients": gradients(policy), "runs": runs}


def adapters(ranks: Ranks) -> dict[str, Any]:
    found = {}
    for kind in ADAPTED:
        policy = ranks.policy(adapted(kind))
        for parameter in policy.parameters():
            local = parameter.to_local()  # type: ignore[attr-defined]
            assert local.untyped_storage().nbytes() == 4 * local.numel(), "a shard holds on to more than itself"
        begun = {name: p.full_tensor() for name, p in policy.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]
        move(policy)
        ranks.learn(policy)
        with policy.adapters_off(), torch.no_grad():
            off = policy(batch(slice(0, 4)), 1.0)[0]
        found[kind] = {"begun": begun, "gradients": gradients(policy), "merged": weights(policy), "off": off}
    return found


@torch.no_grad()
def move(policy: Policy) -> None:
    """What training does to adapters."""
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1)


def meeting(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for when in ("step", "micro_batch", "auto"):
        settings = ShardSettings(reduce_gradients=when)  # type: ignore[arg-type]
        policy, calls = ranks.policy(reduce_gradients=when), [0]
        with counted(REDUCE_SCATTER, calls):
            loss = ranks.learn(policy, 3, settings)
        found[when] = {"loss": loss, "gradients": gradients(policy), "calls": calls[0]}
    return found


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


def resharding(ranks: Ranks) -> dict[str, Any]:
    found = {}
    for keep in (True, False):
        policy = ranks.policy(reshard_after_forward=keep, precision="bf16-mixed")
        layer, before = policy.causal_lm.get_decoder().layers[0], weights(policy)
        with torch.no_grad():
            policy(batch(slice(0, 2)), 1.0)
        weight = layer.mlp.up_proj.weight
        gathered = not isinstance(weight, DTensor)
        after = weights(policy)
        found[keep] = {"gathered": gathered, "same": all(torch.equal(after[name], w) for name, w in before.items())}
    return found


def waiting(ranks: Ranks) -> dict[str, Any]:
    """Plan an off-policy step of two micro-batches, of which the last rank has no rows for the second."""
    policy = ranks.policy()
    scorer = Scorer(policy, ranks.policy(trainable=False), OBJECTIVES["archer"](MEAN), 1.0)
    scored = scorer.score(batch(slice(0, 3)), CPU, on_policy=False)
    second = collate([], 0, packed=False) if ranks.rank == ranks.world - 1 else scored
    planner = scorer.planner(StepBatch((scored, second)), Step())
    with torch.no_grad():
        stats = scorer.stats(scored)
    plans = [planner.plan(place, stats) for place in range(2)]
    return {"plans": len(plans), "loss": ranks.learn(policy)}


def hybrid(ranks: Ranks) -> dict[str, Any]:
    settings = ShardSettings(shard_over="node", reduce_gradients="micro_batch")
    policy, scattered, summed = ranks.policy(shard_over="node"), [0], [0]
    with counted(REDUCE_SCATTER, scattered), counted("all_reduce", summed):
        loss = ranks.learn(policy, 3, settings)
    placements = next(policy.parameters()).placements  # type: ignore[attr-defined]
    local = sum(p.to_local().numel() for p in policy.parameters())  # type: ignore[attr-defined]
    return {
        "loss": loss,
        "gradients": gradients(policy),
        "norm": gradient_norm(list(policy.parameters())),
        "placements": str(placements),
        "share": local / sum(p.numel() for p in policy.parameters()),
        "weights": weights(policy),
        "calls": (scattered[0], summed[0]),
        "adapted": adapters(ranks),
    }


TWO = (loading, learning, casting, waiting, recomputing, adapters, meeting, resharding)


def work(rank: int, world: int, nodes: int, checks: tuple[Callable[[Ranks], Any], ...], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=LIMIT)
    ranks = Ranks(rank, world, nodes)
    torch.save({check.__name__: check(ranks) for check in checks}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def spawned(world: int, nodes: int, checks: tuple[Callable[[Ranks], Any], ...], folder: Path) -> list[dict[str, Any]]:
    mp.spawn(work, (world, nodes, checks, folder), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawned(2, 1, TWO, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return spawned(1, 1, (learning,), tmp_path_factory.mktemp("one"))[0]["learning"]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawned(4, 2, (hybrid,), tmp_path_factory.mktemp("four"))


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


def test_each_rank_keeps_its_half_of_the_files_weights(two: list[dict[str, Any]]) -> None:
    policy = Policy(source())
    expected = weights(policy)
    for found in (rank["loading"] for rank in two):
        for kind in ("weights", "reference"):
            assert found[kind].keys() == expected.keys()
            assert all(torch.equal(found[kind][name], weight) for name, weight in expected.items())
        assert found["share"] == pytest.approx(0.5, abs=0.01)
        assert found["fingerprint"] == found["adapted_fingerprint"] == policy.fingerprint


def test_two_ranks_in_half_precision_learn_as_one(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    alone_in_half, exact = one["bfloat16"], gradients(alone()[0])
    for found in (rank["learning"]["bfloat16"] for rank in two):
        assert float(found["loss"]) == pytest.approx(float(alone_in_half["loss"]), rel=1e-2)
        assert distance(found["gradients"], alone_in_half["gradients"]) < 1e-2
        assert float(found["norm"]) == pytest.approx(float(alone_in_half["norm"]), rel=1e-2)
        # It is half precision, and of the right size.
        assert 1e-3 < distance(found["gradients"], exact) < 0.1


@pytest.mark.parametrize("precision", ["float32", "offloaded"])
def test_two_ranks_learn_as_one(precision: str, two: list[dict[str, Any]]) -> None:
    bound = 1e-6
    policy, loss = alone()
    expected = gradients(policy)
    norm = float(gradient_norm(list(policy.parameters())))
    for found in (rank["learning"][precision] for rank in two):
        assert float(found["loss"]) == pytest.approx(float(loss), rel=bound)
        assert distance(found["gradients"], expected) < bound
        assert float(found["norm"]) == pytest.approx(norm, rel=bound)
        assert float(found["clipped"]) == pytest.approx(0.5 * norm, rel=bound)
        assert not torch.isfinite(found["broken"])
        assert found["offloads"] == (precision == "offloaded")


def test_a_rank_without_rows_for_a_micro_batch_is_waited_for(two: list[dict[str, Any]]) -> None:
    _, loss = alone()
    for found in (rank["waiting"] for rank in two):
        assert found["plans"] == 2
        assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-6)


def test_numbers_of_the_old_policy_stay_float32(two: list[dict[str, Any]]) -> None:
    assert [rank["casting"]["same"] for rank in two] == [True, True]


def test_layers_are_recomputed_under_sharding(two: list[dict[str, Any]]) -> None:
    expected = gradients(alone()[0])
    for found in (rank["recomputing"] for rank in two):
        assert found["runs"] == [2, 1, 2, 1]
        assert distance(found["gradients"], expected) < 1e-6


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapters_are_those_of_one_process(kind: str, two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    torch.manual_seed(5)
    fresh = Policy(adapted(kind))
    begun = {name: p.detach() for name, p in fresh.named_parameters() if p.requires_grad}
    policy, _ = alone(adapted(kind), moved=True)
    expected, merged = gradients(policy), weights(policy)
    with policy.adapters_off(), torch.no_grad():
        off = policy(batch(slice(0, 4)), 1.0)[0]
    for found in [rank["adapters"][kind] for rank in two] + [rank["hybrid"]["adapted"][kind] for rank in four]:
        assert found["begun"].keys() == begun.keys()
        # A norm over a row may be rounded another way.
        assert all((found["begun"][name] - value).abs().max() < 1e-6 for name, value in begun.items())
        assert distance(found["gradients"], expected) < 2e-6
        assert all((found["merged"][name] - weight).abs().max() < 1e-5 for name, weight in merged.items())
        torch.testing.assert_close(found["off"], off, rtol=0, atol=1e-5)


def test_gradients_meet_once_a_step_or_after_each_micro_batch(two: list[dict[str, Any]]) -> None:
    expected = gradients(alone()[0])
    groups = 5  # four layers and the root
    for found in (rank["meeting"] for rank in two):
        assert {when: found[when]["calls"] for when in found} == {
            "step": groups,
            "micro_batch": 3 * groups,
            "auto": groups,
        }
        assert all(distance(found[when]["gradients"], expected) < 1e-6 for when in found)


def test_layers_stay_gathered_only_where_they_may(two: list[dict[str, Any]]) -> None:
    for found in (rank["resharding"] for rank in two):
        assert found[True] == {"gathered": False, "same": True}
        assert found[False] == {"gathered": True, "same": True}


def test_two_nodes_of_two_ranks_hold_the_whole_each(four: list[dict[str, Any]]) -> None:
    policy, loss = alone()
    expected, kept = gradients(policy), weights(policy)
    for found in (rank["hybrid"] for rank in four):
        assert found["placements"] == "(Replicate(), Shard(dim=0))"
        assert found["share"] == pytest.approx(0.5, abs=0.01)
        assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-6)
        assert float(found["norm"]) == pytest.approx(float(gradient_norm(list(policy.parameters()))), rel=1e-6)
        assert distance(found["gradients"], expected) < 1e-6
        assert all(torch.equal(found["weights"][name], weight) for name, weight in kept.items())
        # Inside a node after each micro-batch, across nodes once a step (and the sum of the loss).
        assert found["calls"] == (15, 5 + 1)


def test_auto_reduces_once_where_the_gradient_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(source())
    size = 4 * sum(parameter.numel() for parameter in policy.parameters())
    for memory, once in ((8 * size, True), (8 * size - 8, False)):
        monkeypatch.setattr("rlvr_lightning.training.sharding.memory_of", lambda device, memory=memory: memory)
        assert reduces_once(policy, ShardSettings(), CPU) == once
        assert reduces_once(policy, ShardSettings(reduce_gradients="step"), CPU)
        assert not reduces_once(policy, ShardSettings(reduce_gradients="micro_batch"), CPU)
