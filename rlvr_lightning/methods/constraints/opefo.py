"""Entropy flows in balance (OPEFO, arXiv 2605.11491): strictly on-policy.

dH_t = -A_t (phi_t - sum_v p_v phi_v),  phi_v = p_v (log p_v + H);   F+ and F-: sums of the positive and negative dH_t
-w r A  with  w = 1 + strength (2 F- / (F+ + F-) - 1) where dH_t > 0,  and F+ in place of F- where dH_t < 0
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.objective.statistics import EntropyFlow
from rlvr_lightning.protocols import ConstraintPolicy, StepContext, VocabStatistic
from rlvr_lightning.types import TokenStats, TokenTerm, When


def entropy_change(stats: TokenStats) -> Float[Tensor, "B T"]:
    """dH_t: what a token's update does to the entropy of its own distribution, to first order [nats a unit step]."""
    return -stats.advantages * stats.statistics["entropy_flow"]


class OPEFO(ConstraintPolicy):
    """Policy gradient whose entropy-raising and entropy-lowering updates are rescaled to cancel.

    The paper does not publish its coefficients. This closed form is this project's: at strength 1 both flows become
    the harmonic mean of F+ and F-, and the two scales add up to 2. Flows are sums over the tokens of the step, so they
    are those of the loss under `aggregator=token_mean`.

    Args:
        strength: 0 leaves the updates as they are, 1 balances the flows; in [0, 1].

    Raises:
        ConfigError: the strength is out of range.
    """

    weighs_by_step = True

    def __init__(self, strength: float = 1.0) -> None:
        if not 0 <= strength <= 1:
            raise ConfigError(f"OPEFO.strength must be in [0, 1]; got {strength}")
        self.strength = strength

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The entropy flow."""
        return (EntropyFlow(),)

    @property
    def on_policy_only(self) -> bool:
        """The first-order flow is that of the policy the responses were drawn from."""
        return True

    @property
    def plans_on(self) -> When:
        """The current policy, which is the old one."""
        return "update"

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Float[Tensor, "B T"]:
        """The scale of each token's update."""
        change = torch.where(stats.loss_mask, entropy_change(stats), 0.0).double()
        rising, falling = step.sum(torch.stack([change.clamp(min=0).sum(), (-change).clamp(min=0).sum()]))
        # With one flow alone there is nothing to balance it with.
        whole = rising + falling if rising > 0 and falling > 0 else torch.inf
        opposite = torch.where(change > 0, falling, torch.where(change < 0, rising, whole / 2))
        scale = 2 * opposite / whole if whole != torch.inf else torch.ones_like(change)
        return (1 + self.strength * (scale - 1)).to(stats.logprobs.dtype)

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The rescaled surrogate."""
        return (TokenTerm("surrogate", -planned * ratio(stats.logprobs, stats.old_logprobs) * stats.advantages),)
