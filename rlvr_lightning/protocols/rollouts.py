"""Roles of a rollout phase: where problems come from, who answers them, who judges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlvr_lightning.protocols.run import ModelFolder
from rlvr_lightning.tasks.hygiene import Hygiene
from rlvr_lightning.types import Generation, GenerationRequest, Problem, SamplingSpec, Verdict


@runtime_checkable
class Task(Protocol):
    """Where problems come from."""

    def train(self) -> Sequence[Problem]:
        """Problems to learn from. May be a lazy sequence; its order does not matter."""
        ...

    def held_out(self) -> Sequence[Problem]:
        """Problems to validate on, disjoint from `train`; may be empty."""
        ...


@runtime_checkable
class ScreenedTask(Protocol):
    """A task that has compared its training problems with those evaluated on."""

    hygiene: Hygiene


@runtime_checkable
class Verifier(Protocol):
    """Says whether a response is right."""

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """Judge one response.

        Raises:
            Exception: whatever goes wrong is counted and reported by the caller; it never becomes a reward.
        """
        ...


@runtime_checkable
class AdvantageEstimator(Protocol):
    """Turns the rewards of a group into advantages."""

    def __call__(self, rewards: Float[Tensor, "P G"], valid: Bool[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Advantages of the responses; zero where `valid` is False (the verifier failed there)."""
        ...


@runtime_checkable
class RewardShaping(Protocol):
    """Changes the verifier's rewards before the advantage; whether a group is dropped goes by the verifier's own."""

    def __call__(self, rewards: Float[Tensor, "P G"], lengths: Int[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """The rewards the advantage is made of.

        Args:
            rewards: the verifier's; without a meaning where it failed.
            lengths: of the responses [tokens].
        """
        ...


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
        """Take over the policy's weights, under the names of the Hugging Face checkpoint."""
        ...

    def generate(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> list[Generation]:
        """One response for each request, in order."""
        ...

    def close(self) -> None:
        """Free what the engine holds. Calling it twice does no harm."""
        ...


@runtime_checkable
class StreamingEngine(RolloutEngine, Protocol):
    """An engine that hands responses over as they end, so that they are judged while others are still being drawn."""

    def stream(self, requests: Sequence[GenerationRequest], sampling: SamplingSpec) -> Iterator[tuple[int, Generation]]:
        """One response for each request, in the order in which they end, each with its request's place."""
        ...
