"""The next-token distributions of a few tokens, and the gradient of a loss with respect to their logits.

Statistics whose gradient is known in closed form share both: what several of them read is made once, and their gradients are
added up to a single pass over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from rlvr_lightning.protocols import VocabStatistic

Old = Mapping[str, Shaped[Tensor, "N ..."]]
Made = TypeVar("Made")

# Stands in for log 0, which its probability of 0 would turn into nan.
FLOOR = -1e4


class Tile:
    """The next-token distributions of N tokens.

    Args:
        logprobs: log-softmax at the sampling temperature [nats].
        token_ids: the sampled tokens.
        old: the same tokens' statistics of the policy at the start of the update.
    """

    def __init__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old) -> None:
        self.logprobs, self.token_ids, self.old = logprobs, token_ids, old
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What several statistics of a kind read, made by the first of them."""
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made

    @cached_property
    def probs(self) -> Float[Tensor, "N V"]:
        """p_v."""
        return self.logprobs.exp()

    @cached_property
    def logs(self) -> Float[Tensor, "N V"]:
        """log p_v with a floor, so that 0 log 0 is 0 [nats]."""
        return self.logprobs.clamp(min=FLOOR)

    @cached_property
    def sampled(self) -> Float[Tensor, " N"]:
        """log p_o of the sampled token [nats]."""
        return self.logprobs.gather(-1, self.token_ids.unsqueeze(-1)).squeeze(-1)

    @cached_property
    def entropy(self) -> Float[Tensor, " N"]:
        """-sum_v p_v log p_v [nats]."""
        entropy: Tensor = -torch.linalg.vecdot(self.probs, self.logs)
        return entropy


class LogitGradient:
    """d loss / d logit_v = p_v (a + c log p_v) + b 1[v = o] + others, for each token of a tile.

    Args:
        tile: whose logits they are.
    """

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        self._probs = torch.zeros_like(tile.sampled)
        self._plogp: Tensor | None = None
        self._sampled = torch.zeros_like(tile.sampled)
        self._sparse: list[tuple[Tensor, Tensor]] = []
        self._dense: list[tuple[Tensor, Tensor]] = []

    def add_probs(self, factor: Float[Tensor, " N"]) -> None:
        """Add factor p_v."""
        self._probs += factor

    def add_plogp(self, factor: Float[Tensor, " N"]) -> None:
        """Add factor p_v log p_v."""
        self._plogp = factor if self._plogp is None else self._plogp + factor

    def add_sampled(self, factor: Float[Tensor, " N"]) -> None:
        """Add factor 1[v = o]."""
        self._sampled += factor

    def add_at(self, ids: Int[Tensor, "N K"], values: Float[Tensor, "N K"]) -> None:
        """Add values at K tokens of the vocabulary."""
        self._sparse.append((ids, values))

    def add_rows(self, rows: Int[Tensor, " R"], values: Float[Tensor, "R V"]) -> None:
        """Add values to R of the tile's tokens."""
        self._dense.append((rows, values))

    def write(self, out: Float[Tensor, "N V"]) -> None:
        """Write it over `out`, which may be the memory of the log-probabilities: nothing reads them afterwards."""
        probs = self.tile.probs
        if self._plogp is None:
            torch.mul(probs, self._probs.unsqueeze(-1), out=out)
        else:
            torch.mul(self.tile.logs, self._plogp.unsqueeze(-1), out=out)
            out.add_(self._probs.unsqueeze(-1)).mul_(probs)
        out.scatter_add_(-1, self.tile.token_ids.unsqueeze(-1), self._sampled.unsqueeze(-1))
        for ids, values in self._sparse:
            out.scatter_add_(-1, ids, values)
        for rows, values in self._dense:
            out.index_add_(0, rows, values)


@runtime_checkable
class ClosedStatistic(VocabStatistic, Protocol):
    """A statistic that states its gradient: nothing of the size of the vocabulary is kept for it."""

    @property
    def rarest(self) -> float | None:
        """Of the tokens of an on-policy step, the share it is read of: the least probable; None: of all.

        Of tokens that are certainly not among them it is nan.
        """
        return None

    def value(self, tile: Tile) -> Shaped[Tensor, "N ..."]:
        """The statistic of the tile's tokens."""
        ...

    def gradient(self, tile: Tile, grad: Float[Tensor, " N"], into: LogitGradient) -> None:
        """Add `grad` times the statistic's gradient with respect to the logits; a differentiable one has its own."""
        assert not self.differentiable, f"{self.name} does not state its gradient"

    def __call__(
        self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old
    ) -> Shaped[Tensor, "N ..."]:
        """See `VocabStatistic`."""
        return self.value(Tile(logprobs, token_ids, old))


def add_logprob(tile: Tile, grad: Float[Tensor, " N"], into: LogitGradient) -> None:
    """d log p_o / d logit_v = 1[v = o] - p_v."""
    into.add_sampled(grad)
    into.add_probs(-grad)


def add_by_autograd(statistic: VocabStatistic, tile: Tile, grad: Float[Tensor, " N"], into: LogitGradient) -> None:
    """The same for a statistic that does not state its gradient: d / d logit_v = g_v - p_v sum_w g_w, g = d / d log p."""
    with torch.enable_grad():
        leaf = tile.logprobs.detach().requires_grad_()
        (found,) = torch.autograd.grad(statistic(leaf, tile.token_ids, tile.old), leaf, grad)
    into.add_probs(-found.sum(-1))
    into.add_rows(torch.arange(len(found), device=found.device), found)
