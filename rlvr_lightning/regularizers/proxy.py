"""Lp-Reg's proxy distribution (arXiv 2510.03222): the policy without presumed noise, renormalised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Threshold = Literal["relative", "absolute"]


def kept_tokens(
    logprobs: Float[Tensor, "N V"], threshold: float, kind: Threshold, *, inclusive: bool
) -> Bool[Tensor, "N V"]:
    """Vocabulary entries above tau (or at it, if `inclusive`): kappa times the largest probability, or kappa."""
    tau = logprobs.max(-1, keepdim=True).values + math.log(threshold) if kind == "relative" else math.log(threshold)
    return logprobs >= tau if inclusive else logprobs > tau


@dataclass(frozen=True)
class ProxyLogprob:
    """log pi_proxy of the sampled token [nats]; -inf where it was dropped as noise."""

    threshold: float
    kind: Threshold
    inclusive: bool = False
    differentiable: ClassVar[bool] = False
    name: ClassVar[str] = "proxy_logprobs"

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Filter, renormalise, read off the sampled token."""
        keep = kept_tokens(logprobs, self.threshold, self.kind, inclusive=self.inclusive)
        proxy = logprobs.masked_fill(~keep, -torch.inf)
        sampled = proxy.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
        mass = proxy.logsumexp(-1)
        # Above a fixed threshold there may be nothing at all: then the sampled token is dropped too.
        return torch.where(sampled.isfinite(), sampled - mass, -torch.inf)


@dataclass(frozen=True)
class ProxyKL:
    """KL(pi_proxy || pi) over the whole vocabulary [nats], the proxy without gradient; 0 where nothing is kept."""

    threshold: float
    kind: Threshold
    differentiable: ClassVar[bool] = True
    name: ClassVar[str] = "proxy_kl"

    def __call__(self, logprobs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """sum_v pi_proxy(v) (log pi_proxy(v) - log pi(v))."""
        fixed = logprobs.detach()
        keep = kept_tokens(fixed, self.threshold, self.kind, inclusive=False)
        mass = fixed.masked_fill(~keep, -torch.inf).logsumexp(-1, keepdim=True)
        log_proxy = torch.where(keep, fixed - mass, 0.0)
        proxy = torch.where(keep, log_proxy.exp(), 0.0)
        return (proxy * (log_proxy - torch.where(keep, logprobs, 0.0))).sum(-1)
