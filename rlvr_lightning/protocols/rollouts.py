"""Roles of a rollout phase: where problems come from, who answers them, who judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlvr_lightning.tasks.hygiene import Hygiene
from rlvr_lightning.types import Probe, Problem, Verdict


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
class WatchedTask(Protocol):
    """A task of which more is told than right and wrong."""

    @property
    def probes(self) -> Sequence[Probe]:
        """Tokens whose probability is followed, in responses to the held-out problems."""
        ...

    @property
    def styles(self) -> Sequence[str]:
        """Kinds of responses that are counted apart."""
        ...

    def style(self, response: str) -> str:
        """Which of the `styles` a response is of."""
        ...


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
