"""Responses as tensors: one by one, in micro-batches, and as an optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """A prompt and its response, of N tokens: the form a response has before a step is cut, and on disk.

    What speaks of tokens begins with the second: its entry t is of token t + 1, which the t tokens before it and itself
    score (T = N - 1). Nothing here says where the response begins: `loss_mask` marks tokens, in as many turns as it likes.

    Args:
        prompt_index: position of the prompt in the run's endless order.
        sample: which of the prompt's responses; with `prompt_index` it names the row.
        token_ids: prompt and response.
        loss_mask: tokens that carry weight.
        advantages: 0 where a token carries none.
        rollout_logprobs: of the sampled tokens under the engine's policy [nats]; 0 where a token carries no weight.
        noise: a uniform random number in [0, 1) for each token, made from the run's seed, the prompt and the sample:
            choosing at random then does not depend on how a step is cut.
        old_logprobs: under the policy at the start of the update [nats]; None when the update is on-policy.
        ref_logprobs: under the frozen reference [nats]; None when no component needs them.
        old_statistics: vocabulary statistics under the policy at the start of the update, by name; some have several
            numbers a token.
    """

    prompt_index: int
    sample: int
    token_ids: Int[Tensor, " N"]
    loss_mask: Bool[Tensor, " T"]
    advantages: Float[Tensor, " T"]
    rollout_logprobs: Float[Tensor, " T"]
    noise: Float[Tensor, " T"]
    old_logprobs: Float[Tensor, " T"] | None = None
    ref_logprobs: Float[Tensor, " T"] | None = None
    old_statistics: dict[str, Shaped[Tensor, "T ..."]] = field(default_factory=dict)

    def __len__(self) -> int:
        """N."""
        return len(self.token_ids)


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch: rows side by side and padded on the right, or packed one after another into a single row.

    Everything of T = L - 1 columns speaks of the tokens `targets`; the fields are those of `Row`.

    Args:
        input_ids: prompt and response tokens, from the first column on.
        loss_mask: tokens that carry weight; all False in a batch that only keeps a rank in step with the others.
        segments: in a packed batch, which response a token belongs to, from 0; None where a row is one response.
        twins: in a packed batch, for each column one with the same token and the same ones before it in its response, which
            may be itself: its states serve both. None where too few are alike.
    """

    input_ids: Int[Tensor, "B L"]
    loss_mask: Bool[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    rollout_logprobs: Float[Tensor, "B T"]
    noise: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"] | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    old_statistics: dict[str, Shaped[Tensor, "B T ..."]] = field(default_factory=dict)
    segments: Int[Tensor, "B T"] | None = None
    twins: Int[Tensor, " L"] | None = None

    @property
    def targets(self) -> Int[Tensor, "B T"]:
        """The tokens that are scored: all but each row's first."""
        return self.input_ids[:, 1:]

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        """A batch with `function` applied to every tensor (moving to a device)."""
        changes: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changes[item.name] = function(value)
            elif isinstance(value, dict):
                changes[item.name] = {key: function(tensor) for key, tensor in value.items()}
        return replace(self, **changes)


@dataclass(frozen=True)
class StepBatch:
    """This rank's part of an optimizer step.

    Args:
        micros: what is in memory at a time, as many on every rank (collectives go in lockstep), and one at least.
    """

    micros: tuple[TokenBatch, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> StepBatch:
        """A step with `function` applied to every tensor."""
        return StepBatch(tuple(micro.map(function) for micro in self.micros))
