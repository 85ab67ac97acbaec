"""Numbers of tokens, as whole numbers."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torchmetrics import Metric


class TokenCounts(Metric):
    """Number of tokens in each of several sets, exact over micro-batches and ranks.

    Args:
        num_sets: N, how many sets there are.

    Example:
        >>> metric = TokenCounts(2)
        >>> metric.update(torch.tensor([[[True, True, False]], [[False, False, False]]]))
        >>> metric.compute().tolist()
        [2, 0]
    """

    full_state_update = False
    counts: Int[Tensor, " N"]

    def __init__(self, num_sets: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_sets, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, sets: Bool[Tensor, "N B T"]) -> None:
        """Add the tokens of each set."""
        self.counts += sets.flatten(1).sum(1)

    def compute(self) -> Int[Tensor, " N"]:
        """How many there are."""
        return self.counts
