"""Engines over several ranks: which ranks share one, and how each rank's requests reach all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.types import GenerationRequest

T = TypeVar("T")


@dataclass(frozen=True)
class RankGroup:
    """The ranks that share this rank's engine.

    vLLM's external launcher expects each of them to be asked for the same responses in the same order.

    Args:
        number: of the group, from 0.
        place: of this rank in it.
        executor: vLLM's, for a process that is one of several.
        process_group: of the ranks; None where there is one.
    """

    number: int = 0
    place: int = 0
    executor: Literal["external_launcher"] | None = None
    process_group: Any = None

    @classmethod
    def of(cls, size: int) -> RankGroup:
        """Groups of `size` neighbouring ranks. Every rank must call it.

        Raises:
            ConfigError: that many ranks cannot be cut into such groups.
        """
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if ranks % size:
            raise ConfigError(
                f"engine.tensor_parallel={size} must divide the {ranks} ranks, of which so many share an engine each; "
                "engine=vllm_server has processes of its own for it"
            )
        if ranks == 1:
            return cls()
        rank = dist.get_rank()
        groups = (
            [dist.new_group(list(range(first, first + size))) for first in range(0, ranks, size)] if size > 1 else []
        )
        number = rank // size
        return cls(number, rank % size, "external_launcher", groups[number] if groups else None)

    def together(self, requests: Sequence[GenerationRequest]) -> tuple[list[GenerationRequest], range]:
        """The requests of all ranks of the group, and which of them are this rank's."""
        held = self._of_ranks(list(requests))
        start = sum(map(len, held[: self.place]))
        return [request for of_rank in held for request in of_rank], range(start, start + len(requests))

    def gathered(self, items: list[T]) -> list[T]:
        """The items of all ranks of the group, rank after rank."""
        return [item for of_rank in self._of_ranks(items) for item in of_rank]

    def _of_ranks(self, items: list[T]) -> list[list[T]]:
        if self.process_group is None:
            return [items]
        held: list[list[T]] = [[] for _ in range(dist.get_world_size(self.process_group))]
        dist.all_gather_object(held, items, group=self.process_group)
        return held


@contextlib.contextmanager
def launched(device: torch.device) -> Iterator[None]:
    """What vLLM's external launcher reads of a process that torchrun has started; the current device stays the trainer's."""
    if dist.is_available() and dist.is_initialized():
        os.environ["RANK"], os.environ["WORLD_SIZE"] = str(dist.get_rank()), str(dist.get_world_size())
        os.environ["LOCAL_RANK"] = str(device.index if device.index is not None else dist.get_rank())
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        yield
