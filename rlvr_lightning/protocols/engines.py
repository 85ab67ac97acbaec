"""Engines: what draws responses from a copy of the policy, and what some of them can besides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlvr_lightning.protocols.run import Adapters, ModelFolder
from rlvr_lightning.types import Generation, GenerationRequest, SamplingSpec


@runtime_checkable
class RolloutEngine(Protocol):
    """Draws responses from a copy of the policy."""

    policy_version: int

    def start(self, source: ModelFolder, device: torch.device, max_length: int, dtype: torch.dtype) -> None:
        """Bring the engine up with the source's weights.

        Args:
            source: the model's folder.
            device: of this rank.
            max_length: prompt and response together [tokens].
            dtype: what the trainer computes in, for an engine that was not given one of its own.
        """
        ...

    def sync(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Take over the policy's weights. Every rank must call it, and go through all of them.

        Args:
            weights: under the names of the Hugging Face checkpoint; can be gone through again, which under a sharded
                strategy is a collective.
            policy_version: optimizer steps of the policy; responses carry it.
        """
        ...

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        """One response for each request, in order."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Calling it twice does no harm."""
        ...


@runtime_checkable
class AdapterEngine(Protocol):
    """An engine that may be able to add adapters to the weights it has read itself."""

    def offer(self, adapters: Adapters | None) -> None:
        """Before it is started: what the policy has beside its weights. Every rank must call it."""
        ...

    @property
    def takes_adapters(self) -> bool:
        """Once it is started, the same on every rank: whether its `sync` is to be given the adapters alone."""
        ...


@runtime_checkable
class StreamingEngine(RolloutEngine, Protocol):
    """An engine that hands responses over as they end, so that they are judged while others are still being drawn."""

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """One response for each request, in the order in which they end, each with its request's place."""
        ...


@runtime_checkable
class Draws(Protocol):
    """Who is asked for responses: an engine, or one that is looked after."""

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """One response for each request, in the order in which they end, each with its request's place."""
        ...


@runtime_checkable
class ApartEngine(StreamingEngine, Protocol):
    """An engine in processes of its own, which draws while the trainer does something else, and may be lost meanwhile.

    Its `stream` raises `EngineLostError` when the next `sync` may bring it back.
    """

    is_apart: bool

    def submit(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Future[Generation]]:
        """Have responses drawn; a future may raise `EngineLostError`."""
        ...

    def replicas(self) -> Sequence[Draws]:
        """Each copy of the policy by itself."""
        ...

    def take_counts(self) -> dict[str, int]:
        """What went wrong and was mended since the last call, by name, as this rank saw it."""
        ...


@runtime_checkable
class RestingEngine(Protocol):
    """An engine that can give its memory back between two phases."""

    def rest(self) -> None:
        """Give it back; the next `sync` brings everything anew."""
        ...


@runtime_checkable
class RecordedEngine(Protocol):
    """An engine that answers with what was recorded, maybe of another policy.

    Args:
        on_policy: whether it was the policy of the last sync; set by whoever compares.
    """

    on_policy: bool

    def canary(self, version: int) -> list[Generation]:
        """The answers to the run's fixed prompts after the sync at a version; none where there was no such sync."""
        ...


@runtime_checkable
class TypedEngine(Protocol):
    """An engine that says what its weights are held in."""

    @property
    def weights_dtype(self) -> torch.dtype:
        """Once it is started."""
        ...


@runtime_checkable
class SummedEngine(Protocol):
    """An engine that tells what its weights add up to."""

    def weight_sums(self) -> list[list[dict[str, Any]]]:
        """For each copy of the policy this rank looks after, and each of its workers, `sums` (by the engine's names),
        `computed` (those it had to use the weights for) and `packed` (which of a checkpoint's names it has made one of).
        """
        ...
