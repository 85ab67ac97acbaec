"""Means over tokens that stay right over micro-batches and ranks: sums and counts are kept, not means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric


class TokenMeanMetric(Metric):
    """Mean of a value over masked tokens, each token weighing the same.

    Example:
        >>> metric = TokenMeanMetric()
        >>> metric.update(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        >>> float(metric.compute())
        2.0
    """

    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> None:
        """Add the masked tokens."""
        self.total += torch.where(mask, values.detach().double(), 0.0).sum()
        self.tokens += mask.sum()

    def compute(self) -> Tensor:
        """The mean; nan without any token."""
        return self.total / self.tokens


class TokenMeans(torch.nn.ModuleDict):
    """A `TokenMeanMetric` for each name; names may hold slashes and dots."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__({_key(name): TokenMeanMetric() for name in names})
        self._names = tuple(names)

    def add(self, name: str, values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> None:
        """Add the masked tokens to one mean."""
        self._metric(name).update(values, mask)

    def _metric(self, name: str) -> TokenMeanMetric:
        metric = self[_key(name)]
        assert isinstance(metric, TokenMeanMetric)
        return metric

    def sums(self) -> dict[str, list[float]]:
        """Total and tokens of each mean on this rank, of those that saw a token."""
        held = {name: (self._metric(name).total, self._metric(name).tokens) for name in self._names}
        # One trip to the device for all of them.
        table = torch.stack([torch.stack(pair) for pair in held.values()]).tolist()
        return {name: pair for name, pair in zip(held, table, strict=True) if pair[1]}

    def resume(self, sums: Mapping[str, list[float]]) -> None:
        """Add what `sums` once gave."""
        for name, (total, tokens) in sums.items():
            metric = self._metric(name)
            metric.total += total
            metric.tokens += tokens

    def drain(self) -> dict[str, float]:
        """The means that saw a token, over all ranks; then start anew. Every rank must call it."""
        means = {}
        for name in self._names:
            metric = self._metric(name)
            # A rank that saw nothing still takes part in the sum, without a warning.
            metric.update(torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool))
            value = float(metric.compute())
            metric.reset()
            if not math.isnan(value):  # nan: no rank saw a token
                means[name] = value
        return means


def _key(name: str) -> str:
    return name.replace(".", "__")
