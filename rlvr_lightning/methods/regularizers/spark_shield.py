"""Lp-Reg's shield (arXiv 2510.03222) in forms of our own: another policy's proxy, another penalty, a ceiling.

coef 1[p_t < min(delta_rho, ceiling), pi_proxy(o_t) > 0, A < 0] D_t,   D: KL(pi_proxy || pi) over the vocabulary, or k3 at the sampled token
pi_proxy: the filtered, renormalised policy at the start of the update, as it is now, or as it was before training
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import MAX_KL, kl_estimate
from rlvr_lightning.methods.regularizers.noise_filter import Filter
from rlvr_lightning.methods.regularizers.proxy import ProxyLogprob, Source
from rlvr_lightning.methods.regularizers.proxy_kl import ProxyKL
from rlvr_lightning.protocols import Regularizer, StepContext, VocabStatistic
from rlvr_lightning.types import TokenStats, TokenTerm, When

Penalty = Literal["full", "k3"]


class SparkShield(Regularizer):
    """Pull improbable tokens of wrong responses towards a proxy.

    With `source=old`, `penalty=full` and a ceiling of 1 it is Lp-Reg's paper form. That proxy is made of the policy itself: on-policy it
    hardly pulls, and drops what has become improbable enough. The reference's remembers what was there once.

    Args:
        quantile: rho, the share of all response tokens of the step that count as improbable; in (0, 1).
        threshold: kappa, relative to the proxy's policy's largest probability (min-p): what lies above it is no noise; in (0, 1).
        source: whose distribution the proxy is made of: `old` (at the start of the update), `current` or the frozen `reference`.
        penalty: `full` (over the vocabulary) or `k3` (estimated from the sampled token).
        ceiling: a token at least as probable as this is no spark; in (0, 1].
        coef: weight of the penalty; at least 0.
        support: tokens of another policy's proxy that are remembered for each token; at least 1.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        quantile: float = 0.05,
        threshold: float = 0.02,
        source: Source = "reference",
        penalty: Penalty = "k3",
        ceiling: float = 1.0,
        coef: float = 1.0,
        support: int = 64,
    ) -> None:
        for name, value in (("quantile", quantile), ("threshold", threshold)):
            if not 0 < value < 1:
                raise ConfigError(f"SparkShield.{name} must be in (0, 1); got {value}")
        if not 0 < ceiling <= 1:
            raise ConfigError(f"SparkShield.ceiling must be in (0, 1]; got {ceiling}")
        for name, choice, allowed in (("source", source, get_args(Source)), ("penalty", penalty, get_args(Penalty))):
            if choice not in allowed:
                raise ConfigError(f"SparkShield.{name} must be one of {', '.join(allowed)}; got {choice!r}")
        if coef < 0:
            raise ConfigError(f"SparkShield.coef must be at least 0; got {coef}")
        if support < 1:
            raise ConfigError(f"SparkShield.support must be at least 1; got {support}")
        self.quantile, self.threshold, self.ceiling, self.coef = quantile, threshold, ceiling, coef
        self.source, self.penalty, self.support = source, penalty, support
        kept = Filter(threshold, "relative")
        self.proxy, self.pull = ProxyLogprob(kept, source), ProxyKL(kept, support, source)

    @property
    def requires(self) -> tuple[VocabStatistic, ...]:
        """The sampled token's proxy log-probability; for the full penalty also the KL over the vocabulary."""
        proxy = replace(self.proxy, rarest=self.quantile)
        if self.penalty == "k3":
            return (proxy,)
        remembered = () if self.source == "current" else (self.pull.support,)
        return (proxy, *remembered, replace(self.pull, rarest=self.quantile))

    @property
    def requires_ref(self) -> bool:
        """Where the proxy is the reference's."""
        return self.source == "reference"

    @property
    def plans_on(self) -> When:
        """The policy at the rollout, unless the proxy is of the current one."""
        return "update" if self.source == "current" else "rollout"

    @property
    def marks(self) -> tuple[str, ...]:
        """Sparks, which the term acts on, and noise: as improbable, but dropped by the filter."""
        return ("sparks", "noise")

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Int[Tensor, "B T"]:
        """1 at sparks, 2 at noise."""
        probs = stats.at(self.plans_on).logprobs.exp()
        least = step.quantile(probs, stats.loss_mask, self.quantile).clamp(max=self.ceiling)
        low = stats.loss_mask & (stats.advantages < 0) & (probs < least)
        return low * torch.where(self._proxy(stats).isfinite(), 1, 2)

    def _proxy(self, stats: TokenStats) -> Tensor:
        return (stats.statistics if self.source == "current" else stats.old_statistics)[self.proxy.name]

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The penalty on the sparks."""
        sparks = planned == 1
        if self.penalty == "full":
            penalty = stats.statistics[self.pull.name]
        else:
            proxy = torch.where(sparks, self._proxy(stats).detach(), 0.0)
            penalty = kl_estimate(stats.logprobs, proxy, "k3").clamp(-MAX_KL, MAX_KL)
        return (TokenTerm("spark_shield", torch.where(sparks, self.coef * penalty, 0.0)),)
