"""Quantiles of a ratio near 1, such as how much more probable the trainer finds a token than the engine did."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

# Sizes of log-ratios that are told apart: from rounding to a factor of 1,000, twelve to a decade (steps of 21 %).
STEPS_A_DECADE, LEAST, MOST = 12, 1e-7, 7.0
_NUMBER = math.ceil(math.log10(MOST / LEAST) * STEPS_A_DECADE)


class RatioQuantiles(Metric):
    """Quantiles of exp(log-ratio) over masked tokens, from counts in fixed bins: exact over micro-batches and ranks.

    Example:
        >>> metric = RatioQuantiles()
        >>> metric.update(torch.tensor([[0.0, 0.0, 0.7, 9.0]]), torch.tensor([[True, True, True, False]]))
        >>> [round(value, 1) for value in metric.quantiles([0.5, 1.0])]
        [1.0, 2.0]
    """

    full_state_update = False
    counts: Int[Tensor, " bins"]
    edges: Float[Tensor, " edges"]

    def __init__(self) -> None:
        super().__init__()
        sizes = [LEAST * 10 ** (step / STEPS_A_DECADE) for step in range(_NUMBER + 1)]
        # From very negative over nothing to very positive.
        self.centres = [-size for size in reversed(sizes)] + [0.0] + sizes
        middles = [(low + high) / 2 for low, high in zip(self.centres, self.centres[1:], strict=False)]
        self.register_buffer("edges", torch.tensor(middles), persistent=False)
        self.add_state("counts", torch.zeros(len(self.centres), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_ratios: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> None:
        """Add the masked tokens' log-ratios [nats]."""
        places = torch.bucketize(log_ratios.detach().to(self.edges.dtype), self.edges)
        self.counts.scatter_add_(0, places.flatten(), mask.flatten().long())

    def compute(self) -> Int[Tensor, " bins"]:
        """The counts."""
        return self.counts

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The smallest ratio that so much of the tokens do not exceed, for each share. Every rank must call it."""
        counts = self.compute()
        cumulative, total = counts.cumsum(0).tolist(), int(counts.sum())
        found = []
        for share in shares:
            place = next((i for i, seen in enumerate(cumulative) if seen >= share * total and seen), 0)
            found.append(math.exp(self.centres[place]) if total else math.nan)
        return found
