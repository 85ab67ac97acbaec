"""Estimators of KL(pi || pi_ref) from the sampled token, and the log-ratio clamp they share.

With d = log pi_ref - log pi:  k1 = -d,  k2 = d^2 / 2,  k3 = exp(d) - d - 1,  abs = |d|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

KLKind = Literal["k1", "k2", "k3", "abs"]

MAX_LOG_RATIO = 20.0
MAX_KL = 10.0


def ratio(logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """pi / pi_old of the sampled tokens, the log-ratio clamped to +-20."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _k3(d: Tensor) -> Tensor:
    d = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (d.exp() - d - 1).clamp(-MAX_KL, MAX_KL)


ESTIMATORS: dict[KLKind, Callable[[Tensor], Tensor]] = {
    "k1": torch.neg,
    "k2": lambda d: d.square() / 2,
    "k3": _k3,
    "abs": torch.abs,
}


def kl_estimate(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], kind: KLKind
) -> Float[Tensor, "B T"]:
    """KL(pi || pi_ref) per token [nats]; k3 is clamped to +-10."""
    return ESTIMATORS[kind](ref_logprobs - logprobs)
