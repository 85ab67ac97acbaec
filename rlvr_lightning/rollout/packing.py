"""Several responses in a row, without padding in between: an optimizer step in as few rows as will hold it.

A packed row is no longer than a padded one was, so `micro_batch_size` means the same memory. Every column but the first
may be a response token: T = L - 1, and `segments` tells the responses of a row apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlvr_lightning.types import TokenBatch


def bins_of(batch: TokenBatch) -> list[list[int]]:
    """Rows that share a packed row: those that carry weight, the longest first, each where it first finds room."""
    width = batch.input_ids.shape[1]
    lengths = batch.attention_mask.sum(-1).tolist()
    busy = [row for row, carries in enumerate(batch.loss_mask.any(-1).tolist()) if carries]
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(busy, key=lambda row: (-lengths[row], row)):
        place = next((place for place, left in enumerate(room) if left >= lengths[row]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(width)
        bins[place].append(row)
        room[place] -= lengths[row]
    return bins


def pack(batch: TokenBatch, bins: Sequence[Sequence[int]], pad_token_id: int) -> TokenBatch:
    """The batch in packed rows; what fills them up is a segment of its own.

    Args:
        batch: padded rows, before any scoring.
        bins: rows that share a packed row; an empty one makes a row without weight.
        pad_token_id: what fills the padding.
    """
    assert batch.segments is None
    assert batch.old_logprobs is None
    packed, width = len(bins), batch.input_ids.shape[1]
    # Where each column of a packed row comes from: row and column of the padded batch, or -1.
    source_row = torch.full((packed, width), -1)
    source_column = torch.zeros(packed, width, dtype=torch.long)
    segments = torch.zeros(packed, width, dtype=torch.long)
    for place, rows in enumerate(bins):
        start = 0
        for segment, index in enumerate(rows):
            columns = batch.attention_mask[index].nonzero().flatten()
            stop = start + len(columns)
            source_row[place, start:stop], source_column[place, start:stop] = index, columns
            segments[place, start:stop], start = segment, stop
        segments[place, start:] = len(rows)
    inside, row = source_row >= 0, source_row.clamp(min=0)
    # A response column of the padded batch is a column of its tensors over T response tokens.
    offset = width - batch.loss_mask.shape[1]
    responding = (inside & (source_column >= offset))[:, 1:]
    column = (source_column - offset).clamp(min=0)

    def moved(tensor: Tensor) -> Tensor:
        return torch.where(responding, tensor[row[:, 1:], column[:, 1:]], torch.zeros((), dtype=tensor.dtype))

    return replace(
        batch,
        input_ids=torch.where(inside, batch.input_ids[row, source_column], pad_token_id),
        attention_mask=inside.long(),
        loss_mask=moved(batch.loss_mask),
        advantages=moved(batch.advantages),
        rollout_logprobs=moved(batch.rollout_logprobs),
        noise=None if batch.noise is None else moved(batch.noise),
        segments=segments[:, 1:],
    )
