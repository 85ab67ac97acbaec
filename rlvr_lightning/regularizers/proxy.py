"""Lp-Reg's proxy distribution (arXiv 2510.03222): the policy without presumed noise, renormalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from rlvr_lightning.regularizers.noise_filter import Filter
from rlvr_lightning.types import When

Old = Mapping[str, Shaped[Tensor, "N ..."]]


@dataclass(frozen=True)
class ProxyLogprob:
    """log pi_proxy of the sampled token [nats]; -inf where it was dropped as noise."""

    filter: Filter
    differentiable: ClassVar[bool] = False
    of: ClassVar[tuple[When, ...]] = ("rollout", "update")

    @property
    def name(self) -> str:
        """One for each filter."""
        return f"proxy_logprobs({self.filter})"

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old) -> Float[Tensor, " N"]:
        """Filter, renormalise, read off the sampled token."""
        return self.filter.log_proxy(logprobs).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class ProxySupport:
    """The most probable kept tokens of pi_old's proxy, so that an off-policy update can be pulled towards it.

    Args:
        filter: what is kept.
        size: tokens remembered at most; a larger support is cut to these.
        what: their `ids`, or their `logprobs` under the proxy [nats], -inf where the support is smaller.
    """

    filter: Filter
    size: int
    what: Literal["ids", "logprobs"]
    differentiable: ClassVar[bool] = False
    of: ClassVar[tuple[When, ...]] = ("rollout",)

    @property
    def name(self) -> str:
        """One for each filter and size."""
        return f"proxy_support_{self.what}({self.filter},{self.size})"

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old) -> Shaped[Tensor, "N K"]:
        """The K = min(size, V) largest."""
        values, ids = self.filter.log_proxy(logprobs).topk(min(self.size, logprobs.shape[-1]), dim=-1)
        return ids if self.what == "ids" else values


@dataclass(frozen=True)
class ProxyKL:
    """KL(pi_proxy || pi) over the whole vocabulary [nats], the proxy without gradient; 0 where nothing is kept.

    The proxy is pi_old's where its support was remembered, and otherwise (on-policy, where pi_old = pi) made here.
    """

    filter: Filter
    size: int
    differentiable: ClassVar[bool] = True
    of: ClassVar[tuple[When, ...]] = ("update",)

    @property
    def name(self) -> str:
        """One for each filter and size."""
        return f"proxy_kl({self.filter},{self.size})"

    @property
    def support(self) -> tuple[ProxySupport, ProxySupport]:
        """What it reads of the old policy."""
        return ProxySupport(self.filter, self.size, "ids"), ProxySupport(self.filter, self.size, "logprobs")

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old) -> Float[Tensor, " N"]:
        """sum_v pi_proxy(v) (log pi_proxy(v) - log pi(v))."""
        ids, log_proxy = (old.get(statistic.name) for statistic in self.support)
        if ids is None or log_proxy is None:
            log_proxy = self.filter.log_proxy(logprobs.detach())
        else:
            logprobs = logprobs.gather(-1, ids)
            # A support cut to its most probable tokens is renormalised; nan would stand where nothing is kept.
            log_proxy = torch.where(log_proxy.isfinite(), log_proxy - log_proxy.logsumexp(-1, keepdim=True), -torch.inf)
        keep = log_proxy.isfinite()
        proxy, gap = log_proxy.exp(), torch.where(keep, log_proxy - logprobs, 0.0)
        return (proxy * gap).sum(-1)
