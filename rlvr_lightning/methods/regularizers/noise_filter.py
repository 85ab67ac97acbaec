"""Lp-Reg's filter (arXiv 2510.03222): improbable tokens are presumed noise and dropped, the rest renormalised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Threshold = Literal["relative", "absolute"]


@dataclass(frozen=True)
class Filter:
    """What is kept: probabilities above tau (or at it), tau = kappa times the largest one, or kappa itself.

    Args:
        threshold: kappa.
        kind: `relative` to the largest probability (min-p) or `absolute`.
        inclusive: whether a probability equal to tau is kept.
        temperature: of sampling, where probabilities are to be judged as they are at temperature 1.
    """

    threshold: float
    kind: Threshold
    inclusive: bool = False
    temperature: float = 1.0

    def keep(self, logprobs: Float[Tensor, "N V"]) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N 1"]]:
        """Log-probabilities with -inf for what is dropped, and the logarithm of their sum [nats].

        log pi_proxy is the difference. Where no probability reaches a fixed tau, everything is dropped and the second
        is finite all the same.
        """
        judged = logprobs if self.temperature == 1 else (logprobs * self.temperature).log_softmax(-1)
        tau = judged.new_full((), math.log(self.threshold))
        if self.kind == "relative":
            tau = tau + judged.amax(-1, keepdim=True)
        kept = logprobs.masked_fill(judged < tau if self.inclusive else judged <= tau, -torch.inf)
        return kept, kept.exp().sum(-1, keepdim=True).log().clamp(min=-1e4)

    def log_proxy(self, logprobs: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """log pi_proxy [nats]; -inf for what is dropped."""
        kept, mass = self.keep(logprobs)
        return kept - mass

    def __str__(self) -> str:
        return f"{self.kind},{self.threshold},{self.inclusive},{self.temperature}"
