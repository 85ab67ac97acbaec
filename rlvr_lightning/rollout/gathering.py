"""Python objects of every rank, over the default process group or this process alone where there is none."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def from_all_ranks(items: list[T]) -> list[T]:
    """The items of every rank, rank after rank. Every rank must call it."""
    if not _distributed():
        return items
    gathered: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, items)
    return list(chain.from_iterable(gathered))


def is_first_rank() -> bool:
    """Whether this process speaks for all."""
    return not _distributed() or dist.get_rank() == 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
