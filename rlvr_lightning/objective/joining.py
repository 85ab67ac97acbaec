"""A step's micro-batches as one packed row, for what is chosen from the whole step, and its plan cut back to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.types import StepPlan, TokenStats


def join(micros: Sequence[TokenStats]) -> TokenStats:
    """Their tokens one after another in a single row, in which every response is a segment of its own."""
    first = micros[0]
    joined: dict[str, Any] = {}
    for item in fields(first):
        value = getattr(first, item.name)
        if isinstance(value, Tensor):
            joined[item.name] = torch.cat([_in_a_row(getattr(micro, item.name)) for micro in micros], dim=1)
        elif isinstance(value, Mapping):
            joined[item.name] = _by_name([getattr(micro, item.name) for micro in micros], micros)
    offset, segments = 0, []
    for micro in micros:
        own = _responses(micro)
        segments.append(own + offset)
        offset += int(own.max()) + 1
    return replace(first, **joined | {"segments": torch.cat(segments, dim=1)})


def _by_name(held: Sequence[Mapping[str, Tensor]], micros: Sequence[TokenStats]) -> dict[str, Tensor]:
    """Statistics by name, those that all micro-batches with rows have. One without rows was scored otherwise; it has nothing of them."""
    busy = [named for named, micro in zip(held, micros, strict=True) if micro.loss_mask.any()] or [held[0]]
    like = {name: values for name, values in busy[0].items() if all(name in named for named in busy)}

    def own(name: str, named: Mapping[str, Tensor], micro: TokenStats) -> Tensor:
        if micro.loss_mask.any():
            return _in_a_row(named[name])
        return like[name].new_zeros(1, micro.loss_mask.numel(), *like[name].shape[2:])

    return {name: torch.cat([own(name, *pair) for pair in zip(held, micros, strict=True)], dim=1) for name in like}


def cut(plan: StepPlan, micros: Sequence[TokenStats]) -> list[StepPlan]:
    """Each micro-batch's part of a plan that was made from all of them joined; counts stay those of the whole step."""
    bounds = accumulate((micro.loss_mask.numel() for micro in micros), initial=0)
    return [_part(plan, slice(*ends), micro) for ends, micro in zip(pairwise(bounds), micros, strict=True)]


def _part(plan: StepPlan, columns: slice, micro: TokenStats) -> StepPlan:
    def own(values: Tensor) -> Tensor:
        return values[0, columns].view(*micro.loss_mask.shape, *values.shape[2:])

    return replace(
        plan,
        part_ids=own(plan.part_ids),
        choices={key: own(value) for key, value in plan.choices.items()},
        masks={key: own(value) for key, value in plan.masks.items()},
    )


def _in_a_row(values: Tensor) -> Tensor:
    return values.flatten(0, 1).unsqueeze(0)


def _responses(micro: TokenStats) -> Int[Tensor, "1 N"]:
    """Which response of the micro-batch each token belongs to, row after row."""
    rows = torch.arange(len(micro.loss_mask), device=micro.loss_mask.device).unsqueeze(1)
    if micro.segments is None:
        return _in_a_row(rows.expand_as(micro.loss_mask))
    return _in_a_row(rows * (micro.segments.max() + 1) + micro.segments)
