"""Does a model keep packed responses apart? Asked of the model itself, at start-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.types import Row, TokenBatch

LENGTHS = (11, 9, 6)
# Of what a response's log-probabilities change by when all of what stands before it is seen: rounding in half precision
# changes them by less, and whoever sees a part of it by more.
TOLERATED = 0.05


def leak(score: Callable[[TokenBatch], TokenBatch], vocabulary: int) -> float:
    """How much of what stands before a response in a packed row it sees: 0 for nothing, 1 for all.

    Args:
        score: adds `old_logprobs` to a micro-batch. Under a sharded strategy it is a collective: every rank must call this.
        vocabulary: tokens there are.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [_row(torch.randint(vocabulary, (length,), generator=generator)) for length in LENGTHS]
    padded = [_logprobs(score, [row])[0] for row in rows]
    packed, together = _logprobs(score, rows, packed=True)[0], _logprobs(score, [_one(rows)])[0]
    ends = torch.tensor(LENGTHS).cumsum(0)
    gaps, scales = [], []
    for alone, length, end in list(zip(padded, LENGTHS, ends.tolist(), strict=True))[1:]:
        own = slice(end - length, end - 1)
        gaps.append((packed[own] - alone).abs())
        scales.append((together[own] - alone).abs())
    return float(torch.cat(gaps).mean() / torch.cat(scales).mean().clamp(min=1e-12))


def _row(ids: Tensor) -> Row:
    nothing = torch.zeros(len(ids) - 1)
    return Row(0, 0, ids, torch.ones(len(ids) - 1, dtype=torch.bool), nothing, nothing, nothing)


def _one(rows: Sequence[Row]) -> Row:
    return _row(torch.cat([row.token_ids for row in rows]))


def _logprobs(score: Callable[[TokenBatch], TokenBatch], rows: Sequence[Row], *, packed: bool = False) -> Tensor:
    scored = score(collate(rows, 0, packed=packed)).old_logprobs
    assert scored is not None
    return scored
