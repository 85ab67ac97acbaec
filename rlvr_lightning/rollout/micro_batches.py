"""Which rows share a micro-batch: as many tokens as the budget allows, on every rank in equal number.

What is computed is a micro-batch's tokens with their padding. Padded, rows of similar length lie together; packed, there
is no padding, and the micro-batches are of equal size as nearly as may be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.rollout.batching import collate, scored_rows
from rlvr_lightning.rollout.gathering import from_all_ranks
from rlvr_lightning.rollout.sharing import finer
from rlvr_lightning.types import Row, StepBatch, TokenBatch


@dataclass(frozen=True)
class Budget:
    """What is in memory at a time.

    Args:
        tokens: of a micro-batch, its padding included; a longer row has a micro-batch of its own.
        rows: responses in it at most; None for any number.

    Raises:
        ConfigError: one of them is below 1.
    """

    tokens: int = 16384
    rows: int | None = None

    def __post_init__(self) -> None:
        for name, number in (("tokens", self.tokens), ("size", self.rows)):
            if number is not None and number < 1:
                raise ConfigError(f"trainer.micro_batch_{name} must be at least 1; got {number}")

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether so much may be in memory; one row always may."""
        return rows <= 1 or (tokens <= self.tokens and (self.rows is None or rows <= self.rows))


def sorted_by_length(lengths: Sequence[int], budget: Budget, least: int = 1) -> list[list[int]]:
    """Rows side by side, padded to the longest of their micro-batch: the longest first, each micro-batch filled up.

    Returns:
        The places in `lengths` of each micro-batch's rows; those that are missing to `least` are empty.
    """
    micros: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if not micros or not budget.fits(len(micros[-1]) + 1, (len(micros[-1]) + 1) * lengths[micros[-1][0]]):
            micros.append([])
        micros[-1].append(place)
    return micros + [[]] * (least - len(micros))


def bins(
    lengths: Sequence[int], budget: Budget, least: int = 1, prompts: Sequence[int] | None = None
) -> list[list[int]]:
    """Rows one after another: in as few micro-batches as hold them, `least` at least, and evenly.

    Args:
        lengths: of the rows.
        budget: of a micro-batch.
        least: micro-batches.
        prompts: of the rows; those of one prompt stay together where they may, since what they share is computed once.

    Returns:
        The places in `lengths` of each micro-batch's rows, the longest first; where there are too few, some are empty.
    """
    number = max(least, -(-sum(lengths) // budget.tokens))
    if budget.rows is not None:
        number = max(number, -(-len(lengths) // budget.rows))
    while True:
        for units in finer(lengths, range(len(lengths)) if prompts is None else prompts):
            micros = _spread(units, lengths, budget, number)
            if micros is not None:
                return [sorted(micro, key=lambda place: (-lengths[place], place)) for micro in micros]
        number += 1


def _spread(
    units: Sequence[Sequence[int]], lengths: Sequence[int], budget: Budget, number: int
) -> list[list[int]] | None:
    """Each unit to the emptiest of `number` bins with places left; None where one holds too much."""
    micros: list[list[int]] = [[] for _ in range(number)]
    sums = [0] * number
    for unit in units:
        free = [
            index for index in range(number) if budget.rows is None or len(micros[index]) + len(unit) <= budget.rows
        ]
        if not free:
            return None
        index = min(free, key=lambda index: sums[index])
        micros[index] += unit
        sums[index] += sum(lengths[place] for place in unit)
        if not budget.fits(len(micros[index]), sums[index]):
            return None
    return micros


@dataclass(frozen=True)
class Layout:
    """How a rank's rows of an optimizer step become micro-batches.

    Args:
        budget: what is in memory at a time.
        pad_token_id: what fills the padding.
        packed: rows one after another in a single row, instead of side by side.
    """

    budget: Budget
    pad_token_id: int
    packed: bool

    def cut(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows of each micro-batch, as many as the other ranks have. Every rank must call it.

        Rows without weight are left out; a micro-batch may be empty.
        """
        # Their order on disk, or on the way from another rank, changes nothing.
        busy = sorted((row for row in rows if row.loss_mask.any()), key=lambda row: (row.prompt_index, row.sample))
        lengths, number = [len(row) for row in busy], 1
        lay_out = partial(bins, prompts=[row.prompt_index for row in busy]) if self.packed else sorted_by_length
        micros = lay_out(lengths, self.budget)
        # What one rank needs, all take; more bins hold what fewer did, but nothing proves that they need not be more yet.
        while (most := max(from_all_ranks([len(micros)]))) > number:
            number, micros = most, lay_out(lengths, self.budget, most)
        return [[busy[place] for place in micro] for micro in micros]

    def laid_out(self, micros: Sequence[Sequence[Row]]) -> StepBatch:
        """The tensors of micro-batches."""
        return StepBatch(tuple(collate(rows, self.pad_token_id, packed=self.packed) for rows in micros))

    def scored(self, rows: Sequence[Row], score: Callable[[TokenBatch], TokenBatch]) -> list[Row]:
        """The rows that carry weight, with what `score` adds to their micro-batches. Every rank must call it."""
        micros = self.cut(rows)
        batches = map(score, self.laid_out(micros).micros)
        return [row for batch, held in zip(batches, micros, strict=True) for row in scored_rows(batch, held)]
