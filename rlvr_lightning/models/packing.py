"""How responses lie in a row, and which of its columns are computed.

Packed, responses stand one after another, each with its prompt. What several of them begin with, such as a group's prompt, gives the
same states in each: it is computed once, and attention alone sees every response whole.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import embedding

from rlvr_lightning.types import TokenBatch


@dataclass(frozen=True)
class Packing:
    """Of a batch.

    Args:
        lengths: of the responses in a packed row, prompts included [tokens]; None where rows are responses.
        computed: the columns that are computed, K of L; None for all.
        source: for each column, its place among those that are computed; None where all are.
    """

    lengths: tuple[int, ...] | None = None
    computed: Int[Tensor, " K"] | None = None
    source: Int[Tensor, " L"] | None = None

    @classmethod
    def of(cls, batch: TokenBatch, *, shares: bool) -> Packing:
        """What a batch says of itself.

        Args:
            batch: padded or packed.
            shares: whether attention can be given what responses share.
        """
        if batch.segments is None:
            return cls()
        found = torch.bincount(batch.segments[0]).tolist()
        # The first column is scored by nothing and has no segment of its own.
        lengths = (found[0] + 1, *found[1:])
        if batch.twins is None or not shares:
            return cls(lengths)
        own = batch.twins == torch.arange(len(batch.twins), device=batch.twins.device)
        return cls(lengths, own.nonzero().squeeze(-1), (own.cumsum(0) - 1)[batch.twins])

    def positions(self, ids: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Of each column within its response: packed, they begin anew with each."""
        if self.lengths is None:
            return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return torch.cat([torch.arange(length) for length in self.lengths]).unsqueeze(0).to(ids.device)

    def shrink(self, values: Shaped[Tensor, "B L"]) -> Shaped[Tensor, "B K"]:
        """What is computed of a row."""
        return values if self.computed is None else values[:, self.computed]

    def spread(self, hidden: Float[Tensor, "B K H"]) -> Float[Tensor, "B L H"]:
        """Every column's states."""
        return hidden if self.source is None else gather(hidden[0], self.source).unsqueeze(0)


def gather(values: Float[Tensor, "K ..."], at: Int[Tensor, " N"]) -> Float[Tensor, "N ..."]:
    """`values[at]`, whose gradient adds up what comes back to one place; on a CPU in a fifth of the time of indexing's."""
    return embedding(at, values.reshape(len(values), -1)).view(len(at), *values.shape[1:])


# Of the row on its way through a model. Masks are made once a pass, before the layers that gradient checkpointing computes
# again: what stands here is read then, and travels on in the mask's place.
_packing: contextvars.ContextVar[Packing | None] = contextvars.ContextVar("packing", default=None)


@contextlib.contextmanager
def packed_as(packing: Packing) -> Iterator[None]:
    """Tell the pass within how its row is packed."""
    token = _packing.set(packing)
    try:
        yield
    finally:
        _packing.reset(token)


def current_packing() -> Packing:
    """Of the pass under way; that of a padded row outside of any."""
    return _packing.get() or Packing()
