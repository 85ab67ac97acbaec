"""What Lp-Reg reads of its proxy distribution (arXiv 2510.03222), from one pass over the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.types import Pass

Old = Mapping[str, Shaped[Tensor, "N ..."]]


@dataclass(frozen=True)
class ProxyLogprob:
    """log pi_proxy of the sampled token [nats]; -inf where it was dropped as noise."""

    filter: Filter
    differentiable: ClassVar[bool] = False
    passes: ClassVar[tuple[Pass, ...]] = ("rollout", "on_policy")

    @property
    def name(self) -> str:
        """One for each filter."""
        return f"proxy_logprobs({self.filter})"

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old) -> Float[Tensor, " N"]:
        """Filter, read off the sampled token, renormalise."""
        kept, mass = self.filter.keep(logprobs)
        return (kept.gather(-1, token_ids.unsqueeze(-1)) - mass).squeeze(-1)


@dataclass(frozen=True)
class ProxySupport:
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

    def __call__(
        self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old
    ) -> Float[Tensor, "N 2 K"]:
        """Ids of the K = min(size, V) largest, as floats (exact below 2^24), and their log pi_proxy [nats] or -inf."""
        kept, mass = self.filter.keep(logprobs)
        values, ids = kept.topk(min(self.size, logprobs.shape[-1]), dim=-1)
        return torch.stack([ids.to(values.dtype), values - mass], dim=1)


@dataclass(frozen=True)
class ProxyKL:
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

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], old: Old) -> Float[Tensor, " N"]:
        """sum_v pi_proxy(v) (log pi_proxy(v) - log pi(v))."""
        remembered = old.get(self.support.name)
        if remembered is None:
            log_proxy = self.filter.log_proxy(logprobs.detach())
        else:
            ids, log_proxy = remembered.unbind(1)
            logprobs = logprobs.gather(-1, ids.long())
            # A support cut to its most probable tokens is renormalised.
            log_proxy = log_proxy - log_proxy.exp().sum(-1, keepdim=True).log().clamp(min=-1e4)
        proxy = log_proxy.exp()
        # A dropped token has weight 0, and 0 times a finite number is 0.
        entropy: Tensor = -torch.linalg.vecdot(proxy, log_proxy.clamp(min=-1e4))
        cross: Tensor = -torch.linalg.vecdot(proxy, logprobs.clamp(min=-1e4))
        return cross - entropy
