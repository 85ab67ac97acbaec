"""The pull of Lp-Reg's proxy (arXiv 2510.03222): KL(pi_proxy || pi) over the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.methods.regularizers.proxy import ProxySupport, Source, named
from rlvr_lightning.objective.tile import FLOOR, ClosedStatistic, LogitGradient, Tile
from rlvr_lightning.types import Pass


@dataclass(frozen=True)
class ProxyKL(ClosedStatistic):
    """KL(pi_proxy || pi) over the whole vocabulary [nats], the proxy without gradient; 0 where nothing is kept.

    The proxy is another policy's where its support was remembered, and otherwise (on-policy, where pi_old = pi) made here.

    Args:
        filter: what is kept.
        size: tokens remembered at most.
        of: the policy whose proxy it is; `current` never looks at what was remembered.
        rarest: see `ClosedStatistic`.
    """

    filter: Filter
    size: int
    of: Source = "old"
    rarest: float | None = None
    differentiable: ClassVar[bool] = True
    passes: ClassVar[tuple[Pass, ...]] = ("update", "on_policy")

    @property
    def name(self) -> str:
        """One for each filter, size and policy."""
        return named("proxy_kl", self.of, self.filter, self.size)

    @property
    def support(self) -> ProxySupport:
        """What it reads of the other policy."""
        return ProxySupport(self.filter, self.size, self.of)

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
        if not len(rows):
            return
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
        """Ids of the proxy's support and their log-probabilities; one cut to its most probable tokens is renormalised."""
        held = None if self.of == "current" else tile.old.get(self.support.name)
        if held is None:
            return None
        ids, log_proxy = held.unbind(1)
        return ids.long(), log_proxy - log_proxy.exp().sum(-1, keepdim=True).log().clamp(min=FLOOR)
