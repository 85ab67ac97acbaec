"""What Lp-Reg reads of its proxy distribution (arXiv 2510.03222), from one pass over the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.objective.tile import FLOOR, ClosedStatistic, LogitGradient, Tile
from rlvr_lightning.types import Pass


@dataclass(frozen=True)
class ProxyLogprob(ClosedStatistic):
    """log pi_proxy of the sampled token [nats]; -inf where it was dropped as noise."""

    filter: Filter
    differentiable: ClassVar[bool] = False
    passes: ClassVar[tuple[Pass, ...]] = ("rollout", "on_policy")

    @property
    def name(self) -> str:
        """One for each filter."""
        return f"proxy_logprobs({self.filter})"

    def value(self, tile: Tile) -> Float[Tensor, " N"]:
        """Filter, read off the sampled token, renormalise."""
        mass, tau = self.filter.log_mass(tile)
        kept = self.filter.kept(tile.sampled.unsqueeze(-1), tau).squeeze(-1)
        return torch.where(kept, tile.sampled - mass, -torch.inf)


@dataclass(frozen=True)
class ProxySupport(ClosedStatistic):
    """The most probable kept tokens of pi_old's proxy, so that an off-policy update can be pulled towards it.

    Args:
        filter: what is kept.
        size: tokens remembered at most; a larger support is cut to these.
    """

    filter: Filter
    size: int
    differentiable: ClassVar[bool] = False
    passes: ClassVar[tuple[Pass, ...]] = ("rollout",)

    @property
    def name(self) -> str:
        """One for each filter and size."""
        return f"proxy_support({self.filter},{self.size})"

    def value(self, tile: Tile) -> Float[Tensor, "N 2 K"]:
        """Ids of the K = min(size, V) largest, as floats (exact below 2^24), and their log pi_proxy [nats] or -inf."""
        kept, mass = self.filter.keep(tile.logprobs)
        values, ids = kept.topk(min(self.size, kept.shape[-1]), dim=-1)
        return torch.stack([ids.to(values.dtype), values - mass], dim=1)


@dataclass(frozen=True)
class ProxyKL(ClosedStatistic):
    """KL(pi_proxy || pi) over the whole vocabulary [nats], the proxy without gradient; 0 where nothing is kept.

    The proxy is pi_old's where its support was remembered, and otherwise (on-policy, where pi_old = pi) made here.
    """

    filter: Filter
    size: int
    differentiable: ClassVar[bool] = True
    passes: ClassVar[tuple[Pass, ...]] = ("update", "on_policy")

    @property
    def name(self) -> str:
        """One for each filter and size."""
        return f"proxy_kl({self.filter},{self.size})"

    @property
    def support(self) -> ProxySupport:
        """What it reads of the old policy."""
        return ProxySupport(self.filter, self.size)

    def value(self, tile: Tile) -> Float[Tensor, " N"]:
        """sum_v pi_proxy(v) (log pi_proxy(v) - log pi(v)), which of a policy's own proxy is the constant -log sum_kept pi."""
        remembered = self._remembered(tile)
        if remembered is None:
            mass, _ = self.filter.log_mass(tile)
            return torch.where(mass > FLOOR, -mass, 0.0)
        ids, log_proxy = remembered
        logprobs, proxy = tile.logprobs.gather(-1, ids), log_proxy.exp()
        # A dropped token has weight 0, and 0 times a finite number is 0.
        entropy: Tensor = -torch.linalg.vecdot(proxy, log_proxy.clamp(min=FLOOR))
        cross: Tensor = -torch.linalg.vecdot(proxy, logprobs.clamp(min=FLOOR))
        return cross - entropy

    def gradient(self, tile: Tile, grad: Float[Tensor, " N"], into: LogitGradient) -> None:
        """d / dlogit_v = p_v - pi_proxy(v), of tokens that pull at all: few do."""
        rows = grad.nonzero().squeeze(-1)
        remembered = self._remembered(tile)
        if remembered is None:
            kept, mass = self.filter.keep(tile.logprobs[rows])
            proxy = (kept - mass).exp()
            into.add_rows(rows, -grad[rows].unsqueeze(-1) * proxy)
            into.add_probs(torch.zeros_like(grad).index_add(0, rows, grad[rows] * proxy.sum(-1)))
        else:
            ids, log_proxy = remembered
            into.add_at(ids, -grad.unsqueeze(-1) * log_proxy.exp())
            into.add_probs(grad * log_proxy.exp().sum(-1))

    def _remembered(self, tile: Tile) -> tuple[Tensor, Tensor] | None:
        """Ids of the old proxy's support and their log-probabilities; one cut to its most probable tokens is renormalised."""
        held = tile.old.get(self.support.name)
        if held is None:
            return None
        ids, log_proxy = held.unbind(1)
        return ids.long(), log_proxy - log_proxy.exp().sum(-1, keepdim=True).log().clamp(min=FLOOR)
