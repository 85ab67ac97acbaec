"""Where rooms meet that must not import each other: the halves of a run, the model's folder, its forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rlvr_lightning.types import Prompt, Rollout, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlvr_lightning.protocols.objective import VocabStatistic


@runtime_checkable
class ModelFolder(Protocol):
    """A Hugging Face folder as rollout engines see it."""

    @property
    def folder(self) -> str:
        """Where it lies."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's own."""
        ...

    def load(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model as it stands in the folder, without adapters, its weights in `dtype`."""
        ...


@dataclass(frozen=True)
class Adapters:
    """What the low-rank adapters beside a policy's weights are like.

    Args:
        rank: the highest.
        targets: last names of the layers they stand beside, such as `q_proj`.
        obstacle: what else they change than the product of linear layers; empty where that is all.
    """

    rank: int
    targets: tuple[str, ...]
    obstacle: str = ""


@runtime_checkable
class PolicyModel(Protocol):
    """A policy's forward pass."""

    def __call__(
        self,
        batch: TokenBatch,
        temperature: float,
        statistics: Sequence[VocabStatistic] = (),
        foresee: Callable[[Tensor, dict[str, Tensor]], Sequence[Tensor | None]] | None = None,
        step_tokens: int | None = None,
    ) -> tuple[Float[Tensor, "B T"], dict[str, Shaped[Tensor, "B T ..."]]]:
        """Log-probabilities of the response tokens that carry weight, and the statistics [nats].

        Args:
            batch: whose tokens are scored.
            temperature: divides the logits.
            statistics: what to compute besides.
            foresee: what the loss's gradient will be, as far as it is known: it saves time, and changes nothing.
            step_tokens: of the whole step, where the update is on-policy: what is read of its rarest tokens need not be made of others.
        """
        ...

    def to(self, device: torch.device) -> PolicyModel:
        """Itself, moved."""
        ...

    def adapters_off(self) -> contextlib.AbstractContextManager[None]:
        """The model as it was before adapters were trained."""
        ...

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights under their checkpoint names; under a sharded strategy a collective."""
        ...

    def adapters(self) -> Adapters | None:
        """What stands beside the weights."""
        ...

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights as they were before adapters were trained; under a sharded strategy a collective."""
        ...

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The adapters alone; under a sharded strategy a collective."""
        ...


@runtime_checkable
class TrainedModule(Protocol):
    """The module as the data module sees it."""

    policy: Any
    policy_version: int
    eval_samples: int
    temperature: float
    objective: Any

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the policy's matrix products."""
        ...

    def score(self, micro: TokenBatch, *, on_policy: bool) -> TokenBatch:
        """Add what policy and reference say of the tokens."""
        ...


@runtime_checkable
class RolloutData(Protocol):
    """The data module as the module sees it."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a rollout phase."""
        ...

    @property
    def report(self) -> Mapping[str, float]:
        """What is logged of the phase."""
        ...

    def timeline(self) -> Mapping[str, float]:
        """What is logged of the time since the last call."""
        ...

    def choose_layout(self) -> None:
        """Find out whether responses can be packed."""
        ...

    def sync_engine(self) -> None:
        """Give the engine the current policy's weights, if it has others."""
        ...

    @property
    def evaluates(self) -> bool:
        """Whether held-out responses say something of the policy."""
        ...

    def evaluate(self, prompts: list[Prompt]) -> list[Rollout]:
        """Graded responses to held-out prompts."""
        ...
