"""A soft gate in place of the clip (SAPO, arXiv 2511.20347).

-(4 / tau) sigmoid(tau (r - 1)) A,  tau_pos where A > 0, tau_neg otherwise
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.protocols import ConstraintPolicy
from rlvr_lightning.types import TokenStats, TokenTerm


class SAPO(ConstraintPolicy):
    """A sigmoid of the ratio: its slope is 1 on-policy and fades on both sides.

    Args:
        tau_pos: steepness for positive advantages; above 0.
        tau_neg: for the others; above 0, and larger to let them fade sooner.

    Raises:
        ConfigError: a steepness is not positive.
    """

    within_responses = True

    def __init__(self, tau_pos: float = 1.0, tau_neg: float = 1.05) -> None:
        for name, value in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
            if not value > 0:
                raise ConfigError(f"SAPO.{name} must be above 0; got {value}")
        self.tau_pos, self.tau_neg = tau_pos, tau_neg

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate; nothing is clipped."""
        r = ratio(stats.logprobs, stats.old_logprobs)
        # Of tensors: of two plain numbers `where` makes float32, whatever comes after.
        tau = torch.where(stats.advantages > 0, torch.full_like(r, self.tau_pos), torch.full_like(r, self.tau_neg))
        gate = torch.sigmoid(tau * (r - 1)) * 4 / tau
        return (TokenTerm("surrogate", -gate * stats.advantages),)
