"""The pass over the logits of a plain output layer, with analytic gradients: a chunk of logits at a time in one buffer.

Going forward a chunk's logits are made, reduced to a few numbers a token, and overwritten by the next chunk's. Going back they
are made again and overwritten by their gradient, from which hidden states' and weights' follow. Within a chunk, what is done to
the vocabulary's numbers is done to a few tokens at a time, so that results in between stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlvr_lightning.objective.tile import ClosedStatistic, LogitGradient, Tile, add_by_autograd, add_logprob
from rlvr_lightning.protocols import VocabStatistic

# Numbers of a tile on the CPU: 2 MiB in float32. A GPU has no use for it: there a chunk is one tile.
TILE_ELEMENTS = 2**19


@dataclass(frozen=True)
class HeadPass:
    """What is computed of each token.

    Args:
        token_ids: the sampled tokens.
        old: statistics of the same tokens under the policy at the start of the update.
        statistics: besides the log-probability.
        temperature: divides the logits.
        chunk_elements: logits held at a time.
    """

    token_ids: Int[Tensor, " N"]
    old: Mapping[str, Shaped[Tensor, "N ..."]]
    statistics: Sequence[VocabStatistic]
    temperature: float
    chunk_elements: int

    def __call__(self, hidden: Float[Tensor, "N H"], head: nn.Linear) -> tuple[Shaped[Tensor, "N ..."], ...]:
        """Log-probabilities [nats] and each statistic, with a graph back to hidden states and weights."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
        columns = _Fused.apply(self, dtype, hidden, head.weight, head.bias)  # type: ignore[no-untyped-call]
        return cast(tuple[Tensor, ...], columns)

    @property
    def differentiable(self) -> list[bool]:
        """Of each result."""
        return [True, *(statistic.differentiable for statistic in self.statistics)]

    def tile(self, logits: Float[Tensor, "N V"], at: slice) -> Tile:
        """Of the tokens at a place."""
        old = {name: values[at] for name, values in self.old.items()}
        return Tile(torch.log_softmax(logits, dim=-1), self.token_ids[at], old)

    def values(self, tile: Tile) -> list[Shaped[Tensor, "N ..."]]:
        """Log-probability and statistics."""
        found = [tile.sampled]
        for statistic in self.statistics:
            if isinstance(statistic, ClosedStatistic):
                found.append(statistic.value(tile))
            else:
                found.append(statistic(tile.logprobs, tile.token_ids, tile.old))
        return found

    def write_gradient(self, tile: Tile, grads: Sequence[Tensor | None], out: Float[Tensor, "N V"]) -> None:
        """Overwrite a tile's logits with their gradient, given that of each result."""
        into = LogitGradient(tile)
        logprob, *others = grads
        if logprob is not None:
            add_logprob(tile, logprob, into)
        for statistic, grad in zip(self.statistics, others, strict=True):
            if grad is not None and isinstance(statistic, ClosedStatistic):
                statistic.gradient(tile, grad, into)
            elif grad is not None:
                add_by_autograd(statistic, tile, grad, into)
        into.write(out)


class _Chunks:
    """The logits, chunk by chunk in one buffer.

    Args:
        job: what is computed.
        hidden: in the dtype that is computed in, like weight and bias.
    """

    def __init__(self, job: HeadPass, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.job, self.hidden, self.weight, self.bias = job, hidden, weight, bias
        vocabulary = len(weight)
        self.rows = max(1, min(len(hidden), job.chunk_elements // vocabulary))
        on_cpu = hidden.device.type == "cpu"
        self.tile_rows = max(1, TILE_ELEMENTS // vocabulary) if on_cpu else self.rows
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.buffer = hidden.new_empty(self.rows, vocabulary, dtype=dtype)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Where a chunk's tokens are, and their logits, which may be overwritten."""
        # Without tokens there is an empty chunk, so that results and graph are there.
        for start in range(0, max(1, len(self.hidden)), self.rows):
            at = slice(start, min(start + self.rows, len(self.hidden)))
            logits = self.buffer[: at.stop - at.start]
            if self.weight.dtype == logits.dtype:
                torch.mm(self.hidden[at], self.weight.t(), out=logits)
                if self.bias is not None:
                    logits += self.bias
            else:
                logits.copy_(nn.functional.linear(self.hidden[at], self.weight, self.bias))
            if self.job.temperature != 1:
                logits /= self.job.temperature
            yield at, logits

    def tiles(self, at: slice, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Where a tile's tokens are, and its logits."""
        for start in range(at.start, max(at.stop, at.start + 1), self.tile_rows):
            stop = min(start + self.tile_rows, at.stop)
            yield slice(start, stop), logits[start - at.start : stop - at.start]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, job: HeadPass, dtype: torch.dtype, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        columns: list[Tensor] = []
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(job, hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
            for at, logits in chunks:
                for place, part in chunks.tiles(at, logits):
                    values = job.values(job.tile(part, place))
                    # Made once, for all tokens: small results of every tile would keep the blocks between them from use.
                    columns = columns or [value.new_empty(len(hidden), *value.shape[1:]) for value in values]
                    for column, value in zip(columns, values, strict=True):
                        column[place] = value
        ctx.job, ctx.dtype = job, dtype
        ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(*(c for c, has in zip(columns, job.differentiable, strict=True) if not has))
        ctx.set_materialize_grads(False)
        return tuple(columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        job: HeadPass = ctx.job
        _, _, *needed = ctx.needs_input_grad
        d_hidden, d_weight, d_bias = (
            torch.zeros_like(of) if need else None for of, need in zip((hidden, weight, bias), needed, strict=True)
        )
        with torch.autocast(hidden.device.type, enabled=False):
            cast_bias = None if bias is None else bias.to(ctx.dtype)
            chunks = _Chunks(job, hidden.to(ctx.dtype), weight.to(ctx.dtype), cast_bias)
            for at, logits in chunks:
                for place, part in chunks.tiles(at, logits):
                    own = [None if grad is None else grad[place] for grad in grads]
                    job.write_gradient(job.tile(part, place), own, part)
                if job.temperature != 1:
                    logits /= job.temperature
                _spread(chunks, at, logits.to(ctx.dtype), d_hidden, d_weight, d_bias)
        return None, None, d_hidden, d_weight, d_bias


def _spread(
    chunks: _Chunks,
    at: slice,
    grad: Float[Tensor, "N V"],
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> None:
    """From the logits' gradient to that of the chunk's hidden states, and to the share of weight and bias."""
    if d_hidden is not None:
        d_hidden[at] = grad @ chunks.weight
    if d_weight is not None and d_weight.dtype == grad.dtype:
        d_weight.addmm_(grad.t(), chunks.hidden[at])
    elif d_weight is not None:
        d_weight += grad.t() @ chunks.hidden[at]
    if d_bias is not None:
        d_bias += grad.sum(0)
