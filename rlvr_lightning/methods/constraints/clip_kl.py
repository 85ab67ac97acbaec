"""Clipped surrogate and reference KL with settings per part (Archer, arXiv 2507.15778; one part: GRPO, DAPO).

-min(r A, clip(r, 1 - low, 1 + high) A) + beta KL,  and for A < 0 at most -dual_clip A
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ESTIMATORS, KLKind, kl_estimate, ratio
from rlvr_lightning.methods.constraints.per_part import PerPart, PerPartConstraint, check_range
from rlvr_lightning.methods.constraints.surrogate import clipped_surrogate
from rlvr_lightning.types import TokenStats, TokenTerm


class ClipKL(PerPartConstraint):
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

    per_part: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high", "kl_coef")

    def __init__(
        self,
        clip_low: PerPart = 0.2,
        clip_high: PerPart = 0.2,
        dual_clip: float | None = None,
        kl_coef: PerPart = 0.0,
        kl_estimator: KLKind = "k3",
        variant: Literal["paper", "reference"] = "paper",
    ) -> None:
        check_range("ClipKL", "clip_low", clip_low, 0, 1)
        check_range("ClipKL", "clip_high", clip_high, 0)
        check_range("ClipKL", "kl_coef", kl_coef, 0)
        if dual_clip is not None and not dual_clip > 1:
            raise ConfigError(f"ClipKL.dual_clip must be above 1 or null; got {dual_clip}")
        if kl_estimator not in ESTIMATORS:
            raise ConfigError(f"ClipKL.kl_estimator must be one of {', '.join(ESTIMATORS)}; got {kl_estimator!r}")
        if variant not in ("paper", "reference"):
            raise ConfigError(f"ClipKL.variant must be paper or reference; got {variant!r}")
        self.clip_low, self.clip_high, self.kl_coef = clip_low, clip_high, kl_coef
        self.dual_clip, self.kl_estimator, self.variant = dual_clip, kl_estimator, variant

    @property
    def requires_ref(self) -> bool:
        """Only where some part is pulled to the reference."""
        return any(self.kl_coef.values()) if isinstance(self.kl_coef, Mapping) else self.kl_coef > 0

    @property
    def within_responses(self) -> bool:
        """But for a KL that is averaged over parts."""
        return self.variant == "paper" or not self.requires_ref

    def __call__(
        self,
        stats: TokenStats,
        part_ids: Int[Tensor, "B T"],
        planned: Tensor,
    ) -> tuple[TokenTerm, ...]:
        """Surrogate, then KL."""
        r = ratio(stats.logprobs, stats.old_logprobs)
        low, high = (self.setting(name, part_ids, r) for name in ("clip_low", "clip_high"))
        loss, clipped = clipped_surrogate(r, stats.advantages, 1 - low, 1 + high, self.dual_clip)
        return (TokenTerm("surrogate", loss, clipped=clipped), *self._kl_terms(stats, part_ids))

    def _kl_terms(self, stats: TokenStats, part_ids: Int[Tensor, "B T"]) -> tuple[TokenTerm, ...]:
        if not self.requires_ref:
            return ()
        assert stats.ref_logprobs is not None
        kl = kl_estimate(stats.logprobs, stats.ref_logprobs, self.kl_estimator)
        weighted = self.setting("kl_coef", part_ids, kl) * kl
        if self.variant == "paper":
            return (TokenTerm("kl", weighted),)
        return tuple(TokenTerm(f"kl/{part}", weighted, over=part) for part in self.parts)
