"""Tokens masked by how far their probability has moved since they were drawn (DPPO, arXiv 2602.04879, Eq. 11 to 14).

-M min(sg(r), max_ratio) (r / sg(r)) A,  r = p / mu with mu of the engine's policy
M = 0  where  A > 0, p > mu, D > delta_high,  and where  A < 0, p < mu, D > delta_low;   otherwise 1
tv: D = |p - mu|,   kl: D = mu log(mu / p) + (1 - mu) log((1 - mu) / (1 - p))
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.methods.constraints.per_part import PerPart, PerPartConstraint, check_range
from rlvr_lightning.types import TokenStats, TokenTerm

# Keeps the logarithm of 1 - p finite.
TINY = 1e-8


class DPPO(PerPartConstraint):
    """A trust region around the policy the engine drew from, measured in probability and not in the ratio.

    A token that has moved too far in the direction its advantage pushes is left out; one that moves back never is. What
    is left out stays in the denominators. The divergences are of two outcomes: the sampled token or any other.

    Args:
        divergence: `tv`, the difference of the two probabilities, in [0, 1]; or `kl`, from the engine's to the current
            one [nats].
        delta_low: most divergence of a token with A < 0 that has become less probable; at least 0.
        delta_high: most divergence of a token with A > 0 that has become more probable; at least 0 (the authors' code:
            0.15 for tv, 0.05 for kl, both).
        max_ratio: most weight of a token; above 1, and inf for no bound. The gradient flows on.

    Raises:
        ConfigError: a setting is out of range, or (when bound) names other parts than the partitioner's.
    """

    within_responses = True
    starts_at_engine = True

    per_part: ClassVar[tuple[str, ...]] = ("delta_low", "delta_high")

    def __init__(
        self,
        divergence: Literal["tv", "kl"] = "tv",
        delta_low: PerPart = 0.15,
        delta_high: PerPart = 0.15,
        max_ratio: float = 20.0,
    ) -> None:
        if divergence not in ("tv", "kl"):
            raise ConfigError(f"DPPO.divergence must be tv or kl; got {divergence!r}")
        check_range("DPPO", "delta_low", delta_low, 0)
        check_range("DPPO", "delta_high", delta_high, 0)
        if not max_ratio > 1:
            raise ConfigError(f"DPPO.max_ratio must be above 1; got {max_ratio}")
        self.divergence, self.delta_low, self.delta_high = divergence, delta_low, delta_high
        self.max_ratio = max_ratio

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate, zero where it is masked."""
        assert stats.rollout_logprobs is not None
        current, engine = stats.logprobs.detach(), stats.rollout_logprobs
        low, high = (self.setting(name, part_ids, current) for name in self.per_part)
        moved, distance = current - engine, self._divergence(current, engine)
        masked = (stats.advantages > 0) & (moved > 0) & (distance > high)
        masked |= (stats.advantages < 0) & (moved < 0) & (distance > low)
        weight = ratio(current, engine).clamp(max=self.max_ratio)
        # Of value 1 wherever the policies are; beyond its bound the weight is held and the gradient flows on.
        unit = (stats.logprobs - current).exp()
        return (TokenTerm("surrogate", torch.where(masked, 0.0, -weight * unit * stats.advantages), clipped=masked),)

    def _divergence(self, current: Float[Tensor, "B T"], engine: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        p, mu = current.exp(), engine.exp()
        if self.divergence == "tv":
            return (p - mu).abs()
        return mu * (engine - current) + (1 - mu) * torch.log((1 - mu + TINY) / (1 - p + TINY))
