"""Clipped surrogate and reference KL with settings per part (Archer, arXiv 2507.15778; one part: GRPO, DAPO).

-min(r A, clip(r, 1 - low, 1 + high) A) + beta KL,  and for A < 0 at most -dual_clip A
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.constraints.kl import ESTIMATORS, KLKind, kl_estimate, ratio
from rlvr_lightning.errors import ConfigError
from rlvr_lightning.protocols import ConstraintPolicy
from rlvr_lightning.types import TokenStats, TokenTerm

PerPart = float | Mapping[str, float]


class ClipKL(ConstraintPolicy):
    """PPO's clipped surrogate; each number is one for all parts or one for each part by name.

    Args:
        clip_low: the ratio's gradient is cut below 1 - clip_low; in [0, 1].
        clip_high: and above 1 + clip_high; at least 0.
        dual_clip: for a negative advantage the loss is at most -dual_clip * A; above 1, or null for no bound.
        kl_coef: weight of the KL to the reference; 0 for none.
        kl_estimator: k1, k2, k3 or abs.
        variant: `paper`: the KL is weighted per token inside the one mean; `reference` (the published code): each
            part's KL is averaged over that part's own tokens.

    Raises:
        ConfigError: a number is out of range, or (when bound) names other parts than the partitioner's.
    """

    def __init__(
        self,
        clip_low: PerPart = 0.2,
        clip_high: PerPart = 0.2,
        dual_clip: float | None = None,
        kl_coef: PerPart = 0.0,
        kl_estimator: KLKind = "k3",
        variant: Literal["paper", "reference"] = "paper",
    ) -> None:
        if dual_clip is not None and not dual_clip > 1:
            raise ConfigError(f"ClipKL.dual_clip must be above 1 or null; got {dual_clip}")
        if kl_estimator not in ESTIMATORS:
            raise ConfigError(f"ClipKL.kl_estimator must be one of {', '.join(ESTIMATORS)}; got {kl_estimator!r}")
        if variant not in ("paper", "reference"):
            raise ConfigError(f"ClipKL.variant must be paper or reference; got {variant!r}")
        self.settings = {"clip_low": clip_low, "clip_high": clip_high, "kl_coef": kl_coef}
        for name, most in (("clip_low", 1.0), ("clip_high", float("inf")), ("kl_coef", float("inf"))):
            setting = self.settings[name]
            for value in setting.values() if isinstance(setting, Mapping) else (setting,):
                if not 0 <= value <= most:
                    raise ConfigError(f"ClipKL.{name} must be in [0, {most:g}]; got {value}")
        self.dual_clip, self.kl_estimator, self.variant = dual_clip, kl_estimator, variant
        self._parts: tuple[str, ...] = ()

    def bind(self, parts: tuple[str, ...]) -> None:
        """Check the per-part settings against the parts."""
        for name, setting in self.settings.items():
            if isinstance(setting, Mapping) and set(setting) != set(parts):
                raise ConfigError(
                    f"constraint.{name} is set for the parts {', '.join(setting)}, but the partitioner makes "
                    f"{', '.join(parts)}: give one number for all, or one for each of these"
                )
        self._parts = parts

    @property
    def requires_ref(self) -> bool:
        """Only where some part is pulled to the reference."""
        coef = self.settings["kl_coef"]
        return any(coef.values()) if isinstance(coef, Mapping) else coef > 0

    def _per_token(self, name: str, part_ids: Int[Tensor, "B T"], like: Tensor) -> Float[Tensor, ...]:
        setting = self.settings[name]
        if isinstance(setting, Mapping):
            return like.new_tensor([setting[part] for part in self._parts])[part_ids]
        return like.new_tensor(setting)

    def __call__(
        self,
        stats: TokenStats,
        part_ids: Int[Tensor, "B T"],
        planned: Tensor,
    ) -> tuple[TokenTerm, ...]:
        """Surrogate, then KL."""
        low, high = (self._per_token(name, part_ids, stats.logprobs) for name in ("clip_low", "clip_high"))
        r, advantages = ratio(stats.logprobs, stats.old_logprobs), stats.advantages
        free, cut = -r * advantages, -r.clamp(1 - low, 1 + high) * advantages
        loss, clipped = torch.maximum(free, cut), cut > free
        if self.dual_clip is not None:
            bound = -self.dual_clip * advantages
            clipped = clipped | ((advantages < 0) & (loss > bound))
            loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
        return (TokenTerm("surrogate", loss, clipped=clipped), *self._kl_terms(stats, part_ids))

    def _kl_terms(self, stats: TokenStats, part_ids: Int[Tensor, "B T"]) -> tuple[TokenTerm, ...]:
        if not self.requires_ref:
            return ()
        assert stats.ref_logprobs is not None
        kl = kl_estimate(stats.logprobs, stats.ref_logprobs, self.kl_estimator)
        weighted = self._per_token("kl_coef", part_ids, kl) * kl
        if self.variant == "paper":
            return (TokenTerm("kl", weighted),)
        return tuple(TokenTerm(f"kl/{part}", weighted, over=part) for part in self._parts)
