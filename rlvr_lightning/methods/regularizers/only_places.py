"""A regularizer at some places of the responses alone: where a method acts is found out by taking the rest away (ours)."""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.responses import response_places
from rlvr_lightning.protocols import Regularizer, StepContext, VocabStatistic
from rlvr_lightning.types import TokenStats, TokenTerm, When

Where = Literal["first", "rest"]


class OnlyPlaces(Regularizer):
    """Another regularizer, without what it chose elsewhere. What it chooses from stays the whole step.

    Args:
        regularizer: one that chooses tokens.
        where: `first` keeps the first `tokens` tokens of each response, `rest` all others.
        tokens: of each response; at least 1. Only those that carry weight are counted.

    Raises:
        ConfigError: a setting is out of range, or the regularizer chooses no tokens.
    """

    def __init__(self, regularizer: Regularizer, where: Where = "first", tokens: int = 1) -> None:
        if where not in get_args(Where):
            raise ConfigError(f"OnlyPlaces.where must be one of {', '.join(get_args(Where))}; got {where!r}")
        if tokens < 1:
            raise ConfigError(f"OnlyPlaces.tokens must be at least 1; got {tokens}")
        if type(regularizer).plan is Regularizer.plan:
            raise ConfigError(
                f"OnlyPlaces needs a regularizer that chooses tokens; {type(regularizer).__name__} acts on all of them"
            )
        self.regularizer, self.where, self.tokens = regularizer, where, tokens

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The inner one's."""
        return self.regularizer.requires

    @property
    def requires_ref(self) -> bool:
        """The inner one's."""
        return self.regularizer.requires_ref

    @property
    def on_policy_only(self) -> bool:
        """The inner one's."""
        return self.regularizer.on_policy_only

    @property
    def replaces_surrogate(self) -> bool:
        """The inner one's."""
        return self.regularizer.replaces_surrogate

    @property
    def plans_on(self) -> When | None:
        """The inner one's."""
        return self.regularizer.plans_on

    @property
    def marks(self) -> tuple[str, ...]:
        """The inner one's."""
        return self.regularizer.marks

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Tensor:
        """The inner one's choice, where it is kept."""
        chosen = self.regularizer.plan(stats, part_ids, step)
        first = response_places(stats.loss_mask, stats.segments) <= self.tokens
        return chosen * (first if self.where == "first" else ~first)

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The inner terms."""
        return self.regularizer(stats, part_ids, planned)
