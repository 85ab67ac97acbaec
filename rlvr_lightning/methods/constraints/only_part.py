"""Policy gradient from one part's tokens alone (80/20 forking tokens, arXiv 2506.01939).

mean over the kept tokens of the inner constraint's surrogate; with `top_entropy` the kept tokens are the forking ones
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.protocols import ConstraintPolicy, StepContext, VocabStatistic
from rlvr_lightning.types import TokenStats, TokenTerm, When


class OnlyPart(ConstraintPolicy):
    """Another constraint whose surrogate counts for one part only; its KL terms stay as they are.

    Args:
        part: name of the part that learns; the surrogate is averaged over its tokens.
        constraint: the surrogate, with a ratio for each token.

    Raises:
        ConfigError: the constraint has one ratio a response, or (when bound) there is no such part.
    """

    def __init__(self, part: str, constraint: ConstraintPolicy) -> None:
        if constraint.per_response:
            raise ConfigError(
                f"OnlyPart leaves out single tokens, but {type(constraint).__name__} has one ratio for a whole "
                "response: choose a constraint with a ratio for each token"
            )
        self.part, self.constraint = part, constraint

    def bind(self, parts: tuple[str, ...]) -> None:
        """Check that the part exists, and the inner constraint."""
        if self.part not in parts:
            raise ConfigError(f"constraint.part={self.part} is not a part; the partitioner makes {', '.join(parts)}")
        self.constraint.bind(parts)

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The inner constraint's."""
        return self.constraint.requires

    @property
    def requires_ref(self) -> bool:
        """The inner constraint's."""
        return self.constraint.requires_ref

    @property
    def starts_at_engine(self) -> bool:
        """The inner constraint's."""
        return self.constraint.starts_at_engine

    @property
    def on_policy_only(self) -> bool:
        """The inner constraint's."""
        return self.constraint.on_policy_only

    @property
    def plans_on(self) -> When | None:
        """The inner constraint's."""
        return self.constraint.plans_on

    @property
    def weighs_by_step(self) -> bool:
        """The inner constraint's."""
        return self.constraint.weighs_by_step

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Tensor:
        """The inner constraint's."""
        return self.constraint.plan(stats, part_ids, step)

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The inner terms, the surrogate over the part."""
        surrogate, *others = self.constraint(stats, part_ids, planned)
        return (replace(surrogate, over=self.part), *others)
