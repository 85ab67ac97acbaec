"""How probable the sampled tokens are, as shares of fixed bins."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

# Close to 0 and to 1 a factor matters, in between a difference.
EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)


class ProbabilityHistogram(Metric):
    """Share of the masked tokens in each bin of `EDGES`.

    A bin holds its lower edge, the last one 1 as well. Whole numbers are kept: counts are exact over micro-batches and
    ranks.

    Example:
        >>> metric = ProbabilityHistogram()
        >>> probabilities = torch.tensor([[0.95, 0.2, 0.92, 1.0, 0.5]])
        >>> metric.update(probabilities.log(), torch.tensor([[True, True, True, True, False]]))
        >>> dict(zip(ProbabilityHistogram.bins, metric.compute().tolist()))["0.9"]
        0.5
    """

    full_state_update = False
    counts: Int[Tensor, " bins"]
    # Each bin is named by its lower edge: as text they sort as they do as numbers.
    bins = tuple(f"{edge:g}" for edge in EDGES[:-1])

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(len(self.bins), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> None:
        """Add the masked tokens by their log-probabilities [nats]."""
        probabilities = logprobs.detach().exp()
        # By comparing with plain numbers: bincount, and edges sent to the device, would wait for it. A probability that
        # rounding lifts above 1 is in the last bin.
        reached = torch.stack([mask & (probabilities >= edge) for edge in EDGES[:-1]]).flatten(1).sum(1)
        self.counts += reached - torch.nn.functional.pad(reached[1:], (0, 1))

    def compute(self) -> Float[Tensor, " bins"]:
        """The shares, in the order of `bins`; nan without any token."""
        return self.counts.double() / self.counts.sum()
