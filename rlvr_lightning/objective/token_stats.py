"""Hidden states to token statistics in one pass over the logits, chunk by chunk.

The logits of a step never exist at once: a chunk's are made, reduced to a few numbers per token, and dropped (made
again in the backward pass). What no component requires is not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlvr_lightning.protocols import VocabStatistic
from rlvr_lightning.types import Pass

Statistics = dict[str, Shaped[Tensor, "B T ..."]]
Old = Mapping[str, Shaped[Tensor, "N ..."]]

# Logits held at a time: 2**25 numbers, 128 MiB in float32. Blocks below 32 MiB would come from the C heap, where the
# small results in between keep them from being used again: memory would grow with the step.
CHUNK_ELEMENTS = 2**25


@dataclass(frozen=True)
class Entropy:
    """Entropy of the next-token distribution [nats].

    Args:
        differentiable: whether it carries a gradient (an entropy bonus needs one; choosing tokens does not).
    """

    differentiable: bool = False
    name: ClassVar[str] = "entropy"
    passes: ClassVar[tuple[Pass, ...]] = ("rollout", "update", "on_policy")

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old) -> Float[Tensor, " N"]:
        """H = -sum_v p_v log p_v, with 0 log 0 = 0."""
        # The floor stands in for log 0, which its probability of 0 would turn into nan.
        entropy: Tensor = -torch.linalg.vecdot(logprobs.exp(), logprobs.clamp(min=-1e4))
        return entropy


@dataclass(frozen=True)
class EntropyFlow:
    """What the entropy loses, to first order, when the sampled token's logit gradient is followed (arXiv 2605.11491).

    With phi_v = p_v (log p_v + H), whose sign-changed value is dH / dlogit_v, a step along A d log p_o / dlogit changes
    the entropy by -A (phi_o - sum_v p_v phi_v): the statistic is the bracket [nats per unit of step and advantage].
    """

    differentiable: ClassVar[bool] = False
    name: ClassVar[str] = "entropy_flow"
    passes: ClassVar[tuple[Pass, ...]] = ("update", "on_policy")

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old) -> Float[Tensor, " N"]:
        """phi_o - sum_v p_v phi_v."""
        probs, logs = logprobs.exp(), logprobs.clamp(min=-1e4)
        entropy = -torch.linalg.vecdot(probs, logs)
        phi = probs * (logs + entropy.unsqueeze(-1))
        sampled: Tensor = phi.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
        mean: Tensor = torch.linalg.vecdot(probs, phi)
        return sampled - mean


def merge_statistics(required: Sequence[VocabStatistic]) -> tuple[VocabStatistic, ...]:
    """Each name once; of two equal names the differentiable one, which serves both."""
    merged: dict[str, VocabStatistic] = {}
    for statistic in required:
        held = merged.get(statistic.name)
        if held is None or (statistic.differentiable and not held.differentiable):
            merged[statistic.name] = statistic
    return tuple(merged.values())


def token_stats(
    hidden: Float[Tensor, "B T H"],
    token_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    head: Callable[[Tensor], Tensor],
    temperature: float,
    statistics: Sequence[VocabStatistic] = (),
    old: Mapping[str, Shaped[Tensor, "B T ..."]] | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Float[Tensor, "B T"], Statistics]:
    """Log-probabilities of the tokens and the required statistics.

    Args:
        hidden: last hidden states; position t scores token t.
        token_ids: the sampled tokens.
        mask: tokens to score; the others get 0 and no gradient.
        head: hidden states to logits.
        temperature: divides the logits.
        statistics: what to compute besides the log-probability.
        old: statistics of the same tokens under the policy at the start of the update, for those that read them.
        chunk_elements: logits held at a time.

    Returns:
        Log-probabilities [nats], and each statistic by name. At least float32, whatever the model's dtype.
    """
    tokens = (hidden[mask], token_ids[mask], *(values[mask] for values in (old or {}).values()))

    def reduce(chunk: Float[Tensor, "N H"], ids: Int[Tensor, " N"], *held: Tensor) -> tuple[Tensor, ...]:
        logits = head(chunk)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        before = dict(zip(old or {}, held, strict=True))
        # Autocast would take products of float32 numbers, such as an entropy's, in half precision.
        with torch.autocast(logits.device.type, enabled=False):
            logprobs = torch.log_softmax(logits / temperature, dim=-1)
            results = [logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)]
            for statistic in statistics:
                results.append(statistic(logprobs if statistic.differentiable else logprobs.detach(), ids, before))
        return tuple(results)

    size = max(1, chunk_elements // vocabulary_size(head, tokens[0]))
    if len(tokens[0]) <= size:
        columns = reduce(*tokens)
    else:
        chunks = zip(*(torch.split(values, size) for values in tokens), strict=True)
        parts = [_checkpointed(reduce, chunk) for chunk in chunks]
        columns = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    names = ["logprobs", *(statistic.name for statistic in statistics)]
    full = {name: _scatter(column, mask) for name, column in zip(names, columns, strict=True)}
    return full.pop("logprobs"), full


def vocabulary_size(head: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
    """V, from the output layer itself."""
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) else int(head(hidden[:1]).shape[-1])


def _checkpointed(function: Callable[..., tuple[Tensor, ...]], chunk: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return function(*chunk)
    result = checkpoint(function, *chunk, use_reentrant=False)
    assert isinstance(result, tuple)
    return result


def _scatter(values: Shaped[Tensor, "N ..."], mask: Bool[Tensor, "B T"]) -> Shaped[Tensor, "B T ..."]:
    shape = (*mask.shape, *values.shape[1:])
    spread = mask.view(*mask.shape, *[1] * (values.dim() - 1)).expand(shape)
    return torch.zeros(shape, dtype=values.dtype, device=values.device).masked_scatter(spread, values)
