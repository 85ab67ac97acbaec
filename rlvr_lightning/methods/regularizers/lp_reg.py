"""Low-probability regularization: shield reasoning sparks (Lp-Reg, arXiv 2510.03222).

pi_proxy(v) ~ pi(v) 1[pi(v) > tau],  tau = kappa max_v pi(v), or fixed
beta 1[p_t < delta_rho, pi_proxy(o_t) > 0, A < 0] KL(pi_proxy || pi)_t
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ESTIMATORS, MAX_KL, KLKind, kl_estimate, ratio
from rlvr_lightning.methods.regularizers.noise_filter import Filter, Threshold
from rlvr_lightning.methods.regularizers.proxy import ProxyLogprob
from rlvr_lightning.methods.regularizers.proxy_kl import ProxyKL
from rlvr_lightning.protocols import Regularizer, StepContext, VocabStatistic
from rlvr_lightning.types import TokenStats, TokenTerm, When


class LpReg(Regularizer):
    """Pull improbable tokens of wrong responses towards the filtered, renormalised policy.

    Args:
        quantile: rho, the share of tokens that count as improbable; in (0, 1).
        threshold, threshold_kind: kappa, in (0, 1), `relative` to the largest probability (min-p) or `absolute`.
        coef: beta; at least 0.
        kl_estimator: of the `reference` variant, from the sampled token; the paper's KL is over the whole vocabulary.
        variant: `paper`: the lowest rho of all response tokens of the step, then A < 0; full-vocabulary KL.
            `reference` (the published code): the lowest int(n rho) of the n tokens with A < 0 (none where that is at
            most 1), whose surrogate is not clipped; a KL estimate from the sampled token. Tokens as improbable as the
            last one chosen are taken together.
        temperature: of sampling; `reference` filters at temperature 1 whatever this is, `paper` at this one.
        support: off-policy, tokens of pi_old's proxy remembered for each token, the most probable ones; at least 1.
            The paper's penalty is exact where no support is larger.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        quantile: float = 0.01,
        threshold: float = 0.02,
        threshold_kind: Threshold = "relative",
        coef: float = 1.0,
        kl_estimator: KLKind = "k3",
        variant: Literal["paper", "reference"] = "paper",
        temperature: float = 1.0,
        support: int = 64,
    ) -> None:
        for name, value in (("quantile", quantile), ("threshold", threshold)):
            if not 0 < value < 1:
                raise ConfigError(f"LpReg.{name} must be in (0, 1); got {value}")
        for name, choice, allowed in (
            ("threshold_kind", threshold_kind, ("relative", "absolute")),
            ("kl_estimator", kl_estimator, tuple(ESTIMATORS)),
            ("variant", variant, ("paper", "reference")),
        ):
            if choice not in allowed:
                raise ConfigError(f"LpReg.{name} must be one of {', '.join(allowed)}; got {choice!r}")
        if coef < 0:
            raise ConfigError(f"LpReg.coef must be at least 0; got {coef}")
        if support < 1 or not temperature > 0:
            raise ConfigError(f"LpReg.support must be at least 1, temperature above 0; got {support} and {temperature}")
        self.quantile, self.threshold, self.threshold_kind, self.coef = quantile, threshold, threshold_kind, coef
        self.kl_estimator, self.variant, self.temperature, self.support = kl_estimator, variant, temperature, support
        reference = variant == "reference"
        self.filter = Filter(threshold, threshold_kind, reference, temperature if reference else 1.0)
        self.proxy, self.penalty = ProxyLogprob(self.filter), ProxyKL(self.filter, support)

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The sampled token's proxy log-probability; in the paper's form also the KL over the vocabulary."""
        if self.variant == "reference":
            return (self.proxy,)
        return (*(replace(one, rarest=self.quantile) for one in (self.proxy, self.penalty)), self.penalty.support)

    @property
    def replaces_surrogate(self) -> bool:
        """In the reference form the sparks' surrogate is not clipped."""
        return self.variant == "reference"

    @property
    def plans_on(self) -> When:
        """Paper: the policy at the rollout; reference code: the current probabilities."""
        return "rollout" if self.variant == "paper" else "update"

    @property
    def marks(self) -> tuple[str, ...]:
        """Sparks, which the term acts on, and noise: as improbable, but dropped by the filter."""
        return ("sparks", "noise")

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Int[Tensor, "B T"]:
        """1 at sparks, 2 at noise."""
        logprobs, proxy = stats.at(self.plans_on).logprobs, stats.old_statistics[self.proxy.name]
        negative = stats.loss_mask & (stats.advantages < 0)
        if self.variant == "paper":
            low = negative & (logprobs.exp() < step.quantile(logprobs.exp(), stats.loss_mask, self.quantile))
            return low * torch.where(proxy.isfinite(), 1, 2)
        count = int(int(step.sum(negative.sum())) * self.quantile)
        low = negative & (logprobs <= step.kth_smallest(logprobs, negative, count)) & (count > 1)
        return low * torch.where(logprobs < proxy, 1, proxy.isneginf() * 2)

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The penalty on the sparks; in the reference form they also leave the clipped surrogate."""
        sparks = planned == 1
        if self.variant == "paper":
            return (TokenTerm("lp_reg", torch.where(sparks, self.coef * stats.statistics[self.penalty.name], 0.0)),)
        proxy = torch.where(sparks, stats.old_statistics[self.proxy.name], 0.0)
        kl = kl_estimate(stats.logprobs, proxy, self.kl_estimator).clamp(-MAX_KL, MAX_KL)
        unclipped = -ratio(stats.logprobs, stats.old_logprobs) * stats.advantages
        return (
            TokenTerm("lp_reg", torch.where(sparks, self.coef * kl, 0.0)),
            TokenTerm("surrogate", torch.where(sparks, unclipped, 0.0), replaces=sparks),
        )
