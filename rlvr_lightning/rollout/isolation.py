"""Does a model keep packed responses apart? Asked of the model itself, before the first of them is drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.models.attention import isolates
from rlvr_lightning.models.source import ModelSource
from rlvr_lightning.protocols import TrainedModule
from rlvr_lightning.rollout.batching import collate
from rlvr_lightning.rollout.gathering import is_first_rank
from rlvr_lightning.types import Row, TokenBatch

log = logging.getLogger(__name__)

Packing = Literal["auto"] | bool
LENGTHS = (11, 9, 6)
# Of what a response's log-probabilities move by when all that stands before it is seen. Rounding, in half precision too,
# moves them by less; whoever sees something of it, by more.
TOLERATED = 0.05


def settled_packing(packing: Packing, module: TrainedModule, source: ModelSource) -> bool:
    """Whether a run's responses are packed. Every rank must call it.

    Args:
        packing: as configured; `auto` packs where it costs no mask and the model keeps responses apart.
        module: scores.
        source: of the tokenizer.

    Raises:
        ConfigError: packing is asked for, and the model does not keep responses apart.
    """
    if packing is False or (packing == "auto" and not isolates(module.policy.attention)):
        return False
    seen = leak(partial(module.score, on_policy=False), source.tokenizer.vocab_size)
    if seen <= TOLERATED:
        return True
    why = (
        f"with model.path={source.path}, packed responses see each other ({seen:.0%} of the effect of a joint context)"
    )
    if packing is True:
        raise ConfigError(f"{why}: set rollout.packing=false")
    if is_first_rank():
        log.warning("%s: they are padded instead, those of similar length together", why)
    return False


def leak(score: Callable[[TokenBatch], TokenBatch], vocabulary: int) -> float:
    """How much a response sees of what stands before it in a packed row: 0 for nothing, 1 for all of it.

    Packed log-probabilities are compared with padded ones, and the difference with what one long context makes of them.

    Args:
        score: adds `old_logprobs` to a micro-batch; under a sharded strategy a collective.
        vocabulary: tokens there are.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [_row(torch.randint(vocabulary, (length,), generator=generator)) for length in LENGTHS]
    joint = _row(torch.cat([row.token_ids for row in rows]))
    padded, packed, together = _logprobs(score, rows), _logprobs(score, rows, packed=True), _logprobs(score, [joint])
    gaps, scales, start = [], [], LENGTHS[0]
    for place, length in enumerate(LENGTHS[1:], 1):
        own, alone = slice(start, start + length - 1), padded[place, : length - 1]
        gaps.append((packed[0, own] - alone).abs())
        scales.append((together[0, own] - alone).abs())
        start += length
    return float(torch.cat(gaps).mean() / torch.cat(scales).mean().clamp(min=1e-12))


def _row(ids: Tensor) -> Row:
    zeros = torch.zeros(len(ids) - 1)
    return Row(0, 0, ids, torch.ones_like(zeros, dtype=torch.bool), zeros, zeros, zeros)


def _logprobs(score: Callable[[TokenBatch], TokenBatch], rows: Sequence[Row], *, packed: bool = False) -> Tensor:
    scored = score(collate(rows, 0, packed=packed)).old_logprobs
    assert scored is not None
    return scored
