"""Reductions over the tokens of one response, whatever shares its row.

A row of a padded batch holds one response; a row of a packed batch holds several, told apart by `segments`. Each result
is spread over the response's tokens, so that a component never needs to know which of the two it was given.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Segments = Int[Tensor, "B T"]


def response_sum(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], segments: Segments | None
) -> Float[Tensor, "B T"]:
    """Sum over the masked tokens of each token's response.

    Args:
        values: per token.
        mask: tokens that count; the others may hold anything.
        segments: which response of its row a token belongs to, from 0; None where a row is one response.
    """
    kept = torch.where(mask, values, 0.0)
    if segments is None:
        return kept.sum(-1, keepdim=True).expand_as(kept)
    sums = kept.new_zeros(len(kept), _most(segments)).scatter_add(1, segments, kept)
    return sums.gather(1, segments)


def response_places(mask: Bool[Tensor, "B T"], segments: Segments | None) -> Int[Tensor, "B T"]:
    """The how-many-th masked token of its response each masked token is, from 1."""
    seen = mask.cumsum(-1)
    if segments is None:
        return seen
    counts = torch.zeros(len(mask), _most(segments), dtype=torch.long, device=mask.device)
    counts = counts.scatter_add(1, segments, mask.long())
    before = counts.cumsum(-1) - counts
    return seen - before.gather(1, segments)


def response_lengths(mask: Bool[Tensor, "B T"], segments: Segments | None) -> Float[Tensor, "B T"]:
    """Masked tokens of each token's response, as float64."""
    return response_sum(mask.to(torch.float64), mask, segments)


def response_mean(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], segments: Segments | None
) -> Float[Tensor, "B T"]:
    """Mean over the masked tokens of each token's response; 0 where there are none."""
    lengths = response_lengths(mask, segments).clamp(min=1).to(values.dtype)
    return response_sum(values, mask, segments) / lengths


def count_responses(mask: Bool[Tensor, "B T"], segments: Segments | None) -> Int[Tensor, ""]:
    """Responses with at least one masked token."""
    if segments is None:
        return mask.any(-1).sum()
    counts = mask.new_zeros(len(mask), _most(segments), dtype=torch.long).scatter_add(1, segments, mask.long())
    return (counts > 0).sum()


def response_quantile(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], q: float, segments: Segments | None
) -> Float[Tensor, "B T"]:
    """The q-quantile (linear interpolation) of the masked values of each token's response; +inf without any."""
    own = torch.zeros_like(mask, dtype=torch.long) if segments is None else segments
    most = _most(own)
    # Sorted by response, then by value; what is masked comes last.
    by_value = values.masked_fill(~mask, torch.inf).argsort(dim=-1, stable=True)
    keys = torch.where(mask, own, most).gather(-1, by_value)
    order = by_value.gather(-1, keys.argsort(dim=-1, stable=True))
    ordered = values.masked_fill(~mask, torch.inf).gather(-1, order)
    counts = torch.zeros(len(mask), most, dtype=torch.long, device=mask.device).scatter_add(1, own, mask.long())
    position = q * (counts - 1).clamp(min=0).to(values.dtype)
    start = counts.cumsum(-1) - counts
    last = values.shape[-1] - 1
    below = ordered.gather(-1, (start + position.floor().long()).clamp(max=last))
    above = ordered.gather(-1, (start + position.ceil().long()).clamp(max=last))
    # Two infinities would give nan.
    found = torch.where(below == above, below, torch.lerp(below, above, position.frac()))
    return torch.where(counts > 0, found, torch.inf).gather(1, own)


def _most(segments: Segments) -> int:
    return int(segments.max()) + 1 if segments.numel() else 1
