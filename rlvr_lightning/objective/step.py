"""The whole optimizer step over all ranks: sums and exact order statistics without gathering tokens to one rank.

An order statistic is found by radix selection: floats become integers of the same order, and each pass counts one
16-bit digit of the candidates over all ranks (65,536 integers travel), so float32 needs two passes and float64 four.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from jaxtyping import Bool, Int
from torch import Tensor

DIGIT_BITS = 16
DIGITS = 1 << DIGIT_BITS


class Step:
    """`StepContext` over the default process group, or over this process alone where there is none."""

    def __init__(self) -> None:
        self._distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks."""
        if self._distributed:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def quantile(self, values: Tensor, mask: Bool[Tensor, ...], q: float) -> Tensor:
        """The q-quantile (linear interpolation) of the masked values of the step; +inf when there are none."""
        count = int(self.sum(mask.sum()))
        if count == 0:
            return values.new_tensor(math.inf)
        position = q * (count - 1)
        below = self.kth_smallest(values, mask, math.floor(position) + 1)
        above = self.kth_smallest(values, mask, math.ceil(position) + 1)
        return torch.lerp(below, above, position - math.floor(position))

    def kth_smallest(self, values: Tensor, mask: Bool[Tensor, ...], k: int) -> Tensor:
        """The k-th smallest (1-based) of the masked values of the step; -inf for k = 0.

        The values must be finite and number at least k in the whole step.
        """
        if k == 0:
            return values.new_tensor(-math.inf)
        candidates = _ordered_integers(values[mask])
        bits = values.element_size() * 8
        key = 0
        for shift in range(bits - DIGIT_BITS, -1, -DIGIT_BITS):
            digits = (candidates >> shift) & (DIGITS - 1)
            cumulative = self.sum(torch.bincount(digits, minlength=DIGITS)).cumsum(0)
            digit = int(torch.searchsorted(cumulative, k))
            assert digit < DIGITS, "k exceeds the number of values"
            k -= int(cumulative[digit - 1]) if digit else 0
            candidates = candidates[digits == digit]
            key |= digit << shift
        return _to_float(key, values)


class Here(Step):
    """This rank's part of the step alone: for what is only guessed at, which no other rank waits for."""

    def __init__(self) -> None:
        self._distributed = False


def _ordered_integers(values: Tensor) -> Int[Tensor, " N"]:
    """Integers ordered as the floats are, shifted so that the smallest float has the digits 0."""
    if values.dtype == torch.float64:
        bits = values.view(torch.int64)
        # Unsigned order in a signed type: digits are cut off with a mask, so the sign bit is just the top digit's.
        return torch.where(bits < 0, ~bits, bits ^ torch.iinfo(torch.int64).min)
    bits = values.float().view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


def _to_float(key: int, like: Tensor) -> Tensor:
    """The float whose ordered integer is `key`."""
    bits = like.element_size() * 8
    top = 1 << (bits - 1)
    raw = key ^ top if key & top else key ^ ((1 << bits) - 1)
    signed = raw - (1 << bits) if raw & top else raw
    integer, real = (torch.int64, torch.float64) if bits == 64 else (torch.int32, torch.float32)
    return torch.tensor(signed, dtype=integer).view(real).to(like.device)
