"""The tokens of highest entropy (80/20 forking tokens, arXiv 2506.01939): the int(n share) highest of n."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.objective.statistics import Entropy
from rlvr_lightning.protocols import StepContext, TokenPartitioner, VocabStatistic
from rlvr_lightning.types import TokenStats, When


class TopEntropy(TokenPartitioner):
    """The step's tokens of highest entropy are `reasoning`, the others `knowledge`.

    Args:
        share: of all tokens of the optimizer step, over all ranks; in (0, 1). Equal entropies are taken together.
        when: whose entropies: the policy's at the start of the update (`rollout`) or the current one's (`update`).

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(self, share: float = 0.2, when: When = "update") -> None:
        if not 0 < share < 1:
            raise ConfigError(f"TopEntropy.share must be in (0, 1); got {share}")
        if when not in ("rollout", "update"):
            raise ConfigError(f"TopEntropy.when must be rollout or update; got {when!r}")
        self.share, self.when = share, when

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
        """As `when` says."""
        return self.when

    def __call__(self, stats: TokenStats, step: StepContext) -> Int[Tensor, "B T"]:
        """1 at the tokens of highest entropy."""
        entropy = stats.at(self.when).statistics["entropy"]
        count = int(int(step.sum(stats.loss_mask.sum())) * self.share)
        chosen = -entropy <= step.kth_smallest(-entropy, stats.loss_mask, count)
        return (chosen & stats.loss_mask).to(torch.long)
