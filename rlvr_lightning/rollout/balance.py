"""Which rank learns from which rows: as much work for each as may be, whatever lengths its prompts happened to give."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlvr_lightning.rollout.gathering import exchange, from_all_ranks
from rlvr_lightning.rollout.sharing import finer
from rlvr_lightning.types import Row

# Tokens at which causal attention costs as much as everything else: 12 times the hidden size, 18k for a model of 1.5B
# weights and 61k for one of 32B.
ATTENTION_LENGTH = 2**15
# What the busiest rank may have to do over the mean, so that rows of a prompt stay together.
UNEVEN = 1.02


def cost(length: int) -> float:
    """What a row of so many tokens costs, in tokens of a short row."""
    return length * (1 + length / ATTENTION_LENGTH)


def assign(lengths: Sequence[int], ranks: int, prompts: Sequence[int] | None = None) -> list[int]:
    """The rank of each row: the longest first, each to the one with the least to do.

    Args:
        lengths: of the rows.
        ranks: how many there are.
        prompts: of the rows; those of one prompt stay together where no rank has more than `UNEVEN` to do for it.
    """
    even = sum(map(cost, lengths)) / ranks
    owners = [0] * len(lengths)
    for units in finer(lengths, range(len(lengths)) if prompts is None else prompts):
        loads = [0.0] * ranks
        for unit in units:
            rank = min(range(ranks), key=loads.__getitem__)
            loads[rank] += sum(cost(lengths[place]) for place in unit)
            for place in unit:
                owners[place] = rank
        if max(loads) <= UNEVEN * even:
            break
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
    owners = assign([length for _, length in named], ranks, [prompt for (prompt, _), _ in named])
    owner = {name: owner for (name, _), owner in zip(named, owners, strict=True)}
    outgoing: list[list[Row]] = [[] for _ in range(ranks)]
    for row in busy:
        outgoing[owner[row.prompt_index, row.sample]].append(row)
    return outgoing[rank] + exchange(outgoing, device)
