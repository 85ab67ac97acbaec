"""Roles of the objective: what splits, constrains, regularizes, weighs and adds up tokens, and what they may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from rlvr_lightning.types import MaskCount, Pass, TokenStats, TokenTerm, When


@runtime_checkable
class VocabStatistic(Protocol):
    """A number per token made from the whole next-token distribution.

    It is computed in the one pass over the logits, chunk by chunk, whenever a component names it in `requires`.
    Two statistics with the same name are the same statistic.
    """

    @property
    def name(self) -> str:
        """The key in `stats.statistics`."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether it carries a gradient."""
        ...

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The forward passes it is computed in: `rollout` (kept in `old_statistics`), `update`, or `on_policy`.

        Or `reference` alone, that of the frozen reference: kept in `old_statistics` too, so that it needs a name of its own, and made
        where a component has `requires_ref`.
        """
        ...

    def __call__(
        self,
        logprobs: Float[Tensor, "N V"],
        token_ids: Int[Tensor, " N"],
        old: Mapping[str, Shaped[Tensor, "N ..."]],
    ) -> Shaped[Tensor, "N ..."]:
        """The statistic of N tokens.

        Args:
            logprobs: log-softmax at the sampling temperature [nats].
            token_ids: the sampled tokens.
            old: the same tokens' statistics of the policy at the start of the update; empty where the update is
                on-policy, and when that policy itself is asked.
        """
        ...


@runtime_checkable
class StepContext(Protocol):
    """The whole optimizer step over all ranks, for those who choose tokens: nothing is gathered to one rank."""

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks."""
        ...

    def quantile(self, values: Tensor, mask: Bool[Tensor, ...], q: float) -> Tensor:
        """The q-quantile (linear interpolation) of the masked values of the step; +inf when there are none."""
        ...

    def kth_smallest(self, values: Tensor, mask: Bool[Tensor, ...], k: int) -> Tensor:
        """The k-th smallest (1-based) of the masked values of the step; -inf for k = 0."""
        ...


@runtime_checkable
class Component(Protocol):
    """What partitioners, constraints and regularizers share."""

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """Statistics read from `stats.statistics` (and `stats.old_statistics`); nothing else is computed."""
        return ()

    @property
    def requires_ref(self) -> bool:
        """Whether `stats.ref_logprobs` is read."""
        return False

    @property
    def on_policy_only(self) -> bool:
        """Whether it makes sense only with one optimizer step a rollout phase."""
        return False

    @property
    def plans_on(self) -> When | None:
        """The policy whose statistics the choice of tokens reads: `rollout` (old), `update` (current) or None.

        `update` costs a forward pass without gradient of every micro-batch but the first.
        """
        return None

    @property
    def within_responses(self) -> bool:
        """Whether what it chooses in a response depends on that response alone, and its terms are averaged over `response`.

        Where all components say so, a micro-batch's plan is made of its own statistics, and no pass is spent on it.
        """
        return False

    @property
    def weighs_by_step(self) -> bool:
        """Whether every token's weight depends on all tokens of the step: until they are known nothing is foreseen of its gradient."""
        return False


@runtime_checkable
class TokenPartitioner(Component, Protocol):
    """Splits response tokens into named parts."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts; a token's id is its part's index here."""
        ...

    def __call__(self, stats: TokenStats, step: StepContext) -> Int[Tensor, "B T"]:
        """Part ids, disjoint and exhaustive by construction."""
        ...


@runtime_checkable
class ConstraintPolicy(Component, Protocol):
    """The policy-gradient surrogate and what holds it back: clip ranges and reference KL, per part."""

    @property
    def per_response(self) -> bool:
        """Whether a response has one ratio: single tokens can then be neither left out nor weighed."""
        return False

    @property
    def starts_at_engine(self) -> bool:
        """Whether its ratio is to the policy the engine drew from: a correction would count that gap a second time."""
        return False

    def bind(self, parts: tuple[str, ...]) -> None:
        """Check the settings against the partitioner's parts, once, when the run is built.

        Raises:
            ConfigError: per-part settings do not match the parts.
        """

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Tensor:
        """What needs the whole step (a mask, a weight per token), without gradient; rows as in `stats`.

        Called more than once a step, first with what is known so far: it changes nothing of the component.
        """
        return stats.loss_mask

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The terms of each token; the first is named `surrogate`."""
        ...


@runtime_checkable
class Regularizer(Component, Protocol):
    """A summand beside the surrogate."""

    @property
    def replaces_surrogate(self) -> bool:
        """Whether some of its terms take the place of single tokens' surrogate."""
        return False

    @property
    def marks(self) -> tuple[str, ...]:
        """Token sets to count for the logs, where `plan` returns integers: i + 1 at tokens of the i-th, 0 at others.

        The first is the set the terms act on, as a mask is.
        """
        return ()

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Tensor:
        """What needs the whole step (a mask, `marks`, a weight per token), without gradient; rows as in `stats`.

        Called more than once a step, as a constraint's.
        """
        return stats.loss_mask

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The terms of each token: the first is logged under the regularizer's name, others as `name/term`."""
        ...


@runtime_checkable
class Weighting(Component, Protocol):
    """How much a token's surrogate counts: a factor on its loss and gradient. Several are multiplied."""

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Tensor:
        """What needs the whole step (a mask, a factor per token), without gradient; rows as in `stats`.

        Called more than once a step, as a constraint's.
        """
        return stats.loss_mask

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> Float[Tensor, "B T"]:
        """The factor of each token, without gradient: 1 leaves it as it is, 0 takes it out; denominators count it all the same."""
        ...


@runtime_checkable
class Correction(Protocol):
    """Weighs the surrogate for what lies between the engine's policy and the one the update starts from."""

    def __call__(self, stats: TokenStats) -> Float[Tensor, "B T"]:
        """A weight for each token's surrogate, without gradient."""
        ...


@runtime_checkable
class LevelledCorrection(Protocol):
    """A correction that may weigh all tokens of a response alike."""

    @property
    def per_response(self) -> bool:
        """Whether it does."""
        ...


@runtime_checkable
class Aggregator(Protocol):
    """Turns token terms into one number: `loss = sum(values * weights)`."""

    def __call__(
        self, mask: Bool[Tensor, "B T"], lengths: Float[Tensor, "B T"], count: MaskCount
    ) -> Float[Tensor, "B T"]:
        """The weight of each token: zero outside `mask`.

        Args:
            mask: the tokens a term is averaged over.
            lengths: how many of them each token's response has.
            count: their numbers in the whole step over all ranks.
        """
        ...
