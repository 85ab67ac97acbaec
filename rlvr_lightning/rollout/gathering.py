"""Python objects of every rank, over the default process group or this process alone where there is none."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def from_all_ranks(items: list[T]) -> list[T]:
    """The items of every rank, rank after rank. Every rank must call it."""
    if not _distributed():
        return items
    gathered: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, items)
    return list(chain.from_iterable(gathered))


def exchange(outgoing: Sequence[Sequence[T]], device: torch.device) -> list[T]:
    """Give each rank what is meant for it. Every rank must call it.

    Args:
        outgoing: for each rank; this one's own stay here.
        device: what the process group sends from.

    Returns:
        What the others have for this rank, rank after rank.
    """
    if not _distributed():
        return []
    me = dist.get_rank()
    parcels = [pickle.dumps(list(items)) if items and rank != me else b"" for rank, items in enumerate(outgoing)]
    sizes = torch.tensor([len(parcel) for parcel in parcels], device=device)
    coming = torch.empty_like(sizes)
    dist.all_to_all_single(coming, sizes)
    sent = torch.frombuffer(bytearray(b"".join(parcels)) or bytearray(1), dtype=torch.uint8)[: int(sizes.sum())]
    received = torch.empty(int(coming.sum()), dtype=torch.uint8, device=device)
    dist.all_to_all_single(received, sent.to(device), coming.tolist(), sizes.tolist())
    pieces = torch.split(received.cpu(), coming.tolist())
    return [item for piece in pieces if len(piece) for item in pickle.loads(piece.numpy().tobytes())]


def place_among_ranks() -> tuple[int, int]:
    """This rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)


def is_first_rank() -> bool:
    """Whether this process speaks for all."""
    return place_among_ranks()[0] == 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
