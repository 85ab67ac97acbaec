"""Which rank learns from which rows: as much work for each as may be, whatever lengths its prompts happened to give."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlvr_lightning.rollout.gathering import exchange, from_all_ranks
from rlvr_lightning.types import Row

# Tokens at which causal attention costs as much as everything else: 12 times the hidden size, 18k for a model of 1.5B
# weights and 61k for one of 32B.
ATTENTION_LENGTH = 2**15


def cost(length: int) -> float:
    """What a row of so many tokens costs, in tokens of a short row."""
    return length * (1 + length / ATTENTION_LENGTH)


def assign(lengths: Sequence[int], ranks: int) -> list[int]:
    """The rank of each row: the longest first, each to the one with the least to do."""
    loads, owners = [0.0] * ranks, [0] * len(lengths)
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        owners[place] = min(range(ranks), key=loads.__getitem__)
        loads[owners[place]] += cost(lengths[place])
    return owners


def balanced(rows: Sequence[Row], rank: int, ranks: int, device: torch.device) -> list[Row]:
    """This rank's rows of an optimizer step, of all that carry weight on any rank. Every rank must call it.

    Only rows that change their rank travel.

    Args:
        rows: that this rank has now.
        rank: this one.
        ranks: how many there are.
        device: what the process group sends from.
    """
    busy = [row for row in rows if row.loss_mask.any()]
    if ranks == 1:
        return busy
    named = sorted(from_all_ranks([((row.prompt_index, row.sample), len(row)) for row in busy]))
    owners = assign([length for _, length in named], ranks)
    owner = {name: owner for (name, _), owner in zip(named, owners, strict=True)}
    outgoing: list[list[Row]] = [[] for _ in range(ranks)]
    for row in busy:
        outgoing[owner[row.prompt_index, row.sample]].append(row)
    return outgoing[rank] + exchange(outgoing, device)
