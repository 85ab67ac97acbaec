"""Clip bounds searched anew for every optimizer step until positive tokens have their share (BAPO, arXiv 2510.18927).

-min(r A, clip(r, lower, upper) A);   P = sum over A > 0 of w min(r, upper) A,   N = sum over A < 0 of w max(r, lower) |A|
paper: w = p_old, first upper then lower until P / (P + N) >= target;   reference code: w = 1, first lower, P / N >= target
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlvr_lightning.errors import ConfigError
from rlvr_lightning.methods.constraints.kl import ratio
from rlvr_lightning.methods.constraints.surrogate import clipped_surrogate
from rlvr_lightning.protocols import ConstraintPolicy, StepContext
from rlvr_lightning.types import TokenStats, TokenTerm, When


class BAPO(ConstraintPolicy):
    """PPO's clipped surrogate whose bounds begin tight and are moved step by step, anew for every optimizer step.

    Bounds are of the ratio itself, not of its distance from 1. The sums are over all tokens of the step. The lower bound has
    no steps: raising it makes N larger, so that a search that comes to it, as it is published, always ends at its limit.

    Args:
        target: of the positive tokens in the surrogate: their share in all of it, in (0, 1), or for `reference` their
            ratio to the negative ones, above 0.
        lower: the lower bound to begin with; in [0, lower_limit].
        lower_limit: the lower bound where the search comes to it; at most 1.
        upper: the upper bound to begin with; in [1, upper_limit].
        upper_limit: and at most; finite.
        upper_step: what it is raised by; above 0. The last step ends at the limit.
        dual_clip: for A < 0 the loss is at most -dual_clip A; above 1, or null for no bound.
        variant: `paper`: the share P / (P + N), each token weighing as much as it was probable when it was drawn, the upper
            bound raised first; `reference` (the published code): P / N, without weights, the lower bound first.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        target: float = 0.4,
        lower: float = 0.6,
        lower_limit: float = 0.9,
        upper: float = 1.2,
        upper_limit: float = 3.0,
        upper_step: float = 0.05,
        dual_clip: float | None = None,
        variant: Literal["paper", "reference"] = "paper",
    ) -> None:
        if variant not in ("paper", "reference"):
            raise ConfigError(f"BAPO.variant must be paper or reference; got {variant!r}")
        if not 0 < target < (1 if variant == "paper" else math.inf):
            raise ConfigError(f"BAPO.target must be in (0, 1), or above 0 for the reference; got {target}")
        if not 0 <= lower <= lower_limit <= 1:
            raise ConfigError(f"BAPO.lower and lower_limit must be in order, in [0, 1]; got {lower} and {lower_limit}")
        if not 1 <= upper <= upper_limit < math.inf:
            raise ConfigError(
                f"BAPO.upper and upper_limit must be in order, in [1, inf); got {upper} and {upper_limit}"
            )
        if not upper_step > 0:
            raise ConfigError(f"BAPO.upper_step must be above 0; got {upper_step}")
        if dual_clip is not None and not dual_clip > 1:
            raise ConfigError(f"BAPO.dual_clip must be above 1 or null; got {dual_clip}")
        self.target, self.dual_clip, self.variant = target, dual_clip, variant
        self.lower, self.lower_limit = lower, lower_limit
        self.upper, self.upper_limit, self.upper_step = upper, upper_limit, upper_step

    @property
    def plans_on(self) -> When:
        """The current policy's ratios."""
        return "update"

    def plan(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], step: StepContext) -> Float[Tensor, "B T 2"]:
        """Lower and upper bound, the same for every token."""
        lowers, uppers = (self.lower, self.lower_limit), _grid(self.upper, self.upper_limit, self.upper_step)
        mask, old = stats.loss_mask, stats.old_logprobs.double()
        weight = old.exp() if self.variant == "paper" else torch.ones_like(old)
        mass = torch.where(mask, weight * stats.advantages, 0.0)
        r = torch.where(mask, ratio(stats.logprobs.double(), old), 1.0)
        # The positive sum depends on one bound, the negative on the other: all of them travel at once.
        positive = [(mass.clamp(min=0) * r.clamp(max=upper)).sum() for upper in uppers]
        negative = [(-mass.clamp(max=0) * r.clamp(min=lower)).sum() for lower in lowers]
        sums = step.sum(torch.stack([*positive, *negative])).tolist()
        at_lower, at_upper = self._search(sums[: len(uppers)], sums[len(uppers) :])
        bounds = stats.logprobs.new_tensor([lowers[at_lower], uppers[at_upper]])
        return bounds.expand(*mask.shape, 2)

    def _search(self, positive: Sequence[float], negative: Sequence[float]) -> tuple[int, int]:
        """Places of the first lower and upper bound on the way that suffice, or of the last."""
        ups = range(len(positive))
        upper_first, lower_first = [*((0, up) for up in ups), (1, ups[-1])], [(0, 0), *((1, up) for up in ups)]
        way = upper_first if self.variant == "paper" else lower_first
        enough = (place for place in way if self._measure(positive[place[1]], negative[place[0]]) >= self.target)
        return next(enough, way[-1])

    def _measure(self, positive: float, negative: float) -> float:
        whole = negative + positive if self.variant == "paper" else negative
        # Where nothing is negative there is nothing to make room for.
        return positive / whole if negative else math.inf

    def __call__(self, stats: TokenStats, part_ids: Int[Tensor, "B T"], planned: Tensor) -> tuple[TokenTerm, ...]:
        """The surrogate."""
        r = ratio(stats.logprobs, stats.old_logprobs)
        loss, clipped = clipped_surrogate(r, stats.advantages, planned[..., 0], planned[..., 1], self.dual_clip)
        return (TokenTerm("surrogate", loss, clipped=clipped),)


def _grid(start: float, limit: float, step: float) -> list[float]:
    """From `start` in steps to `limit`, which is the last."""
    return [*(start + i * step for i in range(math.ceil((limit - start) / step))), limit]
