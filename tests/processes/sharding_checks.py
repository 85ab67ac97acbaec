"""What each rank does with sharded policies, and tells of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from objectives import MEAN, OBJECTIVES
from sharded import ADAPTED, CPU, Ranks, adapted, batch, counted, gradients, move, source, weights
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from rlvr_lightning.objective.scoring import Scorer
from rlvr_lightning.objective.step import Step
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.training.optim import gradient_norm
from rlvr_lightning.training.sharding import ShardSettings
from rlvr_lightning.types import StepBatch

# Its name since torch 2.13, and before.
REDUCE_SCATTER = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"


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


def meeting(ranks: Ranks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for when in ("step", "micro_batch", "auto"):
        settings = ShardSettings(reduce_gradients=when)  # type: ignore[arg-type]
        policy, calls = ranks.policy(reduce_gradients=when), [0]
        with counted(REDUCE_SCATTER, calls):
            loss = ranks.learn(policy, 3, settings)
        found[when] = {"loss": loss, "gradients": gradients(policy), "calls": calls[0]}
    return found


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
