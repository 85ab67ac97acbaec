"""Reward for entropy (arXiv 1602.01783; with an adaptive coefficient: Skywork-OR1, arXiv 2505.22312): -coef H_t."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.statistics import Entropy
from rlvr_lightning.protocols import Regularizer, VocabStatistic
from rlvr_lightning.types import TokenStats, TokenTerm


class EntropyBonus(Regularizer):
    """Pull the policy towards entropy at every token. `controller.drives=regularizer.entropy_bonus.coef` adapts it.

    Args:
        coef: weight of the entropy; at least 0.

    Raises:
        ConfigError: the coefficient is negative.
    """

    within_responses = True

    def __init__(self, coef: float = 0.001) -> None:
        if coef < 0:
            raise ConfigError(f"EntropyBonus.coef must be at least 0; got {coef}")
        self.coef = coef

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The entropy with its gradient."""
        return (Entropy(differentiable=True),)

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """-coef H."""
        return (TokenTerm("entropy_bonus", -self.coef * stats.statistics["entropy"]),)
