"""The pass over the logits of a plain output layer, with analytic gradients: a chunk of logits at a time in one buffer.

Going forward a chunk's logits are made, turned into log-probabilities where they are, reduced to a few numbers a token, and
overwritten by the next chunk's. Going back they are made again and overwritten by their gradient, from which hidden states' and
weights' follow. Where the loss's gradient with respect to those few numbers can be foreseen, all of that is done going forward, and
the logits are not made again but for tokens of which it was foreseen wrongly (`foresight.py`). Within a chunk, what is done to the
vocabulary's numbers is done to a few tokens at a time, so that results in between stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlvr_lightning.objective.foresight import Foresee, Foreseen, HeadGradients
from rlvr_lightning.objective.tile import ClosedStatistic, LogitGradient, Tile, add_by_autograd, add_logprob
from rlvr_lightning.protocols import VocabStatistic

# Numbers of a tile on the CPU: 2 MiB in float32. A GPU has no use for it: there a chunk is one tile.
TILE_ELEMENTS = 2**19
# By so much a token's log-probability may differ from that of the pass in which the plan was made [nats].
NEAR = 0.01


@dataclass(frozen=True)
class HeadPass:
    """What is computed of each token.

    Args:
        token_ids: the sampled tokens.
        old: statistics of the same tokens under the policy at the start of the update.
        statistics: besides the log-probability.
        temperature: divides the logits.
        chunk_elements: logits held at a time.
        foresee: from some tokens' results to the loss's gradient with respect to them, or None.
        step_tokens: of the whole on-policy step, of which these are some; None where nothing is known of it.
    """

    token_ids: Int[Tensor, " N"]
    old: Mapping[str, Shaped[Tensor, "N ..."]]
    statistics: Sequence[VocabStatistic]
    temperature: float
    chunk_elements: int
    foresee: Foresee | None = None
    step_tokens: int | None = None

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

    def of(self, rows: Int[Tensor, " R"]) -> HeadPass:
        """The same for some of the tokens."""
        old = {name: values[rows] for name, values in self.old.items()}
        return replace(self, token_ids=self.token_ids[rows], old=old)

    def tile(self, logits: Float[Tensor, "N V"], at: slice | Tensor, *, normalized: bool = False) -> Tile:
        """Of the tokens at a place, or places. Log-probabilities take the place of their logits, unless they have already."""
        if not normalized:
            torch.log_softmax(logits, dim=-1, out=logits)
        return Tile(logits, self.token_ids[at], {name: values[at] for name, values in self.old.items()})

    def values(self, tile: Tile) -> list[Shaped[Tensor, "N ..."]]:
        """Log-probability and statistics; nan for those of the rarest tokens alone."""
        found, rare = [tile.sampled], self.of_rarest
        for place, statistic in enumerate(self.statistics, 1):
            if place in rare:
                found.append(torch.full_like(tile.sampled, torch.nan))
            elif isinstance(statistic, ClosedStatistic):
                found.append(statistic.value(tile))
            else:
                found.append(statistic(tile.logprobs, tile.token_ids, tile.old))
        return found

    @cached_property
    def of_rarest(self) -> dict[int, ClosedStatistic]:
        """Statistics that are made of the step's rarest tokens alone, by their place among the results."""
        if self.step_tokens is None:
            return {}
        closed = {place: one for place, one in enumerate(self.statistics, 1) if isinstance(one, ClosedStatistic)}
        return {place: one for place, one in closed.items() if one.rarest is not None}

    def rare(self, share: float, sampled: Float[Tensor, " K"], new: slice) -> Int[Tensor, " R"]:
        """Places of the new tokens that may be among the rarest of the step, whatever the tokens are that are not known yet.

        A quantile lies at or below the number of the sorted whole's that follows it, which lies at or below that of a part of it.
        """
        assert self.step_tokens is not None
        place = math.ceil(share * (self.step_tokens - 1)) + 1
        if place >= len(sampled):
            return torch.arange(new.start, new.stop, device=sampled.device)
        (within,) = (sampled[new] <= sampled.kthvalue(place).values + NEAR).nonzero(as_tuple=True)
        found: Tensor = within + new.start
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

    def read(self, at: slice, logits: Tensor, columns: list[Tensor]) -> list[Tensor]:
        """Turn a chunk's logits into log-probabilities, and put what is made of them into its place in the columns."""
        for place, part in self.tiles(at, logits):
            values = self.job.values(self.job.tile(part, place))
            # Made once, for all tokens: small results of every tile would keep the blocks between them from use.
            columns = columns or [value.new_empty(len(self.hidden), *value.shape[1:]) for value in values]
            for column, value in zip(columns, values, strict=True):
                column[place] = value
        rare = self.job.of_rarest
        for share in {one.rarest for one in rare.values() if one.rarest is not None}:
            for rows in torch.split(self.job.rare(share, columns[0][: at.stop], at), self.tile_rows):
                tile = self.job.tile(logits[rows - at.start], rows, normalized=True)
                for place_of, statistic in rare.items():
                    if statistic.rarest == share:
                        columns[place_of][rows] = statistic.value(tile)
        return columns

    def back(
        self, at: slice, logits: Tensor, grads: Sequence[Tensor | None], into: HeadGradients, *, normalized: bool
    ) -> None:
        """Overwrite a chunk's logits by their gradient, given that of the results of all tokens, and add what follows."""
        for place, part in self.tiles(at, logits):
            tile = self.job.tile(part, place, normalized=normalized)
            self.job.write_gradient(tile, [None if grad is None else grad[place] for grad in grads], part)
        if self.job.temperature != 1:
            logits /= self.job.temperature
        into.add(at, logits.to(self.weight.dtype), self.hidden[at], self.weight)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, job: HeadPass, dtype: torch.dtype, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        columns: list[Tensor] = []
        ctx.foreseen = (
            None if job.foresee is None else Foreseen(job.foresee, hidden, weight, bias, ctx.needs_input_grad[2:])
        )
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(job, hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
            for at, logits in chunks:
                columns = chunks.read(at, logits, columns)
                if ctx.foreseen is not None:
                    chunks.back(at, logits, ctx.foreseen.look(at, columns), ctx.foreseen.gradients, normalized=True)
        ctx.job, ctx.dtype = job, dtype
        ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(*(c for c, has in zip(columns, job.differentiable, strict=True) if not has))
        ctx.set_materialize_grads(False)
        return tuple(columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        # Whoever goes back a second time makes everything again: what is returned here is the caller's.
        foreseen, ctx.foreseen = ctx.foreseen, None
        if foreseen is None:
            found = HeadGradients.zeros(hidden, weight, bias, ctx.needs_input_grad[2:])
            _go_back(ctx.job, ctx.dtype, hidden, weight, bias, grads, found)
            return None, None, found.hidden, found.weight, found.bias
        found = foreseen.gradients
        rows, missing = foreseen.amiss(grads)
        if len(rows):
            part = found.of(rows)
            _go_back(ctx.job.of(rows), ctx.dtype, hidden[rows], weight, bias, missing, part)
            found.mend(rows, part)
        return None, None, found.hidden, found.weight, found.bias


def _go_back(
    job: HeadPass,
    dtype: torch.dtype,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grads: Sequence[Tensor | None],
    into: HeadGradients,
) -> None:
    """Make the logits again, and from the results' gradient what it makes of hidden states, weight and bias."""
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = _Chunks(job, hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        for at, logits in chunks:
            chunks.back(at, logits, grads, into, normalized=False)
