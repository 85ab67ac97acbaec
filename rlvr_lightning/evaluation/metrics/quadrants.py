"""Tokens by the sign of their advantage and by how surprising they are, and what each kind does to the entropy."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric


class QuadrantTable(Metric):
    """How many tokens each quadrant has, and how much of the first-order entropy flow.

    A token is rare where its surprisal -log p is above the entropy H of its distribution, and likely elsewhere: there
    raising its logit turns from lowering the entropy to raising it (dH / dlogit = -p (log p + H), arXiv 2605.11491).
    Learning a rare token always raises the entropy and unlearning it lowers it; with a likely one it is mostly the other
    way round, but for what the other logits do. A token without advantage is in no quadrant.

    Example:
        >>> metric = QuadrantTable()
        >>> advantages, logprobs = torch.tensor([[1.0, 1.0, -1.0, 0.0]]), torch.tensor([[-0.1, -3.0, -0.2, -1.0]])
        >>> entropies, change = torch.full((1, 4), 0.5), torch.tensor([[-0.2, 0.4, 0.1, 0.0]], dtype=torch.float64)
        >>> metric.update(advantages, logprobs, entropies, change, torch.ones(1, 4, dtype=torch.bool))
        >>> shares, flows = metric.compute().tolist()
        >>> dict(zip(QuadrantTable.quadrants, shares))
        {'positive_likely': 0.25, 'positive_rare': 0.25, 'negative_likely': 0.25, 'negative_rare': 0.0}
        >>> dict(zip(QuadrantTable.quadrants, flows))["positive_rare"]
        0.1
    """

    full_state_update = False
    quadrants = ("positive_likely", "positive_rare", "negative_likely", "negative_rare")
    members: Int[Tensor, " Q"]
    flows: Float[Tensor, " Q"]
    tokens: Int[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("members", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("flows", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        advantages: Float[Tensor, "B T"],
        logprobs: Float[Tensor, "B T"],
        entropies: Float[Tensor, "B T"],
        change: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> None:
        """Add the masked tokens.

        Args:
            advantages: their sign chooses the row of the table.
            logprobs: of the sampled tokens under the current policy [nats].
            entropies: of their distributions [nats].
            change: dH of each token's update, to first order [nats a unit step].
            mask: response tokens.
        """
        rare = -logprobs.detach() > entropies.detach()
        signs = (mask & (advantages > 0), mask & (advantages < 0))
        table = torch.stack([sign & kind for sign in signs for kind in (~rare, rare)]).flatten(1)
        self.members += table.sum(1)
        self.flows += torch.where(table, change.detach().double().flatten(), 0.0).sum(1)
        self.tokens += mask.sum()

    def compute(self) -> Float[Tensor, "2 Q"]:
        """Shares, and flows whose sum is the flow of all [nats a unit step], both of all tokens; nan without any."""
        return torch.stack([self.members.double(), self.flows]) / self.tokens
