"""Reasoning and knowledge tokens by entropy (Archer, arXiv 2507.15778).

tau_i = Quantile(H of response i, rho);   reasoning where H >= tau_i, knowledge below
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.responses import response_quantile
from rlvr_lightning.objective.statistics import Entropy
from rlvr_lightning.protocols import StepContext, TokenPartitioner, VocabStatistic
from rlvr_lightning.types import TokenStats, When


class EntropyQuantile(TokenPartitioner):
    """Tokens above an entropy quantile are `reasoning`, the others `knowledge`.

    Args:
        quantile: rho, the share of knowledge tokens; in (0, 1).
        scope: `response`: a threshold for each response (the paper: the class must not depend on how high a
            response's entropy is overall); `batch`: one for the whole optimizer step over all ranks.
        variant: `paper`: entropies of the policy at the rollout, a tie is reasoning; `reference` (the published
            code): entropies of the current policy at every update, a tie is knowledge.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        quantile: float = 0.8,
        scope: Literal["response", "batch"] = "response",
        variant: Literal["paper", "reference"] = "paper",
    ) -> None:
        if not 0 < quantile < 1:
            raise ConfigError(f"EntropyQuantile.quantile must be in (0, 1); got {quantile}")
        if scope not in ("response", "batch"):
            raise ConfigError(f"EntropyQuantile.scope must be response or batch; got {scope!r}")
        if variant not in ("paper", "reference"):
            raise ConfigError(f"EntropyQuantile.variant must be paper or reference; got {variant!r}")
        self.quantile, self.scope, self.variant = quantile, scope, variant

    @property
    def parts(self) -> tuple[str, ...]:
        """`knowledge` (0) and `reasoning` (1)."""
        return ("knowledge", "reasoning")

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The entropy, without gradient."""
        return (Entropy(),)

    @property
    def plans_on(self) -> When:
        """Paper: the rollout; reference code: each update."""
        return "rollout" if self.variant == "paper" else "update"

    @property
    def within_responses(self) -> bool:
        """With a threshold for each response."""
        return self.scope == "response"

    def __call__(self, stats: TokenStats, step: StepContext) -> Int[Tensor, "B T"]:
        """1 where a token's entropy reaches its threshold."""
        entropy = stats.at(self.plans_on).statistics["entropy"]
        if self.scope == "batch":
            threshold = step.quantile(entropy, stats.loss_mask, self.quantile)
        else:
            threshold = response_quantile(entropy, stats.loss_mask, self.quantile, stats.segments)
        reasoning = entropy >= threshold if self.variant == "paper" else entropy > threshold
        return (reasoning & stats.loss_mask).long()
