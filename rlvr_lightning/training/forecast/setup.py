"""A run's settings as far as memory and work depend on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlvr_lightning.models.shapes import ModelShape

GIB = 2**30
FLOAT, HALF = 4, 2


@dataclass(frozen=True)
class EngineSetup:
    """What draws the responses.

    Args:
        kind: `vllm` (in the trainer's process) or `transformers`.
        number_bytes: of a weight and of a cached key [bytes].
        share: of the device's memory that vLLM takes; unused on the CPU.
        cpu_cache: vLLM's cache on the CPU [bytes].
        batch_size: responses drawn at a time by transformers.
    """

    kind: Literal["vllm", "transformers"]
    number_bytes: int
    share: float = 0.0
    cpu_cache: float = 0.0
    batch_size: int = 256


@dataclass(frozen=True)
class RolloutSetup:
    """How many responses, and how long.

    Args:
        prompts_per_epoch, prompts_per_step, passes, group_size, generation_batches: as in `rollout`.
        prompt_tokens, response_tokens: at most, of one response [tokens].
        max_epochs: rollout phases.
    """

    prompts_per_epoch: int
    prompts_per_step: int
    passes: int
    group_size: int
    generation_batches: int
    prompt_tokens: int
    response_tokens: int
    max_epochs: int

    @property
    def length(self) -> int:
        """Of the longest sequence [tokens]."""
        return self.prompt_tokens + self.response_tokens

    @property
    def steps(self) -> int:
        """Optimizer steps of a phase."""
        return self.prompts_per_epoch // self.prompts_per_step * self.passes


@dataclass(frozen=True)
class Setup:
    """Everything the forecast reads.

    Args:
        shape: of the model.
        accelerator: `gpu` or `cpu`.
        device_memory: of a GPU, or what this host has to spare for each rank [bytes]; None where it is not known.
        host_memory: what a host has to spare for all its ranks [bytes]; None where it is not known.
        devices, num_nodes: ranks of a node; nodes.
        strategy: `single`, `ddp` or `fsdp`.
        shard_over: ranks the weights are cut into under fsdp: `all`, or those of a `node`.
        reshard: gathered layers are dropped after the forward pass (fsdp).
        reduce: when gradients meet (fsdp): once a `step`, after each `micro_batch`, or `auto`.
        gradient_room: how large a whole gradient `auto` holds for that [bytes].
        cpu_offload: weights, gradients and optimizer state live in the host's memory (fsdp).
        half: computed in bfloat16; weights and optimizer state are float32 always.
        recompute: every so many layers one is computed again in the backward pass; 0 for none, 1 for all.
        attention: the backend.
        packed: responses share a row.
        micro_batch_tokens: in memory at a time [tokens].
        optimizer: its name.
        adapter_rank: of LoRA; None where all weights are trained.
        adapter_targets: of LoRA.
        reference: a frozen copy of the model stands beside the policy.
        statistics: numbers kept of each token besides its log-probabilities.
        kept_passes: forward passes that score a phase (old policy, reference).
        saves_within: checkpoints are also written while an epoch is under way.
        engine, rollout: see there.
    """

    shape: ModelShape
    accelerator: Literal["gpu", "cpu"]
    device_memory: float | None
    host_memory: float | None
    devices: int
    num_nodes: int
    strategy: str
    shard_over: str
    reshard: bool
    reduce: str
    gradient_room: float
    cpu_offload: bool
    half: bool
    recompute: int
    attention: str
    packed: bool
    micro_batch_tokens: int
    optimizer: str
    adapter_rank: int | None
    adapter_targets: str | Sequence[str]
    reference: bool
    statistics: int
    kept_passes: int
    saves_within: bool
    engine: EngineSetup
    rollout: RolloutSetup

    @property
    def ranks(self) -> int:
        """In all."""
        return self.devices * self.num_nodes

    @property
    def shards(self) -> int:
        """Pieces a weight is cut into."""
        if self.strategy != "fsdp":
            return 1
        return self.ranks if self.shard_over == "all" else self.devices

    @property
    def holds_gradient(self) -> bool:
        """Whether a rank holds the whole gradient until the step's last micro-batch."""
        if self.strategy != "fsdp" or self.micro_batches == 1:
            return False
        return self.reduce == "step" or (self.reduce == "auto" and FLOAT * self.trained <= self.gradient_room)

    @property
    def compute_bytes(self) -> int:
        """Of a number in the layers [bytes]."""
        return HALF if self.half else FLOAT

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        if self.adapter_rank is None:
            return self.shape.parameters
        return self.shape.adapter_parameters(self.adapter_rank, self.adapter_targets)

    @property
    def frozen(self) -> int:
        """Parameters of the policy that are not trained."""
        return 0 if self.adapter_rank is None else self.shape.parameters

    @property
    def micro_tokens(self) -> int:
        """The largest micro-batch [tokens]: a response longer than the budget is alone, a step may hold less."""
        rows = self.rollout.prompts_per_step * self.rollout.group_size
        longest = self.rollout.length
        return min(max(self.micro_batch_tokens, longest), math.ceil(rows / self.ranks) * longest)

    @property
    def micro_batches(self) -> int:
        """Of an optimizer step of a rank, when every response is as long as it may be."""
        rows = math.ceil(self.rollout.prompts_per_step * self.rollout.group_size / self.ranks)
        return math.ceil(rows / max(1, self.micro_tokens // self.rollout.length))
