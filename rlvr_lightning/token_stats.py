"""Hidden states to token statistics in one pass over the logits, chunk by chunk.

The logits of a step never exist at once: a chunk's are made, reduced to a few numbers per token, and dropped (made
again in the backward pass). What no component requires is not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlvr_lightning.protocols import VocabStatistic

# Logits held at a time: 2**25 numbers, 128 MiB in float32.
CHUNK_ELEMENTS = 2**25


@dataclass(frozen=True)
class Entropy:
    """Entropy of the next-token distribution [nats].

    Args:
        differentiable: whether it carries a gradient (an entropy bonus needs one; choosing tokens does not).
    """

    differentiable: bool = False
    name: ClassVar[str] = "entropy"

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """H = -sum_v p_v log p_v, with 0 log 0 = 0."""
        return torch.special.entr(logprobs.exp()).sum(-1) if not self.differentiable else _entropy(logprobs)


def _entropy(logprobs: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    # entr has an infinite slope at p = 0; in logarithms the gradient stays finite.
    return -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)


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
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Float[Tensor, "B T"], dict[str, Float[Tensor, "B T"]]]:
    """Log-probabilities of the tokens and the required statistics.

    Args:
        hidden: last hidden states; position t scores token t.
        token_ids: the sampled tokens.
        mask: tokens to score; the others get 0 and no gradient.
        head: hidden states to logits.
        temperature: divides the logits.
        statistics: what to compute besides the log-probability.
        chunk_elements: logits held at a time.

    Returns:
        Log-probabilities [nats], and each statistic by name. At least float32, whatever the model's dtype.
    """
    flat_hidden, flat_ids = hidden[mask], token_ids[mask]

    def reduce(chunk: Float[Tensor, "N H"], ids: Int[Tensor, " N"]) -> Float[Tensor, "K N"]:
        logits = head(chunk)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logprobs = torch.log_softmax(logits / temperature, dim=-1)
        rows = [logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)]
        for statistic in statistics:
            rows.append(statistic(logprobs if statistic.differentiable else logprobs.detach(), ids))
        return torch.stack(rows)

    size = max(1, chunk_elements // vocabulary_size(head, flat_hidden))
    if len(flat_ids) <= size:
        columns = reduce(flat_hidden, flat_ids)
    else:
        chunks = zip(torch.split(flat_hidden, size), torch.split(flat_ids, size), strict=True)
        columns = torch.cat([_checkpointed(reduce, chunk, ids) for chunk, ids in chunks], dim=1)
    names = ["logprobs", *(statistic.name for statistic in statistics)]
    full = {name: _scatter(column, mask) for name, column in zip(names, columns, strict=True)}
    return full.pop("logprobs"), full


def vocabulary_size(head: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
    """V, from the output layer itself."""
    weight = getattr(head, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) else int(head(hidden[:1]).shape[-1])


def _checkpointed(function: Callable[[Tensor, Tensor], Tensor], chunk: Tensor, ids: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return function(chunk, ids)
    result = checkpoint(function, chunk, ids, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result


def _scatter(values: Float[Tensor, " N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
